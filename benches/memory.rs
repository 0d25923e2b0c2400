//! What an answer takes in memory besides its own bytes: live bytes of the heap, before and after many answers.
//! `cargo bench --bench memory`, with the number of answers if one likes.
//!
//! One instance fills them, another one looks them up in Postgres; both keep them in memory. A warm-up comes first, so
//! that connections, pools and buffers have the size that they keep. Nothing is timed, and nothing is judged.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::http::header::{AGE, CACHE_CONTROL, CONTENT_TYPE};
use axum::response::IntoResponse;
use axum::routing::get;
use heap::Living;
use test_support::Database;
use test_support::http::{Answer, get as fetch};
use tower_pgcache::{Domain, PgCache, domain};

#[global_allocator]
static HEAP: heap::Counted = heap::Counted;

const HOUR: Duration = Duration::from_secs(3600);
const ITEM: Domain = domain!("item");
const WARM_UP: usize = 2000;
const BODY: usize = 1024;

/// JSON of 1 KB.
async fn item(Path(id): Path<String>) -> impl IntoResponse {
    let head = format!(r#"{{"id":"{id}","text":""#);
    let body = format!("{head}{}\"}}", "x".repeat(BODY - head.len() - 2));
    let fields = [
        (CONTENT_TYPE, "application/json"),
        (CACHE_CONTROL, "max-age=3600"),
    ];
    (fields, body)
}

struct Instance {
    cache: PgCache,
    app: Router,
}

impl Instance {
    async fn new(database: &Database) -> Self {
        let cache = PgCache::builder(database.pool(4))
            .memory(1 << 30)
            .lookup_deadline(HOUR)
            .build()
            .unwrap();
        cache.ready().await.unwrap();
        let layer = cache.layer().ttl(HOUR).entity(ITEM, "id");
        let app = Router::new().route("/{id}", get(item)).layer(layer);
        Self { cache, app }
    }

    /// The last answer. What is stored waits for its turn, so nothing is dropped.
    async fn ask(&self, name: &str, count: usize) -> Answer {
        let mut last = None;
        for n in 0..count {
            last = Some(fetch(&self.app, &format!("/{name}{n}")).await);
            if n % 100 == 0 {
                self.cache.settled().await;
            }
        }
        self.cache.settled().await;
        last.expect("some")
    }

    async fn all_are_hits(&self, count: usize) {
        for n in 0..count {
            let answer = fetch(&self.app, &format!("/item-{n}")).await;
            assert!(answer.is_hit(), "{n}: {}", answer.cache_status());
        }
    }

    /// What asking twice leaves in memory.
    async fn keeps(&self, count: usize) -> (Living, Answer) {
        for _ in 0..2 {
            self.ask("warm-up-", WARM_UP).await;
        }
        let before = heap::living();
        self.ask("item-", count).await;
        let answer = self.ask("item-", count).await;
        (heap::living().since(&before), answer)
    }
}

/// The values of what is stored of the head; the names are shared by all answers that have them.
fn bytes_of_fields(answer: &Answer) -> usize {
    let computed = [AGE.as_str(), "cache-status", "x-cache"];
    let stored = answer.headers.iter();
    stored
        .filter(|(name, _)| !computed.contains(&name.as_str()))
        .map(|(_, value)| value.len())
        .sum()
}

fn report(title: &str, count: usize, (kept, answer): &(Living, Answer)) {
    let each = |n: i64| n as f64 / count as f64;
    let all = each(kept.bytes);
    let fields = bytes_of_fields(answer);
    let beyond = all - (BODY + fields) as f64;
    println!("\n{title}: bytes for each of {count} answers");
    println!("  in all                  {all:8.1}");
    println!("  body                    {BODY:8.1}", BODY = BODY as f64);
    println!("  values of the fields    {:8.1}", fields as f64);
    println!("  beyond                  {beyond:8.1}");
    println!("  allocations that live, by size:");
    let mut rest = all;
    for (size, times) in kept.small() {
        let times = each(times);
        if times * size as f64 >= 0.5 {
            println!(
                "    {size:5} x {times:5.2}         {:8.1}",
                times * size as f64
            );
            rest -= times * size as f64;
        }
    }
    println!("    others (tables)       {rest:8.1}");
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let count = std::env::args().find_map(|argument| argument.parse().ok());
    let count = count.unwrap_or(20_000);
    let database = test_support::database().await;
    let filling = Instance::new(&database).await;
    let filled = filling.keeps(count).await;
    let finding = Instance::new(&database).await;
    let found = finding.keeps(count).await;

    // all are in memory: there is nothing elsewhere
    let sql = database.connect().await;
    sql.batch_execute("DELETE FROM pgcache.entry")
        .await
        .unwrap();
    filling.all_are_hits(count).await;
    finding.all_are_hits(count).await;

    report("filled by this instance", count, &filled);
    report("found in Postgres", count, &found);
}
