//! Partitioned tables and inheritance.

use crate::stage::{Stage, refusal, run, text};

const PARTITIONED: &str = "
    CREATE TABLE item (id int, t int, v int, PRIMARY KEY (id, t)) PARTITION BY LIST (t);
    CREATE TABLE item_1 PARTITION OF item FOR VALUES IN (1);
    CREATE TABLE item_2 (v int, extra int, t int NOT NULL, id int NOT NULL);
    ALTER TABLE item_2 DROP extra;
    ALTER TABLE item ATTACH PARTITION item_2 FOR VALUES IN (2);
    CREATE TABLE item_deep PARTITION OF item FOR VALUES IN (5, 6) PARTITION BY LIST (t);
    CREATE TABLE item_5 PARTITION OF item_deep FOR VALUES IN (5);
    CREATE TABLE item_6 PARTITION OF item_deep FOR VALUES IN (6);
    SELECT pgcache.watch('item', tenant_column => 't', entity_column => 'id')";

#[tokio::test]
async fn through_the_parent_and_directly() {
    let stage = Stage::new(PARTITIONED).await;
    for (statement, changes) in [
        (
            "INSERT INTO item VALUES (1, 1), (2, 2), (5, 5)",
            &["item 1/1", "item 2/2", "item 5/5"] as &[&str],
        ),
        ("INSERT INTO item_2 (id, t) VALUES (3, 2)", &["item 2/3"]),
        (
            "UPDATE item SET v = 1 WHERE id IN (1, 2)",
            &["item 1/1", "item 2/2"],
        ),
        ("UPDATE item_2 SET v = 2 WHERE id = 2", &["item 2/2"]),
        ("UPDATE item_5 SET v = 2", &["item 5/5"]),
        ("UPDATE item_deep SET v = 3", &["item 5/5"]),
        ("UPDATE item_deep SET v = 3", &[]),
        // to another partition
        (
            "UPDATE item SET t = 2 WHERE id = 1",
            &["item 1/1", "item 2/1"],
        ),
        ("UPDATE item_deep SET t = 6", &["item 5/5", "item 6/5"]),
        (
            "UPDATE item SET t = 3 - t / 6 * 2 WHERE id = 5",
            &["item 1/5", "item 6/5"],
        ),
        ("DELETE FROM item_2 WHERE id = 3", &["item 2/3"]),
        ("DELETE FROM item WHERE id < 3", &["item 2/1", "item 2/2"]),
        ("TRUNCATE item_1", &["item */*"]),
        ("TRUNCATE item", &["item */*"]),
    ] {
        stage.expect(statement, changes).await;
    }
}

#[tokio::test]
async fn a_row_that_the_other_partition_refuses_is_gone() {
    let stage = Stage::new(PARTITIONED).await;
    run(
        &stage.sql,
        "INSERT INTO item VALUES (1, 1), (2, 1);
         CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
         CREATE TRIGGER refuse BEFORE INSERT ON item_2 FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    .await;
    stage
        .expect("UPDATE item SET t = 2 WHERE id = 1", &["item 1/1"])
        .await;
    assert_eq!(text(&stage.sql, "SELECT count(*) FROM item").await, "1");
}

#[tokio::test]
async fn a_partition_that_comes_later_is_flagged_until_watch_is_called_again() {
    const UNWATCHED: &str = "SELECT unwatched::text || triggers FROM pgcache.watched_tables";
    let stage = Stage::new(PARTITIONED).await;
    assert_eq!(text(&stage.sql, UNWATCHED).await, "{}enabled");
    let cache = stage.cache();
    assert!(
        !cache
            .capabilities()
            .await
            .unwrap()
            .warnings
            .iter()
            .any(|w| w.contains("partitions"))
    );
    run(
        &stage.sql,
        "CREATE TABLE item_7 PARTITION OF item FOR VALUES IN (7)",
    )
    .await;
    assert_eq!(text(&stage.sql, UNWATCHED).await, "{item_7}enabled");
    let warnings = cache.capabilities().await.unwrap().warnings;
    assert!(
        warnings.iter().any(|w| w.contains("item_7")),
        "{warnings:?}"
    );
    // through the parent it is seen
    stage
        .expect("INSERT INTO item VALUES (1, 7)", &["item 7/1"])
        .await;
    stage.expect("UPDATE item_7 SET v = 8", &[]).await;
    run(
        &stage.sql,
        "SELECT pgcache.watch('item', tenant_column => 't', entity_column => 'id')",
    )
    .await;
    assert_eq!(text(&stage.sql, UNWATCHED).await, "{}enabled");
    stage.expect("UPDATE item_7 SET v = 9", &["item 7/1"]).await;
}

#[tokio::test]
async fn attached_and_detached() {
    let stage = Stage::new(PARTITIONED).await;
    run(&stage.sql, "ALTER TABLE item DETACH PARTITION item_2").await;
    // it goes on, until unwatch takes its triggers away too
    stage
        .expect("INSERT INTO item_2 (id, t) VALUES (1, 2)", &["item 2/1"])
        .await;
    stage
        .expect(
            "ALTER TABLE item ATTACH PARTITION item_2 FOR VALUES IN (2)",
            &[],
        )
        .await;
    stage.expect("UPDATE item SET v = 5", &["item 2/1"]).await;
    stage.expect("UPDATE item_2 SET v = 6", &["item 2/1"]).await;
    run(&stage.sql, "ALTER TABLE item DETACH PARTITION item_2").await;
    stage
        .expect("SELECT pgcache.unwatch('item')", &["item */*"])
        .await;
    stage.expect("UPDATE item_2 SET v = 7", &[]).await;
    assert_eq!(
        text(
            &stage.sql,
            "SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal AND tgname ~ 'pgcache'"
        )
        .await,
        "0"
    );
}

#[tokio::test]
async fn a_partition_watched_by_itself_too_invalidates_both() {
    let stage = Stage::new(PARTITIONED).await;
    run(
        &stage.sql,
        "SELECT pgcache.watch('item_1', 'own', entity_column => 'id')",
    )
    .await;
    stage
        .expect("INSERT INTO item_1 VALUES (1, 1)", &["item 1/1", "own */1"])
        .await;
    run(&stage.sql, "SELECT pgcache.unwatch('item_1')").await;
    stage
        .expect("INSERT INTO item_1 VALUES (2, 1)", &["item 1/2"])
        .await;
}

#[tokio::test]
async fn foreign_partitions_are_refused() {
    let stage = Stage::new("").await;
    if stage
        .sql
        .batch_execute("CREATE EXTENSION postgres_fdw")
        .await
        .is_err()
    {
        // not with every server; the kind of table does not need it
        run(&stage.sql, "CREATE FOREIGN DATA WRAPPER postgres_fdw").await;
    }
    run(
        &stage.sql,
        "CREATE SERVER elsewhere FOREIGN DATA WRAPPER postgres_fdw;
         CREATE TABLE item (id int, t int) PARTITION BY LIST (t);
         CREATE FOREIGN TABLE item_1 PARTITION OF item FOR VALUES IN (1) SERVER elsewhere;
         CREATE TABLE item_2 PARTITION OF item FOR VALUES IN (2);",
    )
    .await;
    let (message, hint) = refusal(&stage.sql, "SELECT pgcache.watch('item')").await;
    assert!(
        message.contains("has foreign tables among its partitions"),
        "{message}"
    );
    assert!(hint.contains("one by one"), "{hint}");
    let (message, hint) = refusal(&stage.sql, "SELECT pgcache.watch('item_1')").await;
    assert!(message.contains("is a foreign table"), "{message}");
    assert!(hint.contains("invalidate()"), "{hint}");
    run(&stage.sql, "SELECT pgcache.watch('item_2', 'item')").await;
    stage
        .expect("INSERT INTO item_2 VALUES (1, 2)", &["item */*"])
        .await;
}

#[tokio::test]
async fn inheritance() {
    let stage = Stage::new(
        "CREATE TABLE item (id int PRIMARY KEY, t int, v int);
         CREATE TABLE special (extra text) INHERITS (item);
         CREATE TABLE both_ways (more int) INHERITS (special);
         SELECT pgcache.watch('item', tenant_column => 't', entity_column => 'id')",
    )
    .await;
    for (statement, changes) in [
        (
            "INSERT INTO item VALUES (1, 1); INSERT INTO special VALUES (2, 2), (3, 2)",
            &["item 1/1", "item 2/2", "item 2/3"] as &[&str],
        ),
        ("INSERT INTO both_ways VALUES (4, 3)", &["item 3/4"]),
        (
            "UPDATE item SET v = 1",
            &["item 1/1", "item 2/2", "item 2/3", "item 3/4"],
        ),
        ("UPDATE item SET v = 1", &[]),
        ("UPDATE special SET extra = 'x' WHERE id = 3", &["item 2/3"]),
        ("UPDATE ONLY item SET v = 2", &["item 1/1"]),
        // the same key in two tables, swapped contents
        (
            "UPDATE special SET id = 1 WHERE id = 2",
            &["item 2/1", "item 2/2"],
        ),
        (
            "UPDATE item SET v = 3 - v WHERE id = 1",
            &["item 1/1", "item 2/1"],
        ),
        ("DELETE FROM item WHERE id > 2", &["item 2/3", "item 3/4"]),
        ("TRUNCATE special", &["item */*"]),
    ] {
        stage.expect(statement, changes).await;
    }
}
