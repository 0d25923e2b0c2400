//! Calling `watch` again, `unwatch`, and who waits for whom.

use crate::stage::{ITEMS, Stage, run, somebody_waits, text};

const AGAIN: &str =
    "SELECT pgcache.watch('item', tenant_column => 'tenant', entity_column => 'id')";

#[tokio::test]
async fn again_with_the_same_settings_it_locks_nothing_and_does_nothing() {
    let stage = Stage::new(ITEMS).await;
    let other = stage.database.connect().await;
    run(&other, "BEGIN; LOCK TABLE item IN ACCESS EXCLUSIVE MODE").await;
    run(&stage.sql, "SET lock_timeout = '100ms'").await;
    let acl = "SELECT xmin FROM pg_proc WHERE proname = 'watch_1'";
    let before = text(&stage.sql, acl).await;
    stage.expect(AGAIN, &[]).await;
    assert_eq!(text(&stage.sql, acl).await, before);
    let other_settings = stage
        .sql
        .batch_execute("SELECT pgcache.watch('item')")
        .await;
    assert_eq!(
        other_settings.unwrap_err().code().unwrap().code(),
        "55P03",
        "lock_timeout"
    );
    run(&other, "ROLLBACK").await;
    stage.expect(AGAIN, &[]).await;
}

#[tokio::test]
async fn other_settings_replace_the_old_ones_and_invalidate() {
    let stage = Stage::new(ITEMS).await;
    stage
        .expect(
            "SELECT pgcache.watch('item', 'ware', entity_column => 'id', columns => '{name}')",
            &["item */*", "ware */*"],
        )
        .await;
    stage
        .expect(
            "UPDATE item SET price = 0, name = CASE id WHEN 1 THEN 'x' ELSE name END",
            &["ware */1"],
        )
        .await;
    stage.expect(AGAIN, &["item */*", "ware */*"]).await;
    stage
        .expect("UPDATE item SET price = 1 WHERE id = 1", &["item 1/1"])
        .await;
    assert_eq!(
        text(&stage.sql, "SELECT count(*) FROM pgcache.watched_tables").await,
        "1"
    );
}

#[tokio::test]
async fn unwatch_ends_it_and_invalidates_once_more() {
    let stage = Stage::new(ITEMS).await;
    stage
        .expect("SELECT pgcache.unwatch('item')", &["item */*"])
        .await;
    stage.expect("DELETE FROM item", &[]).await;
    for left in [
        "pgcache.watched_tables",
        "pg_proc WHERE proname = 'watch_1'",
        "pg_trigger WHERE tgname ~ 'pgcache'",
    ] {
        assert_eq!(
            text(&stage.sql, &format!("SELECT count(*) FROM {left}")).await,
            "0",
            "{left}"
        );
    }
    run(&stage.sql, AGAIN).await;
    stage
        .expect("INSERT INTO item VALUES (1, 1)", &["item 1/1"])
        .await;
}

#[tokio::test]
async fn a_writer_that_began_before_is_waited_for() {
    for again in [false, true] {
        let stage = Stage::new("CREATE TABLE item (id int PRIMARY KEY, tenant int)").await;
        if again {
            run(&stage.sql, "SELECT pgcache.watch('item', 'old')").await;
        }
        let writer = stage.database.connect().await;
        run(&writer, "BEGIN; INSERT INTO item VALUES (1, 1)").await;
        let watcher = stage.database.connect().await;
        let (mut watched, ()) = (Box::pin(watcher.batch_execute(AGAIN)), ());
        tokio::select! {
            done = &mut watched => panic!("did not wait: {done:?}"),
            () = somebody_waits(&stage.sql, "item") => {}
        }
        // taken now, a snapshot sees neither of the two
        let snapshot = text(&stage.sql, "SELECT pg_current_snapshot()").await;
        run(&writer, "COMMIT").await;
        watched.await.unwrap();
        let unseen = format!(
            "SELECT count(*) FROM pgcache.invalidation WHERE name = 'item' AND NOT pg_visible_in_snapshot(xid, '{snapshot}')"
        );
        assert_eq!(text(&stage.sql, &unseen).await, "1");
    }
}

#[tokio::test]
async fn two_schemas_watch_one_table() {
    let stage = Stage::new(ITEMS).await;
    let long = "a_schema_whose_name_is_as_long_as_postgres_allows_it_to_be_____";
    for last in ["a", "b"] {
        let cache = crate::stage::builder(&stage.database)
            .schema(format!("{}{last}", &long[..62]))
            .build()
            .unwrap();
        cache.watch("item").await.unwrap();
    }
    run(
        &stage.sql,
        "DELETE FROM pgcache.invalidation; INSERT INTO item VALUES (9, 1)",
    )
    .await;
    assert_eq!(stage.log().await, ["item 1/9"]);
    for last in ["a", "b"] {
        let rows = format!(
            "SELECT count(*) FROM \"{}{last}\".invalidation i JOIN pg_class c ON c.relname = 'item' AND i.xid::text = \
                            (SELECT xmin::text FROM item WHERE id = 9)",
            &long[..62]
        );
        assert_eq!(text(&stage.sql, &rows).await, "1", "{last}");
    }
}
