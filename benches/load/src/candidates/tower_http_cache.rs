//! The peer `tower-http-cache`.
//!
//! It wants a response body that is `Sync`, which axum's is not, and has errors of its own, which axum's routes may
//! not have. So it stands around a service that collects the body first, which costs something on misses alone,
//! and its errors become answers.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Bytes;
use axum::extract::Request;
use axum::http::{self, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{BoxError, Router};
use http_body_util::{BodyExt, Full};
use redis::aio::ConnectionManagerConfig;
use tower::util::AndThenLayer;
use tower::{Layer, Service};
use tower_http_cache::backend::CacheBackend;
use tower_http_cache::backend::memory::InMemoryBackend;
use tower_http_cache::backend::redis::RedisBackend;
use tower_http_cache::layer::CacheLayer;

use super::TTL;
use crate::Error;
use crate::app::{App, ITEM};

/// Entries in memory, far more than there are items.
const CAPACITY: u64 = 100_000;

pub(super) fn memory(app: &App) -> Router {
    router(app, InMemoryBackend::new(CAPACITY))
}

/// As its documentation advises, without the timeouts of the client library.
pub(super) async fn redis(app: &App, url: &str) -> Result<Router, Error> {
    let config = ConnectionManagerConfig::new()
        .set_response_timeout(None)
        .set_connection_timeout(None);
    let client = redis::Client::open(url)?;
    let connection = client.get_connection_manager_with_config(config).await?;
    Ok(router(app, RedisBackend::new(connection)))
}

fn router<B: CacheBackend>(app: &App, backend: B) -> Router {
    let layer = CacheLayer::builder(backend).ttl(TTL).build();
    let inner = AndThenLayer::new(collected).layer(app.item());
    Router::new().route_service(ITEM, Answered(layer.layer(inner)))
}

/// `response` with a body that is `Sync`.
async fn collected(response: Response) -> Result<http::Response<Full<Bytes>>, Infallible> {
    let (head, body) = response.into_parts();
    let body = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return Ok(failed(error.to_string())),
    };
    Ok(http::Response::from_parts(head, Full::new(body)))
}

fn failed(error: String) -> http::Response<Full<Bytes>> {
    let mut response = http::Response::new(Full::new(error.into()));
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response
}

/// A service whose errors are answers. `HandleErrorLayer` would clone the cache for every request.
#[derive(Clone)]
struct Answered<S>(S);

impl<S, B> Service<Request> for Answered<S>
where
    S: Service<Request, Response = http::Response<B>, Error = BoxError>,
    S::Future: Send + 'static,
    http::Response<B>: IntoResponse,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    /// The cache is ready when the router in it is, which is always so.
    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context).map(|_| Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let answer = self.0.call(request);
        Box::pin(async move {
            Ok(match answer.await {
                Ok(response) => response.into_response(),
                Err(error) => failed(error.to_string()).into_response(),
            })
        })
    }
}
