//! A client with a connection that it keeps.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client as Pooled;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::time::timeout;

use super::Error;

/// All instances go by this name, as behind a load balancer. By their ports they would be different sites, which share
/// nothing.
const HOST: &str = "shop.test";

/// What takes as long as this hangs.
const HANG: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Client {
    address: SocketAddr,
    http: Pooled<HttpConnector, Full<Bytes>>,
}

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) is_hit: bool,
    pub(super) cache_status: String,
    pub(super) body: Value,
}

/// What to ask for.
#[derive(Debug)]
pub(super) struct Ask<'a> {
    pub(super) tenant: &'a str,
    pub(super) path: &'a str,
    /// How much longer the answer shall take to make.
    pub(super) hold: Duration,
}

impl Client {
    pub(super) fn new(address: SocketAddr) -> Self {
        let http = Pooled::builder(TokioExecutor::new()).build_http();
        Self { address, http }
    }

    pub(super) async fn get(&self, ask: &Ask<'_>) -> Result<Answer, Error> {
        let request = Request::get(self.uri(ask.path))
            .header("host", HOST)
            .header("x-tenant", ask.tenant)
            .header("x-hold-milliseconds", ask.hold.as_millis().to_string());
        self.send(request.body(Full::default())?).await
    }

    pub(super) async fn write(
        &self,
        method: Method,
        tenant: &str,
        path: &str,
        body: &Value,
    ) -> Result<Answer, Error> {
        let request = Request::builder()
            .method(method)
            .uri(self.uri(path))
            .header("host", HOST)
            .header("x-tenant", tenant)
            .header("content-type", "application/json");
        self.send(request.body(Full::from(body.to_string()))?).await
    }

    fn uri(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Answer, Error> {
        timeout(HANG, async {
            let (head, body) = self.http.request(request).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            let cache_status = head.headers.get("cache-status");
            let cache_status = cache_status.and_then(|v| v.to_str().ok());
            let cache_status = cache_status.unwrap_or_default().to_owned();
            Ok(Answer {
                status: head.status,
                is_hit: cache_status.starts_with("pgcache; hit"),
                cache_status,
                body: serde_json::from_slice(&body).unwrap_or_default(),
            })
        })
        .await?
    }
}
