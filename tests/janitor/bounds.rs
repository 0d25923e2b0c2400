//! How much there may be.

use test_support::copies_of_an_entry;

use crate::{Instance, bytes, entries, is_stored, number};

#[tokio::test]
async fn entries_stay_within_their_bound() {
    const MOST: i64 = 200;
    let database = test_support::database().await;
    let sql = database.connect().await;
    let instance = Instance::new(&database, |b| b.max_entries(MOST as u64)).await;
    for round in 0..6 {
        instance.get_all(round * 100..round * 100 + 100, 10).await;
        let stored = entries(&sql).await;
        assert!(stored <= MOST * 105 / 100, "{stored} entries, at {round}");
        let cleaned = instance.cache.cleanup().await.unwrap();
        let left = entries(&sql).await;
        assert_eq!(left, stored - cleaned.evicted as i64);
        assert_eq!(cleaned.entries, 0);
        assert!(left <= MOST);
        assert!(round < 1 || left >= MOST * 95 / 100, "only {left} are left");
    }
    assert!(instance.cache.stats().evicted > 20);
}

#[tokio::test]
async fn bytes_stay_within_their_bound() {
    const MOST: i64 = 4 << 20;
    let database = test_support::database().await;
    let sql = database.connect().await;
    let instance = Instance::new(&database, |b| b.max_bytes(MOST as u64)).await;
    let mut id = 0;
    for round in 0..15 {
        for n in 0..100 {
            let size = [100, 1_500, 2_500, 9_000, 30_000][n % 5];
            instance.get(id, size).await;
            id += 1;
        }
        instance.cache.settled().await;
        let stored = bytes(&sql).await;
        assert!(stored <= MOST * 105 / 100, "{stored} bytes, at {round}");
        instance.cache.cleanup().await.unwrap();
        let left = bytes(&sql).await;
        assert!(left <= MOST, "{left}");
        assert!(round < 5 || left >= MOST * 95 / 100, "only {left} are left");
    }
    let known = number(&sql, "SELECT bytes FROM pgcache.room").await;
    assert_eq!(known, bytes(&sql).await, "what the janitor has counted");
}

#[tokio::test]
async fn what_is_replaced_does_not_count_twice() {
    let database = test_support::database().await;
    let sql = database.connect().await;
    let instance = Instance::new(&database, |b| b.max_entries(100)).await;
    for _ in 0..10 {
        instance.get_all(0..50, 10).await;
        instance.cache.invalidate([crate::ITEM]).await.unwrap();
    }
    assert_eq!(entries(&sql).await, 50);
    let cleaned = instance.cache.cleanup().await.unwrap();
    assert_eq!(cleaned.evicted, 0);
    assert_eq!(number(&sql, "SELECT entries FROM pgcache.room").await, 50);
}

#[tokio::test]
async fn an_answer_of_more_than_a_tenth_of_the_bound_is_not_stored() {
    let database = test_support::database().await;
    let sql = database.connect().await;
    let instance = Instance::new(&database, |b| b.max_bytes(1 << 20)).await;
    instance.get(1, 120_000).await;
    instance.get(2, 90_000).await;
    instance.cache.settled().await;
    assert!(!is_stored(&sql, 1).await);
    assert!(is_stored(&sql, 2).await);
    assert_eq!(instance.cache.stats().dropped, 1);
}

#[tokio::test]
async fn two_janitors_at_once_share_the_work() {
    const MANY: u32 = 5_000;
    let database = test_support::database().await;
    let sql = database.connect().await;
    let one = Instance::new(&database, |b| b.max_entries(1_000)).await;
    let other = Instance::new(&database, |b| b.max_entries(1_000)).await;
    one.get_all(0..1, 1000).await;
    let half_of_them_gone =
        "'path', '/' || n, 'keep_until', CASE WHEN n % 2 = 0 THEN now() ELSE e.keep_until END";
    copies_of_an_entry(&sql, MANY, half_of_them_gone).await;
    let (one, other) = tokio::join!(one.cache.cleanup(), other.cache.cleanup());
    let (one, other) = (one.unwrap(), other.unwrap());
    assert_eq!(one.entries + other.entries, u64::from(MANY) / 2);
    let left = entries(&sql).await;
    assert!((950..=1_000).contains(&left), "{left} are left");
    assert_eq!(
        (one.evicted + other.evicted) as i64 + left,
        i64::from(MANY) / 2 + 1
    );
}
