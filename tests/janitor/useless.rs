//! What goes because nobody can use it.

use tokio::time::timeout;

use crate::{ITEM, Instance, MINUTE, entries, is_stored, number};

#[tokio::test]
async fn what_has_been_invalid_for_a_while_goes() {
    let database = test_support::database().await;
    let sql = database.connect().await;
    let instance = Instance::new(&database, |b| b).await;
    instance.get_all(0..10, 10).await;
    sql.batch_execute("UPDATE pgcache.entry SET revalidatable = true WHERE path LIKE '/9/%'")
        .await
        .unwrap();
    let changed = [ITEM.entity(3), ITEM.entity(4), ITEM.entity(9)];
    instance.cache.invalidate(changed).await.unwrap();
    // who arrived before may wait for it
    let cleaned = instance.cache.cleanup().await.unwrap();
    assert_eq!(cleaned.entries, 0);
    let mut removed = 0;
    for _ in 0..3 {
        removed += instance.cache.cleanup().await.unwrap().entries;
    }
    assert_eq!(removed, 2);
    assert!(!is_stored(&sql, 3).await && !is_stored(&sql, 4).await);
    assert!(is_stored(&sql, 9).await, "its handler may confirm it");
    assert!(instance.get(5, 10).await.is_hit());
}

#[tokio::test]
async fn a_locked_entry_is_left_for_the_next_time() {
    let database = test_support::database().await;
    let (sql, holder) = (database.connect().await, database.connect().await);
    let instance = Instance::new(&database, |b| b).await;
    instance.get_all(0..10, 10).await;
    sql.batch_execute("UPDATE pgcache.entry SET keep_until = now()")
        .await
        .unwrap();
    holder
        .batch_execute("BEGIN; SELECT FROM pgcache.entry WHERE path LIKE '/7/%' FOR UPDATE")
        .await
        .unwrap();
    let cleaned = timeout(MINUTE, instance.cache.cleanup()).await.unwrap();
    assert_eq!(cleaned.unwrap().entries, 9);
    assert!(is_stored(&sql, 7).await);
    holder.batch_execute("COMMIT").await.unwrap();
    assert_eq!(instance.cache.cleanup().await.unwrap().entries, 1);
}

#[tokio::test]
async fn the_janitor_makes_nobody_wait_who_reads_or_stores() {
    let database = test_support::database().await;
    let holder = database.connect().await;
    let instance = Instance::new(&database, |b| b).await;
    instance.get_all(0..10, 10).await;
    // in the middle of a step
    holder
        .batch_execute("BEGIN; SELECT * FROM pgcache.clean_step(1, 1)")
        .await
        .unwrap();
    assert!(instance.get(1, 10).await.is_hit());
    timeout(MINUTE, instance.get_all(20..30, 10)).await.unwrap();
    holder.batch_execute("ROLLBACK").await.unwrap();
    assert!(instance.get(25, 10).await.is_hit());
}

#[tokio::test]
async fn a_new_epoch_begins_with_nothing() {
    let database = test_support::database().await;
    let sql = database.connect().await;
    let instance = Instance::new(&database, |b| b.max_entries(20)).await;
    instance.get_all(0..10, 10).await;
    instance.cache.cleanup().await.unwrap();
    let foreign = "UPDATE pgcache.epoch SET system_identifier = 1;
                   INSERT INTO pgcache.lease VALUES ('the key', 1, 'infinity')";
    sql.batch_execute(foreign).await.unwrap();
    instance.cache.ready().await.unwrap();
    assert_eq!(entries(&sql).await, 0);
    for table in ["lease", "room", "walk"] {
        let query = format!("SELECT count(*) FROM pgcache.{table}");
        assert_eq!(number(&sql, &query).await, 0, "{table}");
    }
    instance.get_all(0..20, 10).await;
    instance.cache.cleanup().await.unwrap();
    assert_eq!(number(&sql, "SELECT entries FROM pgcache.room").await, 20);
}
