//! Helpers for the tests of applications (feature `test-util`).
//!
//! ```no_run
//! # use axum::{Router, body::Body, routing::get};
//! # use http::Request;
//! # use tower::ServiceExt;
//! use tower_pgcache::{PgCache, assert_hit, assert_miss, test};
//!
//! # async fn f() -> Result<(), Box<dyn std::error::Error>> {
//! let cache = PgCache::ephemeral("postgres://localhost/test").await?;
//! let app = Router::new()
//!     .route("/report", get(|| async { "expensive" }))
//!     .layer(cache.layer().ttl(std::time::Duration::from_secs(60)));
//! let request = || Request::get("/report").body(Body::empty()).unwrap();
//!
//! assert_miss!(app.clone().oneshot(request()).await?);
//! cache.settled().await; // stored
//! assert_hit!(app.clone().oneshot(request()).await?);
//! test::expire(&cache, &"/report".parse()?).await?;
//! assert_miss!(app.oneshot(request()).await?);
//! cache.close().await; // and the schema is gone
//! # Ok(()) }
//! ```

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

use http::{HeaderMap, Uri};
use tokio_postgres::NoTls;

use crate::builder::PgCacheBuilder;
use crate::cache::PgCache;
use crate::error::Error;
use crate::store::SchemaName;

impl PgCache {
    /// An engine with a pool and a schema of its own, which [`close`](Self::close) drops. For tests: feature
    /// `test-util`.
    ///
    /// # Errors
    ///
    /// If `url` is no connection string, or the cache cannot be used: see [`ready`](Self::ready).
    pub async fn ephemeral(url: &str) -> Result<Self, Error> {
        let cache =
            PgCacheBuilder::<Self>::connecting(url.parse()?, NoTls).ephemeral(&unique_schema());
        cache.ready().await?;
        Ok(cache)
    }
}

/// Unique among the tests that run at the same time on one server.
fn unique_schema() -> SchemaName {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let now = SystemTime::UNIX_EPOCH
        .elapsed()
        .map_or(0, |since| since.as_nanos());
    SchemaName::unique(&format!(
        "{}_{}_{now:x}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    ))
}

/// Lets everything that is stored for a URI expire now. Without an authority, that is the path on every host.
///
/// # Errors
///
/// If the database does not do it.
pub async fn expire(cache: &PgCache, uri: &Uri) -> Result<(), Error> {
    let query = cache.config.policy.query().apply(uri.query());
    let path = crate::request::path_and_query(uri, query.as_deref());
    let authority = uri.authority().map(|a| a.as_str().to_ascii_lowercase());
    cache.engine.expire(authority, path).await
}

/// What this crate's member of `Cache-Status` says, without the name of the cache; for the macros.
#[doc(hidden)]
#[must_use]
pub fn cache_status(headers: &HeaderMap) -> Option<&str> {
    let lines = headers.get_all("cache-status").into_iter().rev();
    lines
        .filter_map(|line| line.to_str().ok())
        .find_map(|line| line.strip_prefix("pgcache; "))
}

/// Asserts that a response came from the cache.
#[macro_export]
macro_rules! assert_hit {
    ($response:expr) => {{
        let response = &$response;
        let status = $crate::test::cache_status(response.headers());
        assert!(
            status.is_some_and(|s| s.starts_with("hit")),
            "not a hit, but {status:?}"
        );
    }};
}

/// Asserts that a response came from the inner service.
#[macro_export]
macro_rules! assert_miss {
    ($response:expr) => {{
        let response = &$response;
        let status = $crate::test::cache_status(response.headers());
        assert!(
            status.is_some_and(|s| s.starts_with("fwd")),
            "not a miss, but {status:?}"
        );
    }};
}
