//! A cache, and a handler that does what the request's fields say.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use http::{HeaderName, StatusCode};
use test_support::Database;
use test_support::http::{Answer, send};
use tower_pgcache::{
    CacheScope, DependsOn, Domain, Invalidates, NoStore, PgCache, PgCacheBuilder, PgCacheLayer,
    Tenant, Ttl, domain,
};
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::fmt::MakeWriter;

pub(crate) const ITEM: Domain = domain!("item");
pub(crate) const PRICE: Domain = domain!("price");
pub(crate) const MINUTE: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub(crate) struct TenantId(pub(crate) String);

pub(crate) struct Stage {
    pub(crate) database: Database,
    pub(crate) cache: PgCache,
}

pub(crate) type Fields<'a> = &'a [(&'a str, &'a str)];

impl Stage {
    pub(crate) async fn new() -> Self {
        Self::with(|builder| builder).await
    }

    pub(crate) async fn with(
        configure: impl FnOnce(PgCacheBuilder<PgCache>) -> PgCacheBuilder<PgCache>,
    ) -> Self {
        let database = test_support::database().await;
        let builder = PgCache::builder(database.pool(4)).lookup_deadline(MINUTE);
        let cache = configure(builder).build().unwrap();
        cache.ready().await.unwrap();
        Self { database, cache }
    }

    /// With the tenant that `x-tenant` names, by way of an authentication layer.
    pub(crate) async fn with_tenants() -> Self {
        Self::with(|b| b.tenant(Tenant::extension(|t: &TenantId| t.0.clone()))).await
    }

    pub(crate) fn layer(&self) -> PgCacheLayer {
        self.cache.layer().ttl(MINUTE)
    }

    /// Asks, and asks again when the answer had time to be stored.
    pub(crate) async fn twice(&self, app: &Router, uri: &str, fields: Fields<'_>) -> Answer {
        ask(app, "GET", uri, fields).await;
        self.cache.settled().await;
        ask(app, "GET", uri, fields).await
    }

    /// Whether the answer to the one is given to the other.
    pub(crate) async fn shared(
        &self,
        app: &Router,
        one: (&str, Fields<'_>),
        other: (&str, Fields<'_>),
    ) -> bool {
        let first = ask(app, "GET", one.0, one.1).await;
        self.cache.settled().await;
        first.body == ask(app, "GET", other.0, other.1).await.body
    }

    /// Whether this makes the stored answer go away.
    pub(crate) async fn ends(
        &self,
        app: &Router,
        stored: (&str, Fields<'_>),
        change: (&str, &str, Fields<'_>),
    ) -> bool {
        assert!(
            self.twice(app, stored.0, stored.1).await.is_hit(),
            "{stored:?} is not even stored"
        );
        ask(app, change.0, change.1, change.2).await;
        !ask(app, "GET", stored.0, stored.1).await.is_hit()
    }
}

/// `hit; ttl=59` is a minute, or a little less.
pub(crate) fn lives_for(answer: &Answer, seconds: u64) -> bool {
    let ttl = answer.cache_status().strip_prefix("hit; ttl=");
    ttl.is_some_and(|ttl| (seconds.saturating_sub(10)..=seconds).contains(&ttl.parse().unwrap()))
}

pub(crate) async fn ask(app: &Router, method: &str, uri: &str, fields: Fields<'_>) -> Answer {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    send(app, request.body(Body::empty()).unwrap()).await
}

/// `x-tenant` comes from an authentication layer.
pub(crate) fn with_auth(app: Router) -> Router {
    app.layer(axum::middleware::map_request(
        |mut request: Request| async move {
            if let Some(tenant) = request.headers().get("x-tenant") {
                let tenant = TenantId(tenant.to_str().unwrap().to_owned());
                request.extensions_mut().insert(tenant);
            }
            request
        },
    ))
}

/// One route, with this layer around it.
pub(crate) fn app(layer: PgCacheLayer) -> Router {
    Router::new().route("/{id}", any(obey).layer(layer))
}

/// Each call has a body of its own. `x-say-…` becomes a field of the answer, and `x-do-…` is done.
pub(crate) async fn obey(scope: CacheScope, request: Request) -> Response {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let told = |name: &str| request.headers().get(name).map(|v| v.to_str().unwrap());
    let seconds = |name| told(name).map(|s| Duration::from_secs(s.parse().unwrap()));
    if told("x-do-depend").is_some() {
        scope.depends_on(PRICE);
    }
    if told("x-do-invalidate").is_some() {
        scope.invalidates(PRICE);
    }
    if told("x-do-no-store").is_some() {
        scope.no_store();
    }
    if let Some(ttl) = seconds("x-do-ttl") {
        scope.ttl(ttl);
    }
    assert!(told("x-do-panic").is_none(), "as told");
    let body = format!("call {}", CALLS.fetch_add(1, Ordering::SeqCst));
    let mut response = body.into_response();
    let extensions = response.extensions_mut();
    if told("x-answer-depends").is_some() {
        DependsOn(PRICE).apply(extensions);
    }
    if told("x-answer-invalidates").is_some() {
        Invalidates(PRICE).apply(extensions);
    }
    if told("x-answer-no-store").is_some() {
        NoStore.apply(extensions);
    }
    if let Some(ttl) = seconds("x-answer-ttl") {
        Ttl(ttl).apply(extensions);
    }
    if let Some(status) = told("x-do-status") {
        *response.status_mut() = StatusCode::from_bytes(status.as_bytes()).unwrap();
    }
    for (name, value) in request.headers() {
        if let Some(name) = name.as_str().strip_prefix("x-say-") {
            let name = HeaderName::try_from(name).unwrap();
            response.headers_mut().append(name, value.clone());
        }
    }
    response
}

/// What this thread logs.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(crate) fn start() -> (Self, DefaultGuard) {
        let log = Self::default();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(log.clone())
            .with_ansi(false)
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    pub(crate) fn lines_with(&self, text: &str) -> usize {
        let log = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        log.lines().filter(|line| line.contains(text)).count()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}
