//! A day of mixed load, with its time compressed, leaves nothing behind: memory, tasks, connections and tables are as large
//! at its end as in its middle. `PGCACHE_HOURS` makes it longer.
//!
//! What takes minutes or hours elsewhere takes a second or less here: answers are fresh for one or two, the janitor comes
//! every 100 ms, autovacuum every second. An hour is so many requests, as fast as they go, to two instances; then everything
//! comes to rest, and is measured. While it is under way it is measured too, for the peaks.
//!
//! The first third is left out: pools, buffers and tables get the size that they keep. What grows with each request grows
//! from one third to the next as much as in the one before, by half of what there was in the middle: no margin comes near
//! that, and what is added to it is a small number of bytes for each of the 20,000 requests of a third.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod load;
mod samples;
mod service;

use std::sync::Arc;
use std::time::Duration;

use test_support::{Options, Server};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::Client;

use load::Load;
use samples::{Sample, Sampler};
use service::{ITEMS, Instance, MAX_BYTES, MAX_ENTRIES, MAX_LOG_ROWS, MEMORY, POOL};

#[global_allocator]
static HEAP: heap::Counted = heap::Counted;

const MINUTE: Duration = Duration::from_secs(60);
const REQUESTS_PER_HOUR: u64 = 2_500;
const MIB: i64 = 1 << 20;

/// As many as there may be.
const LEASES: i64 = 65_536;

/// The janitor forgets the log two runs after it was folded; while it works, another one may be in its way.
const RUNS_UNTIL_REST: u32 = 4;

struct Day {
    /// Both are kept to the end.
    _server: Server,
    load: Arc<Load>,
    sampler: Sampler,
    sql: Client,
}

impl Day {
    async fn begin() -> Self {
        let options = Options::new().config("autovacuum_naptime", "1s");
        let server = spawn_blocking(|| Server::with(options)).await;
        let server = server.unwrap().unwrap();
        let database = server.database().await;
        let instances = [
            Instance::new(&database).await,
            Instance::new(&database).await,
        ];
        let sql = database.connect().await;
        sql.batch_execute(&format!(
            "CREATE TABLE item (id int PRIMARY KEY, tenant text NOT NULL, price int NOT NULL DEFAULT 0);
             INSERT INTO item SELECT n, 't' || n % 5 FROM generate_series(0, {ITEMS}) n;
             SELECT pgcache.watch('item', tenant_column => 'tenant', entity_column => 'id');
             -- as after many more
             INSERT INTO pgcache.lease (key, holder, expires_at)
             SELECT decode(rpad(lpad(to_hex(n), 4, '0'), 64, '0'), 'hex'), 0, clock_timestamp() FROM generate_series(0, {LEASES} - 1) n"
        ))
        .await
        .unwrap();
        let load = Load::new(instances, database.connect().await);
        Self {
            load: Arc::new(load),
            sampler: Sampler::new(database.connect().await),
            sql,
            _server: server,
        }
    }

    /// What there was at most while it lasted, and what there is when all has come to rest.
    async fn hour(&self, number: u64) -> (Sample, Sample) {
        let clients = self.load.clients(number, REQUESTS_PER_HOUR);
        let mut peak = Sample::default();
        while !clients.iter().all(tokio::task::JoinHandle::is_finished) {
            peak.raise(&self.sampler.take().await);
            sleep(Duration::from_millis(200)).await;
        }
        for client in clients {
            timeout(MINUTE, client).await.expect("an end").unwrap();
        }
        self.rest().await;
        let rest = self.sampler.take().await;
        peak.raise(&rest);
        (peak, rest)
    }

    async fn rest(&self) {
        for instance in &self.load.instances {
            timeout(MINUTE, instance.cache.settled()).await.unwrap();
        }
        let began = Instant::now();
        let mut runs = 0;
        let mut last = self.next_run().await;
        while runs < RUNS_UNTIL_REST {
            assert!(began.elapsed() < MINUTE, "the janitor does not come");
            sleep(Duration::from_millis(5)).await;
            let next = self.next_run().await;
            runs += u32::from(next != last);
            last = next;
        }
    }

    /// When the janitor is due again: another time after each run.
    async fn next_run(&self) -> String {
        let due = "SELECT max(due)::text FROM pgcache.housekeeping WHERE task = 'sweep'";
        let due: Option<String> = self.sql.query_one(due, &[]).await.unwrap().get(0);
        due.unwrap_or_default()
    }
}

/// By how much the last third may be above the middle one: in percent, and besides. What moves at random even when
/// nothing grows is in the second number.
fn margin(name: &str, at_rest: bool) -> (i64, i64) {
    match (name, at_rest) {
        ("heap", true) => (5, MIB / 2),
        // freed memory goes back to the system as the allocator likes
        ("resident" | "server's processes", _) => (10, 8 * MIB),
        // requests under way, and answers that wait to be stored
        ("heap", false) => (25, 4 * MIB),
        ("tasks", true) => (0, 4),
        ("tasks", false) => (25, 20),
        ("descriptors" | "connections", _) => (0, 4),
        (table, true) if table.ends_with("rows") => (25, 100),
        (table, false) if table.ends_with("rows") => (25, 1_000),
        // autovacuum comes when it comes
        _ => (25, MIB),
    }
}

/// What no sample may exceed.
fn bound(name: &str, at_rest: bool) -> Option<i64> {
    Some(match name {
        // in both instances what is remembered, and waits to be written; and requests under way
        "heap" => 2 * (MEMORY as i64 + 4 * MIB) + 32 * MIB,
        // those of the instances, and of this test
        "connections" => 2 * i64::from(POOL) + 3,
        "entry: rows" => MAX_ENTRIES as i64 * 105 / 100,
        "entry: bytes" => MAX_BYTES as i64 * 2,
        "changed: rows" | "change_count: rows" if at_rest => i64::from(MAX_LOG_ROWS),
        "invalidation: rows" if at_rest => 0,
        "lease: rows" => LEASES,
        "lease: bytes" => 30 * MIB,
        "epoch: rows" | "incarnation: rows" | "room: rows" | "walk: rows" => 1,
        _ => return None,
    })
}

fn largest(samples: &[Sample], name: &str) -> i64 {
    samples.iter().map(|s| s.get(name)).max().unwrap_or(0)
}

/// What is not as it should be.
fn complaints(samples: &[Sample], at_rest: bool) -> Vec<String> {
    let third = samples.len() / 3;
    let (middle, last) = (&samples[third..2 * third], &samples[2 * third..]);
    let mut complaints = Vec::new();
    for name in samples[0].names() {
        let when = if at_rest { "at rest" } else { "at most" };
        let (before, after) = (largest(middle, name), largest(last, name));
        println!("{when} {name}: {before}, then {after}");
        let (percent, besides) = margin(name, at_rest);
        if after > before + before * percent / 100 + besides {
            complaints.push(format!("{when} {name} grows from {before} to {after}"));
        }
        let most = largest(samples, name);
        if bound(name, at_rest).is_some_and(|bound| most > bound) {
            complaints.push(format!("{when} {name} comes to {most}"));
        }
    }
    complaints
}

/// Where to look if the heap grows: sizes of allocations of which there are more.
fn print_growth(early: &heap::Living) {
    let grown = heap::living().since(early);
    let mut sizes: Vec<_> = grown.small().filter(|(_, more)| *more > 0).collect();
    sizes.sort_by_key(|(size, more)| std::cmp::Reverse(*size as i64 * more));
    println!("since the first third: {} bytes", grown.bytes);
    for (size, more) in sizes.iter().take(8) {
        println!("  of {size} bytes: {more} more");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_leaves_nothing_behind() {
    let hours = std::env::var("PGCACHE_HOURS").map_or(24, |hours| hours.parse().unwrap());
    assert!(hours >= 6, "too few to tell anything");
    let day = Day::begin().await;
    let (mut peaks, mut rests) = (Vec::new(), Vec::new());
    let mut early = None;
    for hour in 0..hours {
        if hour == hours / 3 {
            early = Some(heap::living());
        }
        let began = Instant::now();
        let (peak, rest) = day.hour(hour).await;
        println!("{hour:2}, {:.1?}: {rest}", began.elapsed());
        peaks.push(peak);
        rests.push(rest);
    }
    for instance in &day.load.instances {
        let stats = instance.cache.stats();
        println!("{stats:?}");
        // or it would prove little
        let requests = hours * REQUESTS_PER_HOUR / 2;
        assert!(stats.hits > requests / 3 && stats.stored > requests / 50);
        assert!(stats.evicted > 0 && stats.invalidations > 0);
        assert_eq!((stats.waiting, stats.errors), (0, 0));
    }
    print_growth(&early.unwrap());
    let mut wrong = complaints(&peaks, false);
    wrong.extend(complaints(&rests, true));
    assert!(wrong.is_empty(), "{wrong:#?}");
}
