//! What a request costs with the cache: a hit from memory (strict, and with a bounded staleness) and from Postgres, a
//! 304, a miss, a request that passes through, against the bare handler. In process, one request at a time; then hits
//! by many clients at once. `cargo bench --bench hit`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use http::Request;
use test_support::http::{get as fetch, send};
use tokio::runtime::Runtime;
use tower_pgcache::{PgCache, PgCacheBuilder};

const HOUR: Duration = Duration::from_secs(3600);

fn app(size: usize) -> Router {
    let body = "x".repeat(size);
    Router::new().route("/{id}", get(move || std::future::ready(body.clone())))
}

/// As `axum::serve` does: layers are applied now, and not to every request.
fn served(app: Router) -> Router {
    app.with_state(())
}

fn requests(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let _guard = runtime.enter();
    let database = runtime.block_on(test_support::database());
    let engine = |memory| {
        let builder = PgCacheBuilder::<PgCache>::new(database.pool(4)).memory(memory);
        builder.lookup_deadline(HOUR).build().unwrap()
    };
    let (cache, remembering) = (engine(0), engine(64 << 20));
    runtime.block_on(cache.ready()).unwrap();

    let mut group = criterion.benchmark_group("request");
    for size in [1 << 10, 32 << 10, 1 << 20] {
        group.throughput(Throughput::Bytes(size as u64));
        let layer = || remembering.layer().ttl(HOUR).namespace(size.to_string());
        let bare = served(app(size));
        let cached = served(app(size).layer(cache.layer().ttl(HOUR).namespace(size.to_string())));
        let passed = served(app(size).layer(cache.layer().bypass()));
        let strict = served(app(size).layer(layer()));
        let bounded = served(app(size).layer(layer().max_staleness(HOUR)));
        runtime.block_on(async {
            for (app, cache) in [
                (&cached, &cache),
                (&strict, &remembering),
                (&bounded, &remembering),
            ] {
                fetch(app, "/hot").await;
                cache.settled().await;
                assert!(fetch(app, "/hot").await.is_hit());
            }
        });
        for (name, app) in [("memory, strict", &strict), ("memory, bounded", &bounded)] {
            group.bench_function(BenchmarkId::new(name, size), |b| {
                b.iter(|| black_box(runtime.block_on(fetch(app, "/hot"))));
            });
        }
        group.bench_function(BenchmarkId::new("304", size), |b| {
            b.iter(|| {
                let request = Request::get("/hot")
                    .header("host", "test")
                    .header("if-none-match", "*");
                let request = request.body(Body::empty()).unwrap();
                black_box(runtime.block_on(send(&bounded, request)))
            });
        });
        group.bench_function(BenchmarkId::new("bare", size), |b| {
            b.iter(|| black_box(runtime.block_on(fetch(&bare, "/hot"))));
        });
        group.bench_function(BenchmarkId::new("bypass", size), |b| {
            b.iter(|| black_box(runtime.block_on(fetch(&passed, "/hot"))));
        });
        group.bench_function(BenchmarkId::new("hit", size), |b| {
            b.iter(|| black_box(runtime.block_on(fetch(&cached, "/hot"))));
        });
        let number = AtomicU64::new(0);
        group.bench_function(BenchmarkId::new("miss", size), |b| {
            b.iter(|| {
                let uri = format!("/{}", number.fetch_add(1, Ordering::Relaxed));
                black_box(runtime.block_on(fetch(&cached, &uri)))
            });
        });
        runtime.block_on(cache.settled());
    }
    group.finish();
}

/// How many clients ask at the same time.
const CLIENTS: usize = 32;

/// Clients that each ask again as soon as they have an answer, for entries of their own or all for one.
fn concurrent_hits(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let _guard = runtime.enter();
    let database = runtime.block_on(test_support::database());
    let engine = |memory| {
        let builder = PgCacheBuilder::<PgCache>::new(database.pool(4)).memory(memory);
        builder.lookup_deadline(HOUR).build().unwrap()
    };
    let caches = [
        ("Postgres", engine(0)),
        ("memory, strict", engine(64 << 20)),
    ];
    runtime.block_on(caches[0].1.ready()).unwrap();

    let mut group = criterion.benchmark_group("concurrent hits");
    group.throughput(Throughput::Elements(CLIENTS as u64));
    for ((place, cache), size) in caches.iter().flat_map(|c| [(c, 1 << 10), (c, 32 << 10)]) {
        let layer = cache.layer().ttl(HOUR).namespace(format!("{place} {size}"));
        let app = served(app(size).layer(layer));
        for (name, uris) in [("own", CLIENTS), ("one", 1)] {
            let name = format!("{place}, {name}");
            let uris: Vec<String> = (0..uris).map(|n| format!("/{n}")).collect();
            runtime.block_on(async {
                for uri in &uris {
                    fetch(&app, uri).await;
                    cache.settled().await;
                    assert!(fetch(&app, uri).await.is_hit());
                }
            });
            group.bench_function(BenchmarkId::new(name, size), |b| {
                b.iter_custom(|rounds| runtime.block_on(ask_in_parallel(&app, &uris, rounds)));
            });
        }
    }
    group.finish();
}

/// How long it takes until every client has its answers.
async fn ask_in_parallel(app: &Router, uris: &[String], rounds: u64) -> Duration {
    let start = Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for uri in uris.iter().cycle().take(CLIENTS) {
        let (app, uri) = (app.clone(), uri.clone());
        clients.spawn(async move {
            for _ in 0..rounds {
                black_box(fetch(&app, &uri).await);
            }
        });
    }
    clients.join_all().await;
    start.elapsed()
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(2));
    targets = requests, concurrent_hits
}
criterion_main!(benches);
