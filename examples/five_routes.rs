//! The whole step from nothing to a cache: one layer with a ttl around five routes.
//!
//! `cargo run --example five_routes`, then `curl -i http://127.0.0.1:3000/news` twice.

use std::error::Error;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use tower_pgcache::PgCacheLayer;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let pool = test_support::try_database().await?.pool(8); // an application has its own
    let app = Router::new()
        .route("/", get(|| async { "start" }))
        .route("/news", get(|| async { "news" }))
        .route("/about", get(|| async { "about" }))
        .route(
            "/weather",
            get(|| async { ([("cache-control", "s-maxage=5")], "rain") }),
        )
        .route(
            "/dice",
            get(|| async { ([("cache-control", "no-store")], "4") }),
        )
        .layer(PgCacheLayer::new(pool).ttl(Duration::from_secs(60)));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    Ok(axum::serve(listener, app).await?)
}
