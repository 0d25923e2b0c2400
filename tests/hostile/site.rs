//! A service with a cache around it, in its plain set-up, behind a real socket; and clients that write what they like.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use test_support::Database;
use test_support::http::{Answer, send};
use test_support::wire::serve;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tower_pgcache::{Domain, PgCache, PgCacheBuilder, PgCacheLayer, domain};

pub(crate) const ITEM: Domain = domain!("item");
pub(crate) const MINUTE: Duration = Duration::from_secs(60);

pub(crate) struct Site {
    pub(crate) database: Database,
    pub(crate) cache: PgCache,
}

impl Site {
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

    pub(crate) fn layer(&self) -> PgCacheLayer {
        self.cache.layer().ttl(MINUTE)
    }

    /// A hang is a failure.
    pub(crate) async fn settled(&self) {
        timeout(MINUTE, self.cache.settled()).await.unwrap();
    }

    /// The echo, behind a socket.
    pub(crate) async fn serve_echo(&self) -> SocketAddr {
        serve(echoing(self.layer())).await
    }
}

pub(crate) fn echoing(layer: PgCacheLayer) -> Router {
    Router::new().fallback(echo).layer(layer)
}

/// Answers with all that there is to know about the request.
pub(crate) async fn echo(request: Request) -> String {
    let (head, body) = request.into_parts();
    let body: Bytes = axum::body::to_bytes(body, 1 << 20)
        .await
        .unwrap_or_default();
    let (method, uri, fields) = (&head.method, &head.uri, &head.headers);
    format!("{method} {uri} {fields:?} {body:?}")
}

/// Writes this, and reads whatever comes until the server closes.
pub(crate) async fn exchange(address: SocketAddr, request: &[u8]) -> String {
    let mut socket = TcpStream::connect(address).await.unwrap();
    // the server may have closed after the first half
    let _ = socket.write_all(request).await;
    let mut answer = Vec::new();
    let read = timeout(MINUTE, socket.read_to_end(&mut answer)).await;
    let _ = read.expect("an end");
    String::from_utf8_lossy(&answer).into_owned()
}

pub(crate) async fn get(app: &Router, uri: &str, fields: &[(&str, &str)]) -> Answer {
    ask(app, "GET", uri, fields).await
}

pub(crate) async fn ask(app: &Router, method: &str, uri: &str, fields: &[(&str, &str)]) -> Answer {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::empty()).unwrap();
    timeout(MINUTE, send(app, request))
        .await
        .expect("an answer")
}
