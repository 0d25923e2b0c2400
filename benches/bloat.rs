//! What rewriting leaves on the disk with autovacuum alone: all entries are rewritten ten times, in random order, by the
//! statement that stores answers, in transactions as large as the writer's. `cargo bench --bench bloat`.
//!
//! The instances' own housekeeping is off, so that nobody vacuums but the server, with its defaults: it looks at a
//! database once a minute. So what matters is how much is rewritten in a minute. Each rewrite takes a minute here, which
//! with 100,000 entries are 1,700 stores a second; `BLOAT_SECONDS=0` rewrites as fast as it goes, `BLOAT_ENTRIES` changes
//! the number. A database for each size of body, at once. Nothing is judged.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::env;
use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::routing::get;
use test_support::http::get as fetch;
use test_support::random::Random;
use test_support::{Database, Server};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::Instant;
use tokio_postgres::{Client, Statement};
use tower_pgcache::PgCache;

const REWRITES: u32 = 10;
const BATCH: usize = 32;

/// In the row itself, and out of line.
const BODIES: [usize; 2] = [1_000, 4_000];

/// As often as the figures are looked at in the course of a rewrite.
const LOOKS: usize = 4;

#[derive(Clone, Copy)]
struct Plan {
    entries: usize,
    /// How long a rewrite takes at least.
    time: Duration,
}

fn variable(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |value| value.parse().expect(name))
}

/// One entry made by the layer, whose columns the others have too.
async fn make_one(database: &Database, body: usize) {
    let cache = PgCache::builder(database.pool(2))
        .lookup_deadline(Duration::from_secs(60))
        .cleanup_interval(Duration::ZERO)
        .max_bytes(8 << 30)
        .build()
        .unwrap();
    cache.ready().await.unwrap();
    let app = Router::new()
        .route("/{id}", get(async move |_: Path<u64>| "x".repeat(body)))
        .layer(cache.layer().ttl(Duration::from_secs(36_000)));
    fetch(&app, "/1").await;
    cache.settled().await;
    cache.close().await;
}

struct Table {
    sql: Client,
    store: Statement,
    random: Random,
    body: usize,
}

impl Table {
    async fn new(database: &Database, body: usize) -> Self {
        make_one(database, body).await;
        let sql = database.connect().await;
        let template = "CREATE TEMP TABLE template AS
             SELECT e.*, n.id::text || '/' || extract(epoch FROM pg_postmaster_start_time())::text AS incarnation
               FROM pgcache.entry e, pgcache.incarnation n;
             DELETE FROM pgcache.entry";
        sql.batch_execute(template).await.unwrap();
        // the columns of the one entry, by the statement of the writer
        let store = include_str!("../src/store/sql/store.sql");
        let columns = [
            "sha256(__key__::text::bytea)",
            "t.epoch::text",
            "t.incarnation",
            "pg_current_snapshot()",
            "extract(epoch FROM clock_timestamp())::float8",
            "0::float8",
            "36000::float8",
            "36000::float8",
            "t.revalidatable",
            "t.authority",
            "t.path",
            "t.route",
            "t.tenant",
            "sha256(convert_to(random()::text, 'UTF8'))",
            "t.cost",
            "t.unpacked",
            "t.head",
            "convert_to(repeat(chr(32 + (random() * 90)::int), __size__), 'UTF8')",
            "1",
            "cardinality(t.probes)",
            "1",
            "cardinality(t.scopes)",
        ];
        let mut store = store.replace("FROM unnest(", "FROM template t CROSS JOIN unnest(");
        let mut parameters = columns.map(|column| format!("ARRAY[{column}]")).to_vec();
        parameters.extend(["t.probes", "t.scopes"].map(str::to_owned));
        // the last one first: $1 begins like $10
        for (n, value) in parameters.iter().enumerate().rev() {
            store = store.replace(&format!("${}", n + 1), value);
        }
        let store = store
            .replace("__key__", "$1::bigint")
            .replace("__size__", "$2::int");
        let store = sql.prepare(&store).await.unwrap();
        Self {
            sql,
            store,
            random: Random::new(1, body as u64),
            body,
        }
    }

    /// All of them, in random order; sizes differ by a tenth.
    async fn rewrite(&mut self, plan: Plan, begun: Instant, number: u32) {
        let mut keys: Vec<i64> = (0..plan.entries as i64).collect();
        for n in (1..keys.len()).rev() {
            keys.swap(n, self.random.below(n + 1));
        }
        let part = keys.len().div_ceil(LOOKS).max(1);
        let mut stored = 0;
        for part in keys.chunks(part) {
            for batch in part.chunks(BATCH) {
                self.store(batch).await;
                stored += batch.len();
                let due = plan.time.mul_f64(stored as f64 / keys.len() as f64);
                tokio::time::sleep_until(begun + due).await;
            }
            self.report(number, begun).await;
        }
    }

    async fn store(&mut self, keys: &[i64]) {
        let mut keys = keys.to_vec();
        keys.sort_unstable();
        let sizes: Vec<i32> = keys
            .iter()
            .map(|_| (self.body * 9 / 10 + self.random.below(self.body / 5)) as i32)
            .collect();
        self.sql.batch_execute("BEGIN").await.unwrap();
        let stores = keys.iter().zip(&sizes).map(async |(key, size)| {
            let stored = self.sql.query(&self.store, &[key, size]).await.unwrap();
            assert_eq!(stored.len(), 1, "not accepted");
        });
        futures_util::future::join_all(stores).await;
        self.sql.batch_execute("COMMIT").await.unwrap();
    }

    async fn report(&self, number: u32, begun: Instant) {
        let figures = "
            SELECT (SELECT sum(pgcache.weight(head, body, path, meta, scopes, variants)) FROM pgcache.entry)::float8,
                   pg_relation_size(c.oid)::float8, pg_total_relation_size(c.reltoastrelid)::float8,
                   pg_indexes_size(c.oid)::float8, pg_total_relation_size(c.oid)::float8,
                   pg_stat_get_autovacuum_count(c.oid), pg_stat_get_autovacuum_count(c.reltoastrelid),
                   100.0::float8 * pg_stat_get_tuples_hot_updated(c.oid) / greatest(pg_stat_get_tuples_updated(c.oid), 1)
              FROM pg_class c WHERE c.oid = 'pgcache.entry'::regclass";
        let row = self.sql.query_one(figures, &[]).await.unwrap();
        let live: f64 = row.get(0);
        let of_live = |column: usize| row.get::<_, f64>(column) / live;
        println!(
            "body {:5}, rewrite {number:2}, {:3.0} s: {:.2} x {:.0} MB live (heap {:.2}, out of line {:.2}, index {:.2}); autovacuum {} and {}; {:.0} % HOT",
            self.body,
            begun.elapsed().as_secs_f64(),
            of_live(4),
            live / 1e6,
            of_live(1),
            of_live(2),
            of_live(3),
            row.get::<_, i64>(5),
            row.get::<_, i64>(6),
            row.get::<_, f64>(7),
        );
    }
}

#[tokio::main]
async fn main() {
    let plan = Plan {
        entries: variable("BLOAT_ENTRIES", 100_000) as usize,
        time: Duration::from_secs(variable("BLOAT_SECONDS", 60)),
    };
    let server = spawn_blocking(Server::start).await.unwrap().unwrap();
    let mut tables = JoinSet::new();
    for body in BODIES {
        let mut table = Table::new(&server.database().await, body).await;
        tables.spawn(async move {
            for number in 0..=REWRITES {
                // the first one fills it
                table.rewrite(plan, Instant::now(), number).await;
            }
        });
    }
    while let Some(ended) = tables.join_next().await {
        ended.unwrap();
    }
}
