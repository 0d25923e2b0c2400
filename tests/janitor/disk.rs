//! What the tables take on the disk.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use test_support::{Database, Options, Server};
use tokio_postgres::Client;

use crate::{HOUR, Instance, bytes, number};

const MOST: i64 = 2 << 20;
const SIZES: [usize; 5] = [50, 1_900, 2_100, 9_000, 20_000];

async fn size(sql: &Client) -> i64 {
    number(sql, "SELECT pg_total_relation_size('pgcache.entry')").await
}

/// With the janitor in the background.
async fn instance(database: &Database) -> Instance {
    Instance::new(database, |b| {
        b.max_bytes(MOST as u64).cleanup_interval(HOUR)
    })
    .await
}

/// Fetches what was not there before, until `enough` says so.
async fn flood(instance: &Instance, sql: &Client, first: u64, enough: impl Fn(i64, u64) -> bool) {
    flood_within(2 * MOST, instance, sql, first, enough).await;
    assert!(bytes(sql).await <= MOST * 105 / 100);
}

async fn flood_within(
    most: i64,
    instance: &Instance,
    sql: &Client,
    first: u64,
    enough: impl Fn(i64, u64) -> bool,
) {
    let mut offered = 0;
    let mut id = first;
    let mut largest = 0;
    while !enough(offered, instance.cache.stats().stored) {
        let some = (id..id + 32).map(|id| (id, SIZES[id as usize % SIZES.len()]));
        offered += some.clone().map(|(_, size)| size as i64).sum::<i64>();
        instance.get_each(some).await;
        id += 32;
        largest = largest.max(size(sql).await);
        assert!(largest <= most, "{largest} bytes on the disk");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_times_as_much_leaves_twice_the_bound_at_most() {
    let database = test_support::database().await;
    let sql = database.connect().await;
    let instance = instance(&database).await;
    let average = SIZES.iter().sum::<usize>() / SIZES.len();
    let wanted = 100 * MOST as u64 / average as u64;
    flood(&instance, &sql, 0, |_, stored| stored >= wanted).await;
    let stats = instance.cache.stats();
    assert!(stats.dropped < stats.stored / 10, "{stats:?}");
    assert!(bytes(&sql).await > MOST / 2);
}

/// Each knows what there is, and not what the others are about to store.
#[tokio::test(flavor = "multi_thread")]
async fn several_instances_leave_twice_the_bound_and_what_is_under_way() {
    let under_way = 3 * 32 * SIZES.iter().sum::<usize>() / SIZES.len();
    let most = 2 * MOST + under_way as i64;
    let database = test_support::database().await;
    let sql = database.connect().await;
    let instances = join_all((0..4).map(|_| instance(&database))).await;
    let floods = instances.iter().zip(0..).map(|(instance, n)| {
        flood_within(most, instance, &sql, n * 1_000_000, |offered, _| {
            offered > 10 * MOST
        })
    });
    join_all(floods).await;
    instances[0].cache.cleanup().await.unwrap();
    let kept = bytes(&sql).await;
    assert!((MOST / 2..=MOST * 105 / 100).contains(&kept), "{kept}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_snapshot_costs_hits_and_no_more_room() {
    let database = test_support::database().await;
    let (sql, holder) = (database.connect().await, database.connect().await);
    let instance = instance(&database).await;
    instance.get_all(0..10, 1_000).await;
    holder
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pgcache.entry")
        .await
        .unwrap();
    flood(&instance, &sql, 1_000, |offered, _| offered > 100 * MOST).await;
    assert!(instance.cache.stats().dropped > 1_000, "held back");

    holder.batch_execute("COMMIT").await.unwrap();
    let stored = instance.cache.stats().stored;
    let begun = Instant::now();
    let mut id = 1_000_000;
    while instance.cache.stats().stored < stored + 500 {
        instance.cache.cleanup().await.unwrap();
        instance.get_all(id..id + 100, 1_000).await;
        id += 100;
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "is still held back"
        );
    }
    assert!(size(&sql).await <= 2 * MOST);
}

#[tokio::test]
async fn rewriting_leaves_twice_of_what_there_is_at_most() {
    let database = test_support::database().await;
    let sql = database.connect().await;
    let instance = Instance::new(&database, |b| b).await;
    for _ in 0..30 {
        for id in 0..1_000 {
            instance.get(id, 1_500).await;
        }
        instance.cache.settled().await;
        instance.cache.cleanup().await.unwrap();
        instance.cache.invalidate([crate::ITEM]).await.unwrap();
    }
    let (live, size) = (bytes(&sql).await, size(&sql).await);
    // a table grows by several pages at a time when several sessions wait for one: here, a hundredth of it
    let pages = 8 * 8192;
    assert!(
        size <= 2 * live + pages,
        "{size} bytes on the disk for {live}"
    );
}

#[tokio::test]
async fn a_role_that_may_not_vacuum_says_nothing_and_stays_within_the_bound() {
    let server =
        tokio::task::spawn_blocking(|| Server::with(Options::new().config("autovacuum", "off")))
            .await
            .unwrap()
            .unwrap();
    let database = server.database().await;
    let owner = database.connect().await;
    tower_pgcache::PgCache::new(database.pool(1))
        .ready()
        .await
        .unwrap();
    owner
        .batch_execute(
            "CREATE ROLE app LOGIN; GRANT USAGE ON SCHEMA pgcache TO app;
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA pgcache TO app;
             GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgcache TO app",
        )
        .await
        .unwrap();
    let mut config = database.config();
    config.user("app");
    let pool = bb8::Pool::builder().max_size(4).build_unchecked(
        bb8_postgres::PostgresConnectionManager::new(config, tokio_postgres::NoTls),
    );
    let cache = tower_pgcache::PgCache::builder(pool)
        .max_bytes(MOST as u64)
        .memory(0)
        .lookup_deadline(HOUR)
        .build()
        .unwrap();
    cache.ready().await.unwrap();
    let instance = Instance::with_cache(cache);
    flood(&instance, &owner, 0, |offered, _| offered > 20 * MOST).await;
    instance.cache.cleanup().await.unwrap();
    assert!(instance.cache.stats().evicted > 0);
    assert!(!server.log().contains("vacuum"), "{}", server.log());
}
