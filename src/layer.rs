//! [`PgCacheLayer`]: the engine plus one policy, or plus a table of them.

use std::error::Error as StdError;
use std::panic::Location;
use std::sync::{Arc, OnceLock};

use bb8::{ManageConnection, Pool};
use tokio_postgres::Client;
use tower_layer::Layer;

use crate::builder::PgCacheBuilder;
use crate::cache::PgCache;
use crate::error::ConfigError;
use crate::policy::{Policy, policy_setters};
use crate::route::RouteTable;
use crate::rules::Rules;
use crate::service::PgCacheService;

/// Caches the responses of the service inside it.
///
/// With nothing set it stores what the responses' own `Cache-Control` (or `Expires`) allows. A `ttl` is what
/// makes it useful where handlers say nothing:
///
/// ```
/// # use std::time::Duration;
/// # use axum::{Router, routing::get};
/// # use tower_pgcache::{PgCacheLayer, bb8, bb8_postgres::PostgresConnectionManager, tokio_postgres::NoTls};
/// # fn app(pool: bb8::Pool<PostgresConnectionManager<NoTls>>) -> Router {
/// Router::new()
///     .route("/report", get(|| async { "expensive" }))
///     .layer(PgCacheLayer::new(pool).ttl(Duration::from_secs(60)))
/// # }
/// ```
///
/// A layer can stand around a whole router, around one route (`get(list).post(create).layer(…)`) or around any
/// other tower service. Its read settings apply to GET and HEAD, [`invalidates`](Self::invalidates) to unsafe
/// methods. Where two layers of one engine meet a request, the inner one's settings win, and what it stores it serves
/// itself: the outer one never answers for it.
///
/// What a handler answers has to come from what it reads itself, after the cache was asked. So add the cache
/// *outside* a layer that opens a database transaction for the request or that loads data into it: what such a
/// layer read before the cache was asked may be older than the cache believes.
///
/// Mistakes in the settings of a layer are reported by [`check`](Self::check), or logged with the first request.
#[derive(Debug, Clone)]
pub struct PgCacheLayer {
    cache: PgCache,
    policy: Policy,
    table: Option<Arc<RouteTable>>,
    place: &'static Location<'static>,
    /// Made when the layer is first used, and shared by all services that it and its clones make: axum clones a
    /// layer for every route.
    rules: Arc<OnceLock<Arc<Rules>>>,
}

impl PgCacheLayer {
    /// A layer with an engine of its own that has no settings: `PgCache::new(pool).layer()`.
    #[must_use]
    #[track_caller]
    pub fn new<M>(pool: Pool<M>) -> Self
    where
        M: ManageConnection<Connection = Client>,
        M::Error: StdError + Send + Sync + 'static,
    {
        PgCache::new(pool).layer()
    }

    /// A builder for a layer with a central table of routes, for services that are not axum or that prefer all
    /// settings in one place.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_pgcache::{*, bb8_postgres::PostgresConnectionManager, tokio_postgres::NoTls};
    /// # fn layer(pool: bb8::Pool<PostgresConnectionManager<NoTls>>) -> Result<PgCacheLayer, ConfigError> {
    /// const PRODUCT: Domain = domain!("product");
    /// PgCacheLayer::builder(pool)
    ///     .route(Route::get("/products/{id}").ttl(Duration::from_secs(300)).entity(PRODUCT, "id"))
    ///     .route(Route::post("/products").invalidates(PRODUCT))
    ///     .build()
    /// # }
    /// ```
    #[must_use]
    pub fn builder<M>(pool: Pool<M>) -> PgCacheBuilder<Self>
    where
        M: ManageConnection<Connection = Client>,
        M::Error: StdError + Send + Sync + 'static,
    {
        PgCacheBuilder::new(pool)
    }

    #[track_caller]
    pub(crate) fn of(cache: PgCache, table: Option<RouteTable>) -> Self {
        let table = table.map(Arc::new);
        Self {
            cache,
            policy: Policy::default(),
            table,
            place: Location::caller(),
            rules: Arc::default(),
        }
    }

    /// The layer, if its settings make sense. One with mistakes that nobody asked for logs them with its first
    /// request, and passes everything through.
    ///
    /// # Errors
    ///
    /// All mistakes at once.
    pub fn check(self) -> Result<Self, ConfigError> {
        ConfigError::check(self.rules().mistakes().to_vec())?;
        Ok(self)
    }

    /// A layer that caches nothing and has no database.
    #[must_use]
    #[track_caller]
    pub fn disabled() -> Self {
        PgCache::disabled().layer()
    }

    fn rules(&self) -> &Arc<Rules> {
        self.rules.get_or_init(|| {
            let config = self.cache.config.clone();
            let rules = Arc::new(Rules::new(
                config.clone(),
                self.policy.clone(),
                self.table.as_deref(),
                self.place,
            ));
            config.register(&rules);
            rules
        })
    }

    /// The engine.
    #[must_use]
    pub fn cache(&self) -> &PgCache {
        &self.cache
    }

    policy_setters!();

    fn policy_mut(&mut self) -> &mut Policy {
        self.rules = Arc::default();
        &mut self.policy
    }
}

impl<S> Layer<S> for PgCacheLayer {
    type Service = PgCacheService<S>;

    fn layer(&self, inner: S) -> PgCacheService<S> {
        PgCacheService::new(inner, self.cache.clone(), self.rules().clone())
    }
}
