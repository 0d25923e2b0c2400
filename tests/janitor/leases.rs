//! Leases take a fixed room: there are places for them, which are used again.

use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::Client;

use crate::{Instance, MINUTE, entries, number};

const PLACES: i64 = 65_536;

/// Claims of keys that differ, each in a transaction of its own a thousand at a time. How many were not granted.
async fn claim(sql: &Client, keys: std::ops::Range<i64>) -> i64 {
    let claims = "SELECT count(*) FILTER (WHERE c.outcome <> 'granted')
                    FROM generate_series($1::bigint, $1 + 999) AS n,
                         pgcache.claim(sha256(n::text::bytea), n, 10, pg_current_snapshot()::text) AS c (outcome)";
    let claims = sql.prepare(claims).await.unwrap();
    let mut refused = 0;
    for first in keys.step_by(1000) {
        let row = sql.query_one(&claims, &[&first]).await.unwrap();
        refused += row.get::<_, i64>(0);
    }
    refused
}

#[tokio::test]
async fn however_many_fills_there_are_their_leases_take_no_more_room() {
    let database = test_support::database().await;
    let sql = database.connect().await;
    Instance::new(&database, |b| b).await;
    // what is given back, is held, and has expired
    for round in 0..3 {
        let first = round * 60_000;
        assert_eq!(claim(&sql, first..first + 60_000).await, 0);
        sql.batch_execute(
            "UPDATE pgcache.lease SET released = pg_current_xact_id() WHERE holder % 3 = 0;
             UPDATE pgcache.lease SET expires_at = clock_timestamp() WHERE holder % 3 = 1",
        )
        .await
        .unwrap();
    }
    let leases = number(&sql, "SELECT count(*) FROM pgcache.lease").await;
    assert!((PLACES * 9 / 10..=PLACES).contains(&leases), "{leases}");
    let size = number(&sql, "SELECT pg_total_relation_size('pgcache.lease')").await;
    assert!(size < 30 << 20, "{size} bytes");
}

/// Two URIs whose leases have the same place, and the key of the first one.
async fn neighbours(instance: &Instance, sql: &Client) -> (u64, u64, Vec<u8>) {
    instance.get_all(0..1_500, 1).await;
    let neighbours = "SELECT a.path, b.path, a.key FROM pgcache.entry a JOIN pgcache.entry b
                          ON pgcache.lease_place(a.key) = pgcache.lease_place(b.key) AND a.key < b.key
                       LIMIT 1";
    let row = sql.query_one(neighbours, &[]).await.expect("some");
    let id = |path: &str| path.split('/').nth(1).unwrap().parse().unwrap();
    (id(row.get(0)), id(row.get(1)), row.get(2))
}

async fn holder(sql: &Client) -> (Vec<u8>, i64) {
    let leases = "SELECT key, holder FROM pgcache.lease";
    let row = sql.query_one(leases, &[]).await.expect("one lease");
    (row.get(0), row.get(1))
}

#[tokio::test]
async fn who_finds_the_place_held_by_another_key_fills_without_a_lease() {
    let database = test_support::database().await;
    let sql = database.connect().await;
    let instance = Instance::new(&database, |b| b).await;
    let (held, free, key) = neighbours(&instance, &sql).await;
    let hold = "DELETE FROM pgcache.entry; DELETE FROM pgcache.lease";
    sql.batch_execute(hold).await.unwrap();
    let hold = "INSERT INTO pgcache.lease VALUES ($1, 4711, 'infinity')";
    sql.execute(hold, &[&key]).await.unwrap();

    let patient = Instance::new(&database, |b| b.lease_wait(10 * MINUTE)).await;
    timeout(MINUTE, patient.get(free, 1))
        .await
        .expect("no wait");
    patient.cache.settled().await;
    assert_eq!(entries(&sql).await, 1);
    assert_eq!(holder(&sql).await, (key.clone(), 4711), "as it was");

    // what the place is for
    let waiting = timeout(Duration::from_millis(300), patient.get(held, 1)).await;
    assert!(waiting.is_err(), "has a lease to wait for");

    sql.batch_execute("UPDATE pgcache.lease SET expires_at = now(); DELETE FROM pgcache.entry")
        .await
        .unwrap();
    patient.get(free, 1).await;
    patient.cache.settled().await;
    assert_ne!(holder(&sql).await.0, key, "there was room again");
}
