//! What is stored stays within its bounds, over all partitions together, and what goes is what is of least use.

use test_support::{copies_of_an_entry, until};
use tokio_postgres::Client;

use crate::{HOUR, Instance, MINUTE, entries, entries_by_partition, number};

const MOST: i64 = 4 << 20;
const SIZES: [usize; 5] = [50, 1_900, 2_100, 9_000, 20_000];

async fn bytes(sql: &Client) -> i64 {
    let weights = "SELECT coalesce(sum(pgcache.weight(head, body, path, meta, scopes, variants)), 0)::bigint FROM pgcache.entry";
    number(sql, weights).await
}

async fn size_on_disk(sql: &Client) -> i64 {
    let query = "SELECT sum(pg_total_relation_size(inhrelid))::bigint FROM pg_inherits
                  WHERE inhparent = 'pgcache.entry'::regclass";
    number(sql, query).await
}

#[tokio::test]
async fn entries_stay_within_their_bound_in_all_partitions_alike() {
    const BOUND: i64 = 400;
    let database = test_support::database().await;
    let sql = database.connect().await;
    let instance = Instance::new(&database, |b| b.partitions(4).max_entries(BOUND as u64)).await;
    for round in 0..6 {
        instance.get_all(0..20, 10).await; // these are in use
        instance
            .get_all(round * 200 + 20..round * 200 + 220, 10)
            .await;
        let stored = entries(&sql).await;
        assert!(stored <= BOUND * 105 / 100, "{stored} entries, at {round}");
        let cleaned = instance.cache.cleanup().await.unwrap();
        let left = entries(&sql).await;
        assert_eq!(left, stored - cleaned.evicted as i64);
        assert!(
            left <= BOUND && (round < 2 || left >= BOUND * 95 / 100),
            "{left} are left"
        );
    }
    assert!(instance.cache.stats().evicted > 50);
    let shares = entries_by_partition(&sql).await;
    let even = BOUND / 4;
    assert!(
        shares.iter().all(|n| (even / 2..even * 3 / 2).contains(n)),
        "{shares:?}"
    );
    assert_eq!(instance.get_all(0..20, 10).await, 20, "what is used stays");
}

/// A writer that stores many times as much as there may be, while the janitor works in the background.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_stays_within_the_bound_of_bytes_and_twice_of_it_on_the_disk() {
    let database = test_support::database().await;
    let sql = database.connect().await;
    let configured = |b: tower_pgcache::PgCacheBuilder<_>| {
        b.partitions(4)
            .max_bytes(MOST as u64)
            .cleanup_interval(HOUR)
    };
    let instance = Instance::new(&database, configured).await;
    let average = SIZES.iter().sum::<usize>() / SIZES.len();
    let wanted = 10 * MOST as u64 / average as u64;
    let (mut id, mut rounds) = (0, 0);
    while instance.cache.stats().stored < wanted {
        for _ in 0..32 {
            instance.get(id, SIZES[id as usize % SIZES.len()]).await;
            id += 1;
        }
        instance.cache.settled().await;
        let (stored, size) = (bytes(&sql).await, size_on_disk(&sql).await);
        assert!(stored <= MOST * 105 / 100, "{stored} bytes, at {rounds}");
        assert!(size <= 2 * MOST, "{size} bytes on the disk, at {rounds}");
        rounds += 1;
    }
    let stats = instance.cache.stats();
    assert!(stats.dropped < stats.stored / 10, "{stats:?}");
    let left = bytes(&sql).await;
    assert!(left > MOST / 2, "{left}");
    instance.cache.cleanup().await.unwrap();
    assert!(bytes(&sql).await <= MOST);
    let known = number(&sql, "SELECT bytes FROM pgcache.room").await;
    assert_eq!(known, bytes(&sql).await, "what the janitor has counted");
    let shown = number(&sql, "SELECT entry_bytes FROM pgcache.stats").await;
    assert_eq!(shown, size_on_disk(&sql).await);
}

/// The rows that go stay on the disk for as long as somebody may see them.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_snapshot_costs_hits_and_no_more_room() {
    let database = test_support::database().await;
    let (sql, holder) = (database.connect().await, database.connect().await);
    let configured = |b: tower_pgcache::PgCacheBuilder<_>| {
        b.partitions(4)
            .max_bytes(MOST as u64)
            .cleanup_interval(HOUR)
    };
    let instance = Instance::new(&database, configured).await;
    instance.get_all(0..10, 1_000).await;
    holder
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pgcache.entry")
        .await
        .unwrap();
    let mut id = 10;
    while instance.cache.stats().dropped < 500 {
        for _ in 0..32 {
            instance.get(id, SIZES[id as usize % SIZES.len()]).await;
            id += 1;
        }
        instance.cache.settled().await;
        let size = size_on_disk(&sql).await;
        assert!(size <= 2 * MOST, "{size} bytes on the disk, after {id}");
    }
    holder.batch_execute("COMMIT").await.unwrap();
    let stored = instance.cache.stats().stored;
    let goes_on = async || {
        instance.cache.cleanup().await.unwrap();
        let first = id + 1_000 * instance.cache.stats().misses;
        instance.get_all(first..first + 100, 1_000).await;
        instance.cache.stats().stored >= stored + 500
    };
    until(MINUTE, "stores again", goes_on).await;
    assert!(size_on_disk(&sql).await <= 2 * MOST);
}

/// So many entries more, of half a page each: in 300 pages of each partition.
async fn copy(sql: &Client, count: u32) {
    copies_of_an_entry(sql, count, "'path', '/' || n").await;
}

/// In several steps; and to the end of the largest partition, where the others are small.
#[tokio::test]
async fn the_janitor_walks_through_all_partitions() {
    let database = test_support::database().await;
    let sql = database.connect().await;
    let instance = Instance::split(&database).await;
    instance.get_all(0..1, 1_500).await;
    copy(&sql, 4_800).await;
    sql.batch_execute("UPDATE pgcache.entry SET keep_until = now() WHERE get_byte(key, 9) % 2 = 0")
        .await
        .unwrap();
    let expired = "SELECT count(*) FROM pgcache.entry WHERE keep_until <= now()";
    let wanted = number(&sql, expired).await;
    assert!(wanted > 2_000);
    let cleaned = instance.cache.cleanup().await.unwrap();
    assert_eq!(cleaned.entries as i64, wanted);
    assert_eq!(number(&sql, expired).await, 0);
    assert_eq!(
        number(&sql, "SELECT entries FROM pgcache.room").await,
        entries(&sql).await
    );

    sql.batch_execute("DELETE FROM pgcache.entry WHERE tableoid <> 'pgcache.entry_2'::regclass")
        .await
        .unwrap();
    sql.batch_execute("VACUUM pgcache.entry").await.unwrap();
    sql.batch_execute("UPDATE pgcache.entry SET keep_until = now()")
        .await
        .unwrap();
    let left = entries(&sql).await as u64;
    assert!(left > 500);
    // in SQL too
    sql.batch_execute("CALL pgcache.cleanup()").await.unwrap();
    assert_eq!(entries(&sql).await, 0);
}

/// How often each was vacuumed.
async fn vacuums(sql: &Client) -> Vec<i64> {
    let query = "SELECT pg_stat_get_vacuum_count(inhrelid) FROM pg_inherits
                  WHERE inhparent = 'pgcache.entry'::regclass";
    let rows = sql.query(query, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn every_partition_is_vacuumed() {
    let database = test_support::database().await;
    let sql = database.connect().await;
    let instance = Instance::split(&database).await;
    instance.get_all(0..1, 1_500).await;
    copy(&sql, 8_000).await;
    sql.batch_execute("UPDATE pgcache.entry SET keep_until = now()")
        .await
        .unwrap();
    let full = size_on_disk(&sql).await;
    assert_eq!(vacuums(&sql).await, [0; 4]);
    instance.cache.cleanup().await.unwrap();
    until(MINUTE, "VACUUM of every partition", || async {
        vacuums(&sql).await.iter().all(|count| *count > 0)
    })
    .await;
    instance.get_all(0..1, 1_500).await;
    copy(&sql, 8_000).await;
    let again = size_on_disk(&sql).await;
    assert!(
        again < full * 11 / 10,
        "the room was not used again: {full}, {again}"
    );
}
