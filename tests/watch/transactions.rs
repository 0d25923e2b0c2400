//! What commits counts, what does not does not; where the counters of others lose changes.

use crate::stage::{ITEMS, Stage, run, text, texts};

#[tokio::test]
async fn rolled_back() {
    let stage = Stage::new(ITEMS).await;
    for (statements, changes) in [
        ("BEGIN; DELETE FROM item; ROLLBACK", &[] as &[&str]),
        ("BEGIN; UPDATE item SET price = 0 WHERE id = 1; SAVEPOINT s; UPDATE item SET price = 0 WHERE id = 2; ROLLBACK TO s; COMMIT", &["item 1/1"]),
        // what was rolled back with its savepoint is written again
        ("BEGIN; SAVEPOINT s; UPDATE item SET price = 1 WHERE id = 1; ROLLBACK TO s; UPDATE item SET price = 2 WHERE id = 1; COMMIT", &["item 1/1"]),
        ("BEGIN; SAVEPOINT s; UPDATE item SET price = 3 WHERE id = 1; RELEASE s; UPDATE item SET price = 4 WHERE id = 1; COMMIT", &["item 1/1"]),
        ("DO $$ BEGIN UPDATE item SET price = 5 WHERE id = 2; BEGIN UPDATE item SET price = 5 WHERE id = 1; PERFORM 1 / 0;
          EXCEPTION WHEN division_by_zero THEN NULL; END; END $$", &["item 1/2"]),
    ] {
        stage.expect(statements, changes).await;
    }
}

#[tokio::test]
async fn prepared() {
    let stage = Stage::new(ITEMS).await;
    let name = stage.database.name();
    let prepare =
        format!("BEGIN; UPDATE item SET price = 0 WHERE id = 1; PREPARE TRANSACTION '{name}'");
    stage.expect(&prepare, &[]).await;
    stage
        .expect(&format!("ROLLBACK PREPARED '{name}'"), &[])
        .await;
    stage.expect(&prepare, &[]).await;
    stage
        .expect(&format!("COMMIT PREPARED '{name}'"), &["item 1/1"])
        .await;
}

#[tokio::test]
async fn several_transactions_in_one_message_and_in_one_procedure_are_several() {
    let stage = Stage::new(ITEMS).await;
    run(&stage.sql, "CREATE PROCEDURE twice() LANGUAGE plpgsql AS $$ BEGIN
            FOR i IN 1..3 LOOP UPDATE item SET price = price + 1 WHERE id = 1; COMMIT; END LOOP; END $$").await;
    for statements in [
        "BEGIN; UPDATE item SET price = 1 WHERE id = 1; COMMIT; BEGIN; UPDATE item SET price = 2 WHERE id = 1; COMMIT;
         UPDATE item SET price = 3 WHERE id = 1",
        "CALL twice()",
    ] {
        stage.expect(statements, &["item 1/1"]).await;
        assert_eq!(text(&stage.sql, "SELECT count(DISTINCT xid) FROM pgcache.invalidation").await, "3", "{statements}");
    }
    stage
        .expect(
            "UPDATE item SET price = 11 WHERE id = 1; UPDATE item SET price = 12 WHERE id = 1",
            &["item 1/1"],
        )
        .await;
    assert_eq!(
        text(&stage.sql, "SELECT count(*) FROM pgcache.invalidation").await,
        "1",
        "one row per scope and transaction"
    );
}

#[tokio::test]
async fn replicated_changes_count_only_with_always() {
    let stage = Stage::new(ITEMS).await;
    let replicated = |statement: &str| {
        format!("BEGIN; SET LOCAL session_replication_role = replica; {statement}; COMMIT")
    };
    stage.expect(&replicated("UPDATE item SET price = 0; TRUNCATE item; INSERT INTO item VALUES (1, 1), (2, 1), (3, 2), (4, NULL)"), &[]).await;
    run(&stage.sql, "SELECT pgcache.watch('item', tenant_column => 'tenant', entity_column => 'id', columns => '{price}', always => true)").await;
    for (statement, changes) in [
        (
            "UPDATE item SET price = 1",
            &["item */4", "item 1/1", "item 1/2", "item 2/3"] as &[&str],
        ),
        ("UPDATE item SET price = 1", &[]),
        ("UPDATE item SET name = 'x'", &[]),
        (
            "UPDATE item SET tenant = 3 WHERE id = 1",
            &["item 1/1", "item 3/1"],
        ),
        ("INSERT INTO item VALUES (5, 1)", &["item 1/5"]),
        ("DELETE FROM item WHERE id < 3", &["item 1/2", "item 3/1"]),
        ("TRUNCATE item", &["item */*"]),
    ] {
        stage.expect(&replicated(statement), changes).await;
    }
    // and the others as before, once
    run(&stage.sql, "INSERT INTO item VALUES (1, 1)").await;
    stage
        .expect("UPDATE item SET price = 5", &["item 1/1"])
        .await;
    assert_eq!(
        texts(
            &stage.sql,
            "SELECT tgname FROM pg_trigger WHERE tgenabled = 'R'"
        )
        .await
        .len(),
        1
    );
    run(
        &stage.sql,
        "SELECT pgcache.watch('item', tenant_column => 'tenant', entity_column => 'id')",
    )
    .await;
    stage
        .expect(&replicated("UPDATE item SET price = 6; TRUNCATE item"), &[])
        .await;
}
