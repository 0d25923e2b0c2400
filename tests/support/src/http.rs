//! Requests to a service in this process, and what their answers look like to a client.

use axum::body::Body;
use axum::response::IntoResponse;
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use tower::{Service, ServiceExt};

/// A complete answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a body that is text")
    }

    /// The last member of `Cache-Status`, without the name of the cache: `hit; ttl=59`.
    pub fn cache_status(&self) -> &str {
        let last = self
            .headers
            .get_all("cache-status")
            .iter()
            .next_back()
            .expect("an answer with Cache-Status");
        let member = last.to_str().expect("text");
        member
            .strip_prefix("pgcache; ")
            .unwrap_or_else(|| panic!("{member:?} is not ours"))
    }

    pub fn is_hit(&self) -> bool {
        self.cache_status().starts_with("hit")
    }

    pub fn is_stored(&self) -> bool {
        self.cache_status().ends_with("; stored")
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .get(name)
            .map(|value| value.to_str().expect("text"))
    }
}

/// Sends a request and reads the answer to its end.
pub async fn send<S>(service: &S, request: Request<Body>) -> Answer
where
    S: Service<Request<Body>> + Clone,
    S::Response: IntoResponse,
    S::Error: std::fmt::Debug,
{
    let response = service
        .clone()
        .oneshot(request)
        .await
        .expect("a response")
        .into_response();
    let (head, body) = response.into_parts();
    let body = body.collect().await.expect("a complete body").to_bytes();
    Answer {
        status: head.status,
        headers: head.headers,
        body,
    }
}

/// GETs a URI.
pub async fn get<S>(service: &S, uri: &str) -> Answer
where
    S: Service<Request<Body>> + Clone,
    S::Response: IntoResponse,
    S::Error: std::fmt::Debug,
{
    send(
        service,
        Request::get(uri).body(Body::empty()).expect("a request"),
    )
    .await
}
