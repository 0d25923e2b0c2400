//! `max_entities`, and numbers beyond what is read one by one.

use crate::stage::{Stage, run};

#[tokio::test]
async fn as_many_as_max_entities_are_named_and_not_one_more() {
    let stage = Stage::new(
        "CREATE TABLE item (id int PRIMARY KEY, t int, e int, v int);
         SELECT pgcache.watch('item', tenant_column => 't', entity_column => 'e', max_entities => 3)",
    )
    .await;
    for (statement, changes) in [
        (
            "INSERT INTO item SELECT i, 1, i FROM generate_series(1, 3) i",
            &["item 1/1", "item 1/2", "item 1/3"] as &[&str],
        ),
        (
            "INSERT INTO item SELECT i, 1, i FROM generate_series(4, 7) i",
            &["item 1/*"],
        ),
        // many rows of few entities
        (
            "INSERT INTO item SELECT i, 1, i % 3 FROM generate_series(8, 99) i",
            &["item 1/0", "item 1/1", "item 1/2"],
        ),
        ("UPDATE item SET v = 1 WHERE id < 5", &["item 1/*"]),
        (
            "UPDATE item SET v = id % 2 WHERE id < 5",
            &["item 1/2", "item 1/4"],
        ),
        (
            "UPDATE item SET t = id % 3 WHERE id < 5",
            &["item 0/*", "item 1/*", "item 2/*"],
        ),
        (
            "DELETE FROM item WHERE id > 7",
            &["item 1/0", "item 1/1", "item 1/2"],
        ),
        // too many tenants
        (
            "INSERT INTO item SELECT 100 + i, i, 1 FROM generate_series(1, 4) i",
            &["item */*"],
        ),
        (
            "INSERT INTO item SELECT 200 + i, nullif(i, 1), 1 FROM generate_series(1, 4) i",
            &["item */*"],
        ),
        ("TRUNCATE item", &["item */*"]),
    ] {
        stage.expect(statement, changes).await;
    }
}

/// With the entity as primary key, and not; with cascades, and not.
#[tokio::test]
async fn more_entities_than_are_read_one_by_one_concern_their_tenants() {
    for (key, cascade) in [("id", false), ("k", false), ("id", true), ("k", true)] {
        let stage = Stage::new(&format!(
            "CREATE TABLE item (k int GENERATED ALWAYS AS IDENTITY, id int, t int, v int, PRIMARY KEY ({key}));
             SELECT pgcache.watch('item', tenant_column => 't', entity_column => 'id')"
        ))
        .await;
        let mut expected = vec!["item 1/*", "item 2/*"];
        if cascade {
            run(
                &stage.sql,
                "SELECT pgcache.cascade('item', 'all'), pgcache.cascade('item', 'via', 'v')",
            )
            .await;
            expected = vec![
                "all 1/*", "all 2/*", "item 1/*", "item 2/*", "via 1/*", "via 2/*",
            ];
        }
        for statement in [
            "INSERT INTO item (id, t, v) SELECT i, 1 + i % 2, 0 FROM generate_series(1, 20002) i",
            "UPDATE item SET v = 1",
            "UPDATE item SET t = 3 - t",
            "DELETE FROM item",
        ] {
            stage.expect(statement, &expected).await;
        }
        let every: &[&str] = if cascade {
            &["all */*", "item */*", "via */*"]
        } else {
            &["item */*"]
        };
        stage
            .expect(
                "INSERT INTO item (id, t) SELECT i, i FROM generate_series(1, 20002) i",
                every,
            )
            .await;
        stage
            .expect("UPDATE item SET v = 1 WHERE id < 20000", every)
            .await;
    }
}

#[tokio::test]
async fn max_entities_beyond_what_is_usual() {
    let stage = Stage::new(
        "CREATE TABLE item (id int PRIMARY KEY); SELECT pgcache.watch('item', entity_column => 'id', max_entities => 30000)",
    )
    .await;
    assert_eq!(
        stage
            .changes("INSERT INTO item SELECT generate_series(1, 30000)")
            .await
            .len(),
        30000
    );
    stage
        .expect(
            "INSERT INTO item SELECT generate_series(30001, 60001)",
            &["item */*"],
        )
        .await;
    run(
        &stage.sql,
        "SELECT pgcache.watch('item', entity_column => 'id', max_entities => 2147483647)",
    )
    .await;
    stage
        .expect("DELETE FROM item WHERE id = 1", &["item */1"])
        .await;
    stage.expect("TRUNCATE item", &["item */*"]).await;
}
