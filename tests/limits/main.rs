//! What happens when a bound is reached: the table in `src/engine/mod.rs` names all of them. It costs hits, and nothing
//! else.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bodies;
mod changes;
mod reads;
mod refreshes;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::routing::MethodRouter;
use test_support::http::{Answer, send};
use test_support::{Database, Server, until};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tower_pgcache::{Domain, PgCache, PgCacheLayer, domain};

const MINUTE: Duration = Duration::from_secs(60);
/// Nothing here takes long; what takes as long as this hangs.
const HANG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(50);

const THINGS: Domain = domain!("things");
const OTHERS: Domain = domain!("others");

/// What a request that is passed on says.
const BYPASS: &str = "fwd=bypass; fwd-status=200; detail=store";

fn app(handler: MethodRouter, layer: PgCacheLayer) -> Router {
    Router::new().fallback_service(handler.layer(layer))
}

async fn ask(app: &Router, method: &str, path: &str) -> Answer {
    let request = Request::builder().method(method).uri(path);
    let request = request.body(Body::empty()).unwrap();
    timeout(HANG, send(app, request)).await.expect("an answer")
}

async fn get(app: &Router, path: &str) -> Answer {
    ask(app, "GET", path).await
}

async fn settled(cache: &PgCache) {
    timeout(HANG, cache.settled()).await.expect("settled");
}

async fn server() -> (Arc<Server>, Database) {
    let server = tokio::task::spawn_blocking(Server::start);
    let server = server.await.unwrap().unwrap();
    let database = server.database().await;
    (Arc::new(server), database)
}

/// Requests that are under way at the same time.
struct Waiting(JoinSet<Answer>);

impl Waiting {
    fn begin(app: &Router, method: &'static str, paths: impl Iterator<Item = String>) -> Self {
        let mut requests = JoinSet::new();
        for path in paths {
            let app = app.clone();
            requests.spawn(async move { ask(&app, method, &path).await });
        }
        Self(requests)
    }

    /// The first so many answers.
    async fn some(&mut self, number: usize) -> Vec<Answer> {
        let mut answers = Vec::new();
        while answers.len() < number {
            answers.push(self.0.join_next().await.unwrap().unwrap());
        }
        answers
    }

    /// Those that have come since.
    fn more(&mut self) -> Vec<Answer> {
        let more = std::iter::from_fn(|| self.0.try_join_next());
        more.map(Result::unwrap).collect()
    }

    async fn end(self) -> Vec<Answer> {
        self.0.join_all().await
    }
}
