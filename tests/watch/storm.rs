//! Nobody waits and nothing deadlocks.

use futures_util::future::join_all;
use test_support::random::Random;
use test_support::{Database, Options, Server};
use tokio_postgres::Client;

use crate::stage::{builder, run, text};

const WRITERS: usize = 16;

struct Storm {
    server: Server,
    database: Database,
    writers: Vec<Client>,
}

impl Storm {
    /// A lock that is waited for is logged after a millisecond, and fails its transaction soon.
    async fn new(setup: &str) -> Self {
        let options = Options::new()
            .config("deadlock_timeout", "1ms")
            .config("log_lock_waits", "on");
        let server = tokio::task::spawn_blocking(|| Server::with(options))
            .await
            .unwrap()
            .unwrap();
        let database = server.database().await;
        builder(&database).build().unwrap().ready().await.unwrap();
        run(&database.connect().await, setup).await;
        let writers = join_all((0..WRITERS).map(async |_| {
            let writer = database.connect().await;
            run(&writer, "SET lock_timeout = '2s'").await;
            writer
        }))
        .await;
        Self {
            server,
            database,
            writers,
        }
    }

    async fn nobody_waited(self) {
        let sql = self.database.connect().await;
        assert_eq!(
            text(&sql, "SELECT sum(deadlocks) FROM pg_stat_database").await,
            "0"
        );
        let log = self.server.log();
        let waits: Vec<_> = log
            .lines()
            .filter(|line| {
                line.contains("still waiting for") && !line.contains("extension of relation")
            })
            .collect();
        assert!(waits.is_empty(), "{waits:?}");
    }
}

#[tokio::test]
async fn the_log_tells_when_somebody_waits() {
    let storm =
        Storm::new("CREATE TABLE item (id int PRIMARY KEY); INSERT INTO item VALUES (1)").await;
    run(&storm.writers[0], "BEGIN; UPDATE item SET id = 1").await;
    let waiting = storm.writers[1]
        .batch_execute("SET lock_timeout = '200ms'; UPDATE item SET id = 1")
        .await;
    assert!(waiting.is_err());
    assert!(storm.server.log().contains("still waiting for"));
}

#[tokio::test]
async fn cascades_in_both_directions_under_sixteen_writers() {
    let storm = Storm::new(
        "CREATE TABLE a (id int PRIMARY KEY, v int); CREATE TABLE b (id int PRIMARY KEY, v int);
         INSERT INTO a SELECT i, 0 FROM generate_series(0, 15) i; INSERT INTO b TABLE a;
         SELECT pgcache.watch('a', entity_column => 'id'), pgcache.watch('b', entity_column => 'id'),
                pgcache.cascade('a', 'b'), pgcache.cascade('b', 'a')",
    )
    .await;
    join_all(storm.writers.iter().enumerate().map(async |(own, writer)| {
        let (first, second) = if own % 2 == 0 { ("a", "b") } else { ("b", "a") };
        for _ in 0..40 {
            run(
                writer,
                &format!("BEGIN; UPDATE {first} SET v = v + 1 WHERE id = {own}"),
            )
            .await;
            run(
                writer,
                &format!("UPDATE {second} SET v = v + 1 WHERE id = {own}; COMMIT"),
            )
            .await;
        }
    }))
    .await;
    let sql = storm.database.connect().await;
    let versions = "SELECT string_agg(domain || version, ',' ORDER BY domain) FROM pgcache.domain_versions WHERE tenant IS NULL";
    assert_eq!(
        text(&sql, versions).await.replace(char::is_alphabetic, ""),
        "641,641",
        "640 and the rules"
    );
    storm.nobody_waited().await;
}

#[tokio::test]
async fn ten_thousand_transactions_of_several_domains() {
    let tables: String = (0..6)
        .map(|t| format!(
            "CREATE TABLE t{t} (id int PRIMARY KEY, tenant int, v int); INSERT INTO t{t} SELECT i, i % 3, 0 FROM generate_series(0, 159) i;
             SELECT pgcache.watch('t{t}', tenant_column => 'tenant', entity_column => 'id');"))
        .collect();
    let storm = Storm::new(&format!("{tables} SELECT pgcache.cascade('t0', 't1'), pgcache.cascade('t1', 't2'), pgcache.cascade('t2', 't0'),
        pgcache.cascade('t3', 't4', 'v')")).await;
    let mut random = Random::of_this_run("PGCACHE_TEST_SEED");
    let writers = storm.writers.iter().map(|writer| (writer, random.fork()));
    join_all(writers.enumerate().map(async |(own, (writer, mut random))| {
        for number in 0..10_000 / WRITERS {
            let mut transaction = String::from("BEGIN;");
            for _ in 0..1 + random.below(4) {
                // rows of its own, so that only the cache could make anybody wait
                let (table, row) = (random.below(6), own as u64 + 16 * random.below(10));
                transaction += &match random.below(5) {
                    0 => format!("UPDATE t{table} SET tenant = {} WHERE id = {row};", random.below(3)),
                    1 => format!("UPDATE t{table} SET v = v + 1 WHERE id % 16 = {own};"),
                    2 => format!("SELECT pgcache.invalidate('t{table}', '{}');", random.below(3)),
                    3 => format!("SAVEPOINT s; UPDATE t{table} SET v = v + 1 WHERE id = {row}; ROLLBACK TO s;"),
                    _ => format!("UPDATE t{table} SET v = v + 1 WHERE id = {row};"),
                };
            }
            transaction += if random.below(10) == 0 { "ROLLBACK" } else { "COMMIT" };
            run(writer, &transaction).await;
            if own == 0 && number % 20 == 0 {
                run(writer, "SELECT pgcache.fold()").await;
            }
        }
    }))
    .await;
    storm.nobody_waited().await;
}
