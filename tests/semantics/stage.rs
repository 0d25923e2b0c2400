//! A cache in front of an origin that says what the test wants, and remembers what it was asked.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::any;
use http::request::Parts;
use test_support::Database;
use test_support::http::{Answer, send};
use tokio::sync::{Semaphore, mpsc};
use tokio_postgres::Client;
use tower_pgcache::{Domain, PgCache, PgCacheLayer, Policy, domain, test};

pub(crate) const ITEM: Domain = domain!("item");
pub(crate) const MINUTE: Duration = Duration::from_secs(60);
pub(crate) const HOUR: Duration = Duration::from_secs(3600);
pub(crate) const LONG_AGO: &str = "Thu, 01 Jan 2026 00:00:00 GMT";

pub(crate) type Fields<'a> = &'a [(&'a str, &'a str)];
type Say = dyn Fn(&Parts) -> Response + Send + Sync;

/// The inner service.
#[derive(Clone)]
pub(crate) struct Origin(Arc<Inner>);

struct Inner {
    say: Mutex<Arc<Say>>,
    seen: Mutex<Vec<Parts>>,
    /// Where requests wait, if they are to.
    gate: Mutex<Option<Arc<Gate>>>,
}

struct Gate {
    arrived: mpsc::UnboundedSender<()>,
    permits: Semaphore,
}

/// While it lives, requests stop at the origin.
pub(crate) struct Held {
    origin: Origin,
    gate: Arc<Gate>,
    arrived: mpsc::UnboundedReceiver<()>,
}

impl Held {
    pub(crate) async fn arrival(&mut self) {
        self.arrived.recv().await.unwrap();
    }

    /// Lets all go.
    pub(crate) fn release(self) {
        *self.origin.0.gate.lock().unwrap() = None;
        self.gate.permits.add_permits(1000);
    }
}

impl Origin {
    pub(crate) fn saying(say: impl Fn(&Parts) -> Response + Send + Sync + 'static) -> Self {
        Self(Arc::new(Inner {
            say: Mutex::new(Arc::new(say)),
            seen: Mutex::default(),
            gate: Mutex::new(None),
        }))
    }

    pub(crate) fn now_says(&self, say: impl Fn(&Parts) -> Response + Send + Sync + 'static) {
        *self.0.say.lock().unwrap() = Arc::new(say);
    }

    pub(crate) fn hold(&self) -> Held {
        let (sender, arrived) = mpsc::unbounded_channel();
        let gate = Arc::new(Gate {
            arrived: sender,
            permits: Semaphore::new(0),
        });
        *self.0.gate.lock().unwrap() = Some(gate.clone());
        Held {
            origin: self.clone(),
            gate,
            arrived,
        }
    }

    pub(crate) fn calls(&self) -> usize {
        self.0.seen.lock().unwrap().len()
    }

    /// What the last request said in a field.
    pub(crate) fn was_asked(&self, field: &str) -> Option<String> {
        let seen = self.0.seen.lock().unwrap();
        let value = seen.last().unwrap().headers.get(field)?;
        Some(value.to_str().unwrap().to_owned())
    }

    pub(crate) fn last(&self) -> Parts {
        self.0.seen.lock().unwrap().last().unwrap().clone()
    }

    pub(crate) async fn answer(self, request: Request) -> Response {
        let (head, _) = request.into_parts();
        self.0.seen.lock().unwrap().push(head.clone());
        let gate = self.0.gate.lock().unwrap().clone();
        if let Some(gate) = gate {
            let _ = gate.arrived.send(());
            gate.permits.acquire().await.unwrap().forget();
        }
        let say = self.0.say.lock().unwrap().clone();
        say(&head)
    }

    /// `/…` with this layer.
    pub(crate) fn router(&self, layer: PgCacheLayer) -> Router {
        let origin = self.clone();
        Router::new()
            .route("/{*path}", any(move |request| origin.answer(request)))
            .layer(layer)
    }
}

/// An answer with these fields.
pub(crate) fn says(status: u16, fields: Fields<'_>, body: impl Into<Body>) -> Response {
    let mut response = Response::builder().status(status);
    for (name, value) in fields {
        response = response.header(*name, *value);
    }
    response.body(body.into()).unwrap()
}

/// One origin behind one layer.
pub(crate) struct Stage {
    pub(crate) database: Database,
    pub(crate) cache: PgCache,
    pub(crate) origin: Origin,
    pub(crate) app: Router,
}

impl Stage {
    /// `fields` and `body` are what the origin says at first.
    pub(crate) async fn new(
        configure: impl FnOnce(PgCacheLayer) -> PgCacheLayer,
        fields: &'static [(&'static str, &'static str)],
        body: &'static str,
    ) -> Self {
        Self::saying(configure, move |_| says(200, fields, body)).await
    }

    pub(crate) async fn saying(
        configure: impl FnOnce(PgCacheLayer) -> PgCacheLayer,
        say: impl Fn(&Parts) -> Response + Send + Sync + 'static,
    ) -> Self {
        let database = test_support::database().await;
        let cache = engine(&database).await;
        let origin = Origin::saying(say);
        let app = origin.router(configure(cache.layer()));
        Self {
            database,
            cache,
            origin,
            app,
        }
    }

    /// The answer, after all that it leads to.
    pub(crate) async fn get(&self, fields: Fields<'_>) -> Answer {
        self.ask("GET", "/a", fields).await
    }

    pub(crate) async fn ask(&self, method: &str, uri: &str, fields: Fields<'_>) -> Answer {
        let answer = ask(&self.app, method, uri, fields).await;
        self.cache.settled().await;
        answer
    }

    pub(crate) async fn expire(&self) {
        test::expire(&self.cache, &"/a".parse().unwrap())
            .await
            .unwrap();
    }

    /// A transaction that changes [`ITEM`], as a writer elsewhere would.
    pub(crate) async fn commit(&self) {
        self.sql()
            .await
            .query("SELECT pgcache.invalidate('item')", &[])
            .await
            .unwrap();
    }

    pub(crate) async fn sql(&self) -> Client {
        self.database.connect().await
    }

    pub(crate) async fn count(&self, condition: &str) -> i64 {
        let sql = format!("SELECT count(*) FROM pgcache.entry WHERE {condition}");
        self.sql().await.query_one(&sql, &[]).await.unwrap().get(0)
    }
}

/// The whole suite runs twice. What looks behind the cache's back, into its table, has to say so.
pub(crate) fn is_in_memory() -> bool {
    env!("CARGO_CRATE_NAME") == "semantics_in_memory"
}

pub(crate) async fn engine(database: &Database) -> PgCache {
    let builder = PgCache::builder(database.pool(4))
        .lookup_deadline(MINUTE)
        .memory(if is_in_memory() { 64 << 20 } else { 0 });
    let cache = builder.build().unwrap();
    cache.ready().await.unwrap();
    cache
}

pub(crate) fn with_ttl(layer: PgCacheLayer) -> PgCacheLayer {
    layer.ttl(MINUTE).domain(ITEM)
}

pub(crate) fn shared_cache(layer: PgCacheLayer) -> PgCacheLayer {
    layer.policy(Policy::shared_cache())
}

pub(crate) async fn ask(app: &Router, method: &str, uri: &str, fields: Fields<'_>) -> Answer {
    send(app, request(method, uri, fields)).await
}

pub(crate) fn request(method: &str, uri: &str, fields: Fields<'_>) -> Request {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(Body::empty()).unwrap()
}
