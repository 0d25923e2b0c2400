//! What the instances serve.

use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Request};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use test_support::Database;
use tower_pgcache::{Domain, PgCache, Tenant, domain};

pub(crate) const NOTE: Domain = domain!("note");

/// Rows of the watched table.
pub(crate) const ITEMS: u64 = 200;

pub(crate) const POOL: u32 = 5;
pub(crate) const MEMORY: usize = 2 << 20;
pub(crate) const MAX_ENTRIES: u64 = 300;
pub(crate) const MAX_BYTES: u64 = 2 << 20;
pub(crate) const MAX_LOG_ROWS: u32 = 500;

const MINUTE: Duration = Duration::from_secs(60);

#[derive(Clone)]
struct TenantId(String);

pub(crate) struct Instance {
    pub(crate) cache: PgCache,
    pub(crate) app: Router,
}

impl Instance {
    pub(crate) async fn new(database: &Database) -> Self {
        let cache = PgCache::builder(database.pool(POOL))
            .tenant(Tenant::extension(|tenant: &TenantId| tenant.0.clone()))
            .lookup_deadline(MINUTE)
            .store_deadline(MINUTE)
            .lease_life(Duration::from_secs(1))
            .cleanup_interval(Duration::from_millis(100))
            .memory(MEMORY)
            .store_queue(256, 4 << 20)
            .max_entries(MAX_ENTRIES)
            .max_bytes(MAX_BYTES)
            .max_log_rows(MAX_LOG_ROWS)
            .build()
            .unwrap();
        cache.ready().await.unwrap();
        let app = app(&cache);
        Self { cache, app }
    }
}

fn app(cache: &PgCache) -> Router {
    let layer = || cache.layer().ttl(Duration::from_secs(2));
    // some go because they are too many
    let items = cache.layer().ttl(MINUTE).entity(domain!("item"), "id");
    Router::new()
        .route("/items/{id}", get(item).layer(items))
        .route(
            "/notes/{id}",
            get(item)
                .post(async || StatusCode::NO_CONTENT)
                .layer(layer().domain(NOTE).invalidates(NOTE)),
        )
        .route("/flags/{id}", get(flag).layer(layer()))
        .route("/news/{id}", get(news).layer(layer()))
        .route("/carts/{id}", get(cart).layer(layer()))
        .route("/slow/{id}", get(slow).layer(layer()))
        .layer(axum::middleware::map_request(authenticate))
}

async fn authenticate(mut request: Request) -> Request {
    let tenant = request.headers().get("x-tenant");
    let tenant = tenant.map_or("t0", |tenant| tenant.to_str().unwrap());
    let tenant = TenantId(tenant.to_owned());
    request.extensions_mut().insert(tenant);
    request
}

/// Of many sizes, some of which Postgres keeps out of line.
async fn item(Path(id): Path<u64>) -> impl IntoResponse {
    let group = format!("\"{}\"", id % 1_000);
    (
        [("cache-groups", group)],
        "x".repeat(100 + id as usize * 37 % 4_000),
    )
}

async fn flag() -> impl IntoResponse {
    ([("vary", "x-flag")], "x".repeat(300))
}

async fn news() -> impl IntoResponse {
    let lifetime = "s-maxage=1, stale-while-revalidate=1";
    (
        [("cache-control", lifetime), ("etag", "\"news\"")],
        "x".repeat(1_000),
    )
}

async fn cart() -> impl IntoResponse {
    ([("cache-control", "no-store")], "x".repeat(500))
}

/// Long enough for a client to leave.
async fn slow() -> &'static str {
    tokio::time::sleep(Duration::from_millis(20)).await;
    "at last"
}
