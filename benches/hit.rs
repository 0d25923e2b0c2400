//! What a request costs with the cache: a hit from Postgres, a miss, a request that passes through, against the
//! bare handler. In process, one request at a time; `cargo bench --bench hit`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use test_support::http::get as fetch;
use tokio::runtime::Runtime;
use tower_pgcache::PgCache;

const HOUR: Duration = Duration::from_secs(3600);

fn app(size: usize) -> Router {
    let body = "x".repeat(size);
    Router::new().route("/{id}", get(move || std::future::ready(body.clone())))
}

fn requests(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let _guard = runtime.enter();
    let database = runtime.block_on(test_support::database());
    let cache = PgCache::new(database.pool(4));
    runtime.block_on(cache.ready()).unwrap();

    let mut group = criterion.benchmark_group("request");
    for size in [1 << 10, 32 << 10, 1 << 20] {
        group.throughput(Throughput::Bytes(size as u64));
        let bare = app(size);
        let cached = app(size).layer(cache.layer().ttl(HOUR).namespace(size.to_string()));
        let passed = app(size).layer(cache.layer().bypass());
        runtime.block_on(async {
            fetch(&cached, "/hot").await;
            cache.settled().await;
            assert!(fetch(&cached, "/hot").await.is_hit());
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

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(2));
    targets = requests
}
criterion_main!(benches);
