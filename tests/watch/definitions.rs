//! What ALTER and DROP do to a watched table: at worst too much is invalidated, and it is said.

use tokio::sync::mpsc::UnboundedReceiver;
use tokio_postgres::{AsyncMessage, Client};

use crate::stage::{ITEMS, Stage, run, text};

const STATE: &str = "SELECT \"table\" || ' ' || triggers || ' ' || broken_columns::text FROM pgcache.watched_tables";

fn warnings(messages: &mut UnboundedReceiver<AsyncMessage>) -> Vec<String> {
    std::iter::from_fn(|| messages.try_recv().ok())
        .filter_map(|message| match message {
            AsyncMessage::Notice(notice) if notice.severity() == "WARNING" => {
                Some(notice.message().to_owned())
            }
            _ => None,
        })
        .collect()
}

/// The statement succeeds, with a warning, and invalidates the whole domain.
async fn falls_back(
    stage: &Stage,
    (client, messages): &mut (Client, UnboundedReceiver<AsyncMessage>),
    statement: &str,
) {
    warnings(messages);
    assert_eq!(
        stage.changes_by(client, statement).await,
        ["item */*"],
        "{statement}"
    );
    let said = warnings(messages);
    assert!(
        said.iter()
            .any(|w| w.contains("the whole domain is invalidated")),
        "{statement}: {said:?}"
    );
}

#[tokio::test]
async fn a_renamed_table_is_still_watched() {
    let stage = Stage::new(ITEMS).await;
    run(
        &stage.sql,
        "CREATE SCHEMA other; ALTER TABLE item RENAME TO thing; ALTER TABLE thing SET SCHEMA other",
    )
    .await;
    stage
        .expect(
            "UPDATE other.thing SET price = 0 WHERE id = 1",
            &["item 1/1"],
        )
        .await;
    assert_eq!(text(&stage.sql, STATE).await, "other.thing enabled {}");
}

#[tokio::test]
async fn renamed_dropped_and_retyped_columns() {
    for (change, state, watch) in [
        (
            "ALTER TABLE item RENAME tenant TO owner",
            "item changed {tenant}",
            "tenant_column => 'owner', entity_column => 'id'",
        ),
        (
            "ALTER TABLE item DROP tenant",
            "item changed {tenant}",
            "entity_column => 'id'",
        ),
        (
            "ALTER TABLE item RENAME id TO number",
            "item changed {id}",
            "entity_column => 'number'",
        ),
        (
            "ALTER TABLE item ALTER tenant TYPE bigint",
            "item changed {}",
            "tenant_column => 'tenant'",
        ),
        (
            "ALTER TABLE item ALTER tenant TYPE timestamptz USING now()",
            "item changed {tenant}",
            "entity_column => 'id'",
        ),
        (
            "ALTER TABLE item ALTER id TYPE text",
            "item changed {}",
            "entity_column => 'id'",
        ),
    ] {
        let stage = Stage::new(ITEMS).await;
        let mut fresh = stage.with_messages().await;
        let mut used = stage.with_messages().await;
        for client in [&used.0, &stage.sql] {
            run(client, "UPDATE item SET price = price + 1 WHERE name = 'a'; UPDATE item SET price = price + 1 WHERE name < 'c'").await;
        }
        run(&stage.sql, change).await;
        for client in [&mut fresh, &mut used] {
            for statement in [
                "UPDATE item SET price = price + 1",
                "UPDATE item SET price = price + 1 WHERE name = 'a'",
                "INSERT INTO item SELECT FROM generate_series(1, 0)",
                "DELETE FROM item WHERE name = 'b'",
                "INSERT INTO item SELECT * FROM item WHERE name = 'nobody'",
            ] {
                if statement.starts_with("INSERT") {
                    run(&client.0, statement).await; // fails nobody
                } else if statement.starts_with("DELETE") && warnings(&mut client.1).is_empty() {
                    run(&client.0, statement).await;
                } else {
                    falls_back(&stage, client, statement).await;
                }
            }
        }
        assert_eq!(text(&stage.sql, STATE).await, state, "{change}");
        let complaints = stage.cache().capabilities().await.unwrap().warnings;
        assert!(
            complaints.iter().any(|c| c.contains("watch it again")),
            "{complaints:?}"
        );
        run(
            &stage.sql,
            &format!("SELECT pgcache.watch('item', {watch})"),
        )
        .await;
        assert_eq!(text(&stage.sql, STATE).await, "item enabled {}", "{change}");
        warnings(&mut used.1);
        run(&used.0, "UPDATE item SET price = price + 1").await;
        assert!(warnings(&mut used.1).is_empty());
    }
}

#[tokio::test]
async fn without_its_key_it_is_said_and_nothing_is_lost() {
    let stage = Stage::new(ITEMS).await;
    run(
        &stage.sql,
        "ALTER TABLE item DROP CONSTRAINT item_pkey; INSERT INTO item VALUES (1, 5, 'twin', 0)",
    )
    .await;
    assert_eq!(text(&stage.sql, STATE).await, "item changed {}");
    stage
        .expect(
            "UPDATE item SET price = 7 WHERE name = 'twin'",
            &["item 5/1"],
        )
        .await;
    let changes = stage
        .changes("UPDATE item SET price = 17 - price WHERE id = 1")
        .await;
    assert!(
        changes.contains(&"item 1/1".to_owned()) && changes.contains(&"item 5/1".to_owned()),
        "{changes:?}"
    );
}

#[tokio::test]
async fn disabled_and_dropped_triggers_are_seen_and_mended() {
    let stage = Stage::new(ITEMS).await;
    run(&stage.sql, "ALTER TABLE item DISABLE TRIGGER USER").await;
    assert_eq!(text(&stage.sql, STATE).await, "item disabled {}");
    let again = "SELECT pgcache.watch('item', tenant_column => 'tenant', entity_column => 'id')";
    stage.expect(again, &["item */*"]).await;
    assert_eq!(text(&stage.sql, STATE).await, "item enabled {}");
    let drop = text(
        &stage.sql,
        "SELECT format('DROP TRIGGER %I ON item', tgname) FROM pg_trigger WHERE tgname ~ 'update'",
    )
    .await;
    run(&stage.sql, &drop).await;
    assert_eq!(text(&stage.sql, STATE).await, "item missing {}");
    run(&stage.sql, again).await;
    stage
        .expect("UPDATE item SET price = 0 WHERE id = 1", &["item 1/1"])
        .await;
}

#[tokio::test]
async fn a_dropped_table_is_shown_until_the_next_watch() {
    let stage = Stage::new(ITEMS).await;
    run(&stage.sql, "DROP TABLE item; CREATE TABLE item (id int)").await;
    assert!(
        text(&stage.sql, "SELECT triggers FROM pgcache.watched_tables")
            .await
            .contains("table dropped")
    );
    stage.cache().capabilities().await.unwrap();
    stage.expect("INSERT INTO item VALUES (1)", &[]).await;
    run(&stage.sql, "SELECT pgcache.cascade('a', 'b')").await;
    run(&stage.sql, "SELECT pgcache.watch('item')").await;
    assert_eq!(text(&stage.sql, STATE).await, "item enabled {}");
    stage
        .expect("INSERT INTO item VALUES (1)", &["item */*"])
        .await;
}

/// A type whose conversion to text is a function of the user's.
const EVIL: &str = "
    CREATE TABLE caught (who name);
    CREATE TYPE evil AS (a int);
    CREATE FUNCTION evil_text(evil) RETURNS text LANGUAGE plpgsql IMMUTABLE SECURITY INVOKER AS
        $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'P0666', MESSAGE = 'ran as ' || current_user; END $$;
    CREATE FUNCTION evil_int(evil) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
        $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'P0666', MESSAGE = 'ran as ' || current_user; END $$;
    CREATE CAST (evil AS text) WITH FUNCTION evil_text(evil) AS IMPLICIT;
    CREATE CAST (evil AS int) WITH FUNCTION evil_int(evil) AS IMPLICIT;";

const ONE_AND_ALL: [&str; 5] = [
    "INSERT INTO item (k) VALUES (8)",
    "INSERT INTO item (k, e) SELECT 10 + k, e FROM item",
    "UPDATE item SET v = k WHERE k = 8",
    "UPDATE item SET v = 99",
    "DELETE FROM item WHERE k > 7",
];

#[tokio::test]
async fn code_of_a_type_does_not_run_with_the_rights_of_the_owner() {
    let stage = Stage::new(EVIL).await;
    run(
        &stage.sql,
        "CREATE TABLE item (k int PRIMARY KEY, e text, v int); INSERT INTO item VALUES (1, 'x');
                     SELECT pgcache.watch('item', entity_column => 'e', always => true)",
    )
    .await;
    run(
        &stage.sql,
        "ALTER TABLE item ALTER e TYPE evil USING ROW(1)::evil",
    )
    .await;
    // the trap works
    let error = stage
        .sql
        .batch_execute("SELECT e::text FROM item")
        .await
        .unwrap_err();
    assert_eq!(error.code().unwrap().code(), "P0666");
    for role in ["origin", "replica"] {
        let mut client = stage.with_messages().await;
        run(&client.0, &format!("SET session_replication_role = {role}")).await;
        for statement in ONE_AND_ALL {
            falls_back(&stage, &mut client, statement).await;
        }
    }
}

/// As entity and as key.
#[tokio::test]
async fn nor_that_of_a_type_that_got_the_name_of_a_domain() {
    for (column, key) in [("e", "k"), ("k", "k, e")] {
        let stage = Stage::new(EVIL).await;
        run(&stage.sql, &format!(
            "CREATE DOMAIN code AS int; CREATE TABLE item (k int, e code, v int, PRIMARY KEY ({key})); INSERT INTO item VALUES (1, 1);
             SELECT pgcache.watch('item', entity_column => '{column}', always => true)")).await;
        let mut used = stage.with_messages().await;
        assert_eq!(
            stage.changes_by(&used.0, "UPDATE item SET v = 1").await,
            ["item */1"]
        );
        run(&stage.sql, "ALTER TABLE item DROP CONSTRAINT item_pkey; ALTER TABLE item ALTER e DROP NOT NULL;
                         ALTER TABLE item ALTER e TYPE int; DROP DOMAIN code; ALTER TYPE evil RENAME TO code;
                         ALTER TABLE item ALTER e TYPE code USING ROW(1)::code").await;
        let mut fresh = stage.with_messages().await;
        for client in [&mut used, &mut fresh] {
            for role in ["origin", "replica"] {
                run(&client.0, &format!("SET session_replication_role = {role}")).await;
                for statement in ONE_AND_ALL {
                    if column == "k" && (role == "replica" || !statement.starts_with("UPDATE")) {
                        run(&client.0, statement).await; // the key plays no part
                    } else {
                        falls_back(&stage, client, statement).await;
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn a_type_whose_schema_was_renamed_fails_nobody() {
    let stage = Stage::new(
        "CREATE SCHEMA types; CREATE DOMAIN types.code AS int;
        CREATE TABLE item (k int PRIMARY KEY, e types.code, v int); INSERT INTO item VALUES (1, 1);
        SELECT pgcache.watch('item', entity_column => 'e'); ALTER SCHEMA types RENAME TO kinds",
    )
    .await;
    let mut client = stage.with_messages().await;
    for statement in ONE_AND_ALL {
        falls_back(&stage, &mut client, statement).await;
    }
    run(
        &stage.sql,
        "INSERT INTO item VALUES (3, 3); SELECT pgcache.watch('item', entity_column => 'e')",
    )
    .await;
    stage
        .expect("UPDATE item SET v = 5 WHERE k = 3", &["item */3"])
        .await;
}
