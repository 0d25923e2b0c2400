//! Every kind of statement that changes rows.

use futures_util::SinkExt;
use std::pin::pin;

use bytes::Bytes;

use crate::stage::{ITEMS, Stage, run};

#[tokio::test]
async fn insert_update_delete() {
    let stage = Stage::new(ITEMS).await;
    for (statement, changes) in [
        ("INSERT INTO item VALUES (5, 1)", &["item 1/5"] as &[&str]),
        (
            "INSERT INTO item VALUES (6, 1), (7, NULL)",
            &["item */7", "item 1/6"],
        ),
        ("INSERT INTO item SELECT * FROM item WHERE false", &[]),
        ("UPDATE item SET price = 11 WHERE id = 1", &["item 1/1"]),
        ("UPDATE item SET price = 11 WHERE id = 1", &[]),
        ("UPDATE item SET price = price WHERE true", &[]),
        (
            "UPDATE item SET price = 1 WHERE id < 4",
            &["item 1/1", "item 1/2", "item 2/3"],
        ),
        (
            "UPDATE item SET price = 2 - id / 2 WHERE id < 3",
            &["item 1/1"],
        ), // of two rows one changes
        ("UPDATE item SET price = 0 WHERE false", &[]),
        (
            "UPDATE item SET tenant = 2 WHERE id = 1",
            &["item 1/1", "item 2/1"],
        ),
        (
            "UPDATE item SET tenant = NULL WHERE id = 1",
            &["item */1", "item 2/1"],
        ),
        (
            "UPDATE item SET id = 10 WHERE id = 1",
            &["item */1", "item */10"],
        ),
        (
            "UPDATE item SET tenant = 3 WHERE id IN (5, 6)",
            &["item 1/5", "item 1/6", "item 3/5", "item 3/6"],
        ),
        ("DELETE FROM item WHERE id = 2", &["item 1/2"]),
        (
            "DELETE FROM item WHERE id IN (5, 7)",
            &["item */7", "item 3/5"],
        ),
        ("DELETE FROM item WHERE false", &[]),
        ("TRUNCATE item", &["item */*"]),
    ] {
        stage.expect(statement, changes).await;
    }
}

#[tokio::test]
async fn swapped_values() {
    let stage = Stage::new(ITEMS).await;
    run(
        &stage.sql,
        "ALTER TABLE item DROP CONSTRAINT item_pkey, ADD PRIMARY KEY (id) DEFERRABLE",
    )
    .await;
    // keys, too
    stage
        .expect(
            "UPDATE item SET id = 3 - id WHERE id < 3",
            &["item 1/1", "item 1/2"],
        )
        .await;
    stage
        .expect(
            "UPDATE item SET id = 5 - id WHERE id IN (2, 3)",
            &["item 1/2", "item 1/3", "item 2/2", "item 2/3"],
        )
        .await;
    stage
        .expect(
            "UPDATE item SET id = 5 - id WHERE id IN (2, 3)",
            &["item 1/2", "item 1/3", "item 2/2", "item 2/3"],
        )
        .await;
    stage
        .expect(
            "UPDATE item SET name = CASE name WHEN 'a' THEN 'b' ELSE 'a' END WHERE id < 3",
            &["item 1/1", "item 1/2"],
        )
        .await;
    stage
        .expect(
            "UPDATE item SET tenant = CASE tenant WHEN 1 THEN 2 ELSE 1 END WHERE id IN (2, 3)",
            &["item 1/2", "item 1/3", "item 2/2", "item 2/3"],
        )
        .await;
}

#[tokio::test]
async fn only_some_columns_count_and_the_tenant_and_the_entity_always() {
    let stage = Stage::new(
        "CREATE TABLE item (id int PRIMARY KEY, tenant int, owner int, name text, \"select\" json, price int);
         INSERT INTO item VALUES (1, 1, 7, 'a', '{}', 10), (2, 1, 7, 'b', '{}', 20);
         SELECT pgcache.watch('item', tenant_column => 'tenant', entity_column => 'owner', columns => '{name,select}')",
    )
    .await;
    for (statement, changes) in [
        ("UPDATE item SET price = 1", &[] as &[&str]),
        ("UPDATE item SET price = 2 WHERE id = 1", &[]),
        ("UPDATE item SET name = 'x' WHERE id = 1", &["item 1/7"]),
        ("UPDATE item SET name = 'b', price = 3", &["item 1/7"]),
        (
            "UPDATE item SET \"select\" = '{ }' WHERE id = 1",
            &["item 1/7"],
        ),
        (
            "UPDATE item SET tenant = 2 WHERE id = 1",
            &["item 1/7", "item 2/7"],
        ),
        (
            "UPDATE item SET owner = 8 WHERE id = 1",
            &["item 2/7", "item 2/8"],
        ),
        (
            "UPDATE item SET owner = 9",
            &["item 1/7", "item 1/9", "item 2/8", "item 2/9"],
        ),
        ("UPDATE item SET id = 3 WHERE id = 1", &[]),
        ("DELETE FROM item WHERE id = 2", &["item 1/9"]),
    ] {
        stage.expect(statement, changes).await;
    }
}

#[tokio::test]
async fn without_a_tenant_or_an_entity() {
    let stage = Stage::new(ITEMS).await;
    let all: &[&str] = &["item */*"];
    for (watch, one, two) in [
        ("SELECT pgcache.watch('item')", all, all),
        (
            "SELECT pgcache.watch('item', tenant_column => 'tenant')",
            &["item 1/*"] as &[&str],
            &["item 1/*", "item 2/*"] as &[&str],
        ),
        (
            "SELECT pgcache.watch('item', entity_column => 'id')",
            &["item */1"],
            &["item */1", "item */3"],
        ),
    ] {
        run(&stage.sql, watch).await;
        stage
            .expect(
                "UPDATE item SET price = coalesce(price, 0) + 1 WHERE id = 1",
                one,
            )
            .await;
        stage
            .expect(
                "UPDATE item SET price = coalesce(price, 0) + 1 WHERE id IN (1, 3)",
                two,
            )
            .await;
        stage.expect("UPDATE item SET price = price", &[]).await;
        stage
            .expect("INSERT INTO item SELECT FROM item WHERE false", &[])
            .await;
        stage.expect("UPDATE item SET id = 9 WHERE id = 4; UPDATE item SET id = 4 WHERE id = 9; TRUNCATE item; \
                      INSERT INTO item VALUES (1, 1), (2, 1), (3, 2), (4, NULL)", all_of(watch)).await;
    }
}

fn all_of(watch: &str) -> &'static [&'static str] {
    match (watch.contains("tenant"), watch.contains("entity")) {
        (true, _) => &["item */*", "item 1/*", "item 2/*"],
        (_, true) => &[
            "item */*", "item */1", "item */2", "item */3", "item */4", "item */9",
        ],
        _ => &["item */*"],
    }
}

#[tokio::test]
async fn on_conflict_and_data_changing_with() {
    let stage = Stage::new(ITEMS).await;
    for (statement, changes) in [
        (
            "INSERT INTO item (id, tenant) VALUES (1, 2), (9, 1) ON CONFLICT (id) DO UPDATE SET tenant = EXCLUDED.tenant",
            &["item 1/1", "item 1/9", "item 2/1"] as &[&str],
        ),
        ("INSERT INTO item VALUES (1, 7) ON CONFLICT DO NOTHING", &[]),
        ("INSERT INTO item VALUES (1, 7) ON CONFLICT (id) DO UPDATE SET price = item.price", &[]),
        (
            "WITH gone AS (DELETE FROM item WHERE id = 2 RETURNING *), added AS (INSERT INTO item VALUES (8, 5)),
                  moved AS (UPDATE item SET price = 0 WHERE id = 3)
             SELECT FROM gone",
            &["item 1/2", "item 2/3", "item 5/8"],
        ),
    ] {
        stage.expect(statement, changes).await;
    }
}

#[tokio::test]
async fn merge() {
    let stage = Stage::new(ITEMS).await;
    if stage.major().await < 15 {
        return;
    }
    stage
        .expect(
            "MERGE INTO item USING (VALUES (1, 'a'), (2, 'z'), (3, 'x'), (20, 'n')) AS s (id, name) ON item.id = s.id
              WHEN MATCHED AND s.id = 3 THEN DELETE
              WHEN MATCHED THEN UPDATE SET name = s.name
              WHEN NOT MATCHED THEN INSERT VALUES (s.id, 6, s.name)",
            &["item 1/2", "item 2/3", "item 6/20"],
        )
        .await;
}

#[tokio::test]
async fn copy() {
    let stage = Stage::new(ITEMS).await;
    run(&stage.sql, "DELETE FROM pgcache.invalidation").await;
    let sink = stage.sql.copy_in("COPY item (id, tenant) FROM STDIN").await;
    let mut sink = pin!(sink.unwrap());
    sink.send(Bytes::from_static(b"30\t1\n31\t2\n"))
        .await
        .unwrap();
    sink.close().await.unwrap();
    assert_eq!(stage.log().await, ["item 1/30", "item 2/31"]);
}

#[tokio::test]
async fn foreign_keys() {
    let stage = Stage::new(
        "CREATE TABLE parent (id int PRIMARY KEY);
         CREATE TABLE cascading (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE);
         CREATE TABLE nulled (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE SET NULL ON UPDATE CASCADE);
         CREATE TABLE late (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED);
         INSERT INTO parent VALUES (1), (2);
         INSERT INTO cascading VALUES (10, 1), (11, 1), (12, 2);
         INSERT INTO nulled VALUES (20, 1);
         INSERT INTO late VALUES (30, 2);
         SELECT pgcache.watch('cascading', tenant_column => 'parent', entity_column => 'id'),
                pgcache.watch('nulled', tenant_column => 'parent', entity_column => 'id'),
                pgcache.watch('late', entity_column => 'id')",
    )
    .await;
    stage
        .expect(
            "UPDATE parent SET id = 5 WHERE id = 1",
            &[
                "cascading 1/10",
                "cascading 1/11",
                "cascading 5/10",
                "cascading 5/11",
                "nulled 1/20",
                "nulled 5/20",
            ],
        )
        .await;
    stage
        .expect(
            "DELETE FROM parent",
            &[
                "cascading 2/12",
                "cascading 5/10",
                "cascading 5/11",
                "late */30",
                "nulled */20",
                "nulled 5/20",
            ],
        )
        .await;
}

#[tokio::test]
async fn what_a_trigger_of_the_users_makes_of_the_rows_counts() {
    let stage = Stage::new(ITEMS).await;
    run(
        &stage.sql,
        "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF TG_OP = 'UPDATE' AND NEW.name = 'never' THEN RETURN NULL; END IF;
             IF NEW.name = 'same' THEN RETURN OLD; END IF;
             NEW.tenant := 9; RETURN NEW; END $$;
         CREATE TRIGGER meddle BEFORE INSERT OR UPDATE ON item FOR EACH ROW EXECUTE FUNCTION meddle()",
    )
    .await;
    stage
        .expect("INSERT INTO item VALUES (50, 1, 'n')", &["item 9/50"])
        .await;
    stage
        .expect(
            "UPDATE item SET price = 0 WHERE id = 1",
            &["item 1/1", "item 9/1"],
        )
        .await;
    stage
        .expect("UPDATE item SET name = 'never' WHERE id < 3", &[])
        .await;
    stage
        .expect("UPDATE item SET name = 'same' WHERE id < 3", &[])
        .await;
}
