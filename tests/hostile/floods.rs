//! Floods: a hundred thousand things that differ, each asked for once. What the cache takes stays within its bounds,
//! and what is of use stays.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::IntoResponse;
use axum::routing::get;
use test_support::http::{Answer, send};
use tokio_postgres::Client;
use tower_pgcache::{PgCache, Tenant};

use crate::site::{MINUTE, Site};

const MANY: u64 = 100_000;
const HOT: u64 = 50;
const CLIENTS: u64 = 48;

const MEMORY: usize = 8 << 20;
const MOST_ENTRIES: u64 = 4_000;
const MOST_BYTES: u64 = 32 << 20;
const BODY: usize = 2_000;

/// In memory, while all this goes on: what is remembered, what waits to be written, and as much again for requests
/// under way and for other tests of this process. All of the flood would be four times as much.
const MOST_MEMORY: i64 = (MEMORY + (8 << 20) + (32 << 20)) as i64;

#[derive(Clone)]
struct TenantId(String);

fn app(cache: &PgCache) -> Router {
    let body = || async { "x".repeat(BODY) };
    let varying = || async { ([("vary", "x-flag")], "x".repeat(BODY)).into_response() };
    Router::new()
        .route("/url/{n}", get(body))
        .route("/hot/{n}", get(body))
        .route("/tenant", get(body))
        .route("/varying", get(varying))
        .layer(cache.layer().ttl(60 * MINUTE))
        .layer(axum::middleware::map_request(
            |mut request: Request| async move {
                let tenant = request.headers().get("x-tenant");
                let tenant = tenant.map_or("acme", |tenant| tenant.to_str().unwrap());
                let tenant = TenantId(tenant.to_owned());
                request.extensions_mut().insert(tenant);
                request
            },
        ))
}

/// In turn another URL, another value that the answer varies with, another tenant, another claim about the host.
fn hostile(n: u64) -> Request<Body> {
    let unlike = n.to_string();
    let builder = match n % 5 {
        0 | 1 => Request::get(format!("/url/{unlike}")),
        2 => Request::get("/varying").header("x-flag", unlike),
        3 => Request::get("/tenant").header("x-tenant", unlike),
        _ => Request::get("/tenant").header("x-forwarded-host", unlike),
    };
    builder.body(Body::empty()).unwrap()
}

async fn hot(app: &Router, n: u64) -> Answer {
    let request = Request::get(format!("/hot/{n}")).body(Body::empty());
    send(app, request.unwrap()).await
}

async fn hot_round(app: &Router) {
    for n in 0..HOT {
        hot(app, n).await;
    }
}

async fn client(app: Router, cache: PgCache, next: Arc<AtomicU64>, most_memory: Arc<AtomicI64>) {
    loop {
        let n = next.fetch_add(1, Ordering::Relaxed);
        if n >= MANY {
            // what comes too fast is not stored: more than there is room for shall be
            if cache.stats().stored > MOST_ENTRIES || n >= 2 * MANY {
                return;
            }
            cache.settled().await;
        }
        assert_eq!(send(&app, hostile(n)).await.status, 200);
        if n % 5_000 == 0 {
            hot_round(&app).await;
        }
        if n % 100 == 0 {
            most_memory.fetch_max(heap::living().bytes, Ordering::Relaxed);
        }
    }
}

/// Every table of the cache, with its rows.
async fn rows(sql: &Client) -> Vec<(String, i64)> {
    let tables = "SELECT relname::text FROM pg_class
                   WHERE relnamespace = 'pgcache'::regnamespace AND relkind IN ('r', 'p')";
    let mut rows = Vec::new();
    for table in sql.query(tables, &[]).await.unwrap() {
        let table: String = table.get(0);
        let count = format!("SELECT count(*) FROM pgcache.{table}");
        rows.push((table, sql.query_one(&count, &[]).await.unwrap().get(0)));
    }
    rows
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_of_anything_cost_hits_to_nobody_else() {
    let site = Site::with(|builder| {
        builder
            .tenant(Tenant::extension(|tenant: &TenantId| tenant.0.clone()))
            .memory(MEMORY)
            // a statement for each miss, which would be most of what this test does
            .lease_wait(Duration::ZERO)
            .store_queue(1024, 8 << 20)
            .max_entries(MOST_ENTRIES)
            .max_bytes(MOST_BYTES)
    })
    .await;
    let app = app(&site.cache);
    for _ in 0..20 {
        hot_round(&app).await;
    }
    site.settled().await;

    let before = heap::living().bytes;
    let (next, most_memory) = (Arc::default(), Arc::default());
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            tokio::spawn(client(
                app.clone(),
                site.cache.clone(),
                Arc::clone(&next),
                Arc::clone(&most_memory),
            ))
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    site.settled().await;
    let took = most_memory.load(Ordering::Relaxed) - before;
    assert!(took < MOST_MEMORY, "{took} bytes");

    let stats = site.cache.stats();
    assert_eq!((stats.waiting, stats.bypasses), (0, 0), "{stats:?}");
    assert!(
        stats.stored > MOST_ENTRIES,
        "too few to prove anything: {stats:?}"
    );
    let sql = site.database.connect().await;
    for (table, rows) in rows(&sql).await {
        assert!(
            rows <= MOST_ENTRIES as i64 * 105 / 100,
            "{rows} rows in {table}"
        );
    }
    let variants = "SELECT max(array_length(variants, 1)) FROM pgcache.entry";
    let variants: i32 = sql.query_one(variants, &[]).await.unwrap().get(0);
    assert!(variants <= 33, "{variants} variants of one URL");

    // an instance that remembers nothing finds them in the database
    let cold = PgCache::builder(site.database.pool(2))
        .tenant(Tenant::extension(|tenant: &TenantId| tenant.0.clone()))
        .lookup_deadline(Duration::from_secs(10))
        .build()
        .unwrap();
    let cold = self::app(&cold);
    for n in 0..HOT {
        assert!(hot(&app, n).await.is_hit(), "{n}");
        assert!(hot(&cold, n).await.is_hit(), "{n}, in the database");
    }
}
