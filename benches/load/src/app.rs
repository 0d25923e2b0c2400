//! The service that every candidate stands around.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};

/// The path of [`App::item`].
pub(crate) const ITEM: &str = "/item/{id}";

/// The size of the answers, and how many were computed so far.
#[derive(Clone, Debug)]
pub(crate) struct App {
    size: usize,
    calls: Arc<AtomicU64>,
}

impl App {
    pub(crate) fn new(size: usize) -> Self {
        Self {
            size,
            calls: Arc::default(),
        }
    }

    /// What is to be cached.
    pub(crate) fn item(&self) -> MethodRouter {
        get(item).with_state(self.clone())
    }

    /// `/calls`, around which there is no cache.
    pub(crate) fn calls(&self) -> Router {
        let calls =
            |State(app): State<Self>| async move { app.calls.load(Ordering::Relaxed).to_string() };
        Router::new()
            .route("/calls", get(calls))
            .with_state(self.clone())
    }
}

async fn item(State(app): State<App>, Path(id): Path<u32>) -> Response {
    app.calls.fetch_add(1, Ordering::Relaxed);
    let fields = [
        (CONTENT_TYPE, "application/json".to_owned()),
        (CACHE_CONTROL, "public, max-age=600".to_owned()),
        (ETAG, format!("\"{id}\"")),
    ];
    (fields, body(id, app.size)).into_response()
}

/// An answer of `size` bytes, or a few more if it would not fit.
pub(crate) fn body(id: u32, size: usize) -> String {
    let frame = format!("{{\"id\":{id},\"text\":\"\"}}").len();
    let text = "x".repeat(size.saturating_sub(frame));
    format!("{{\"id\":{id},\"text\":\"{text}\"}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_have_the_size() {
        assert_eq!(body(1, 1024).len(), 1024);
        assert_eq!(body(1000, 1024).len(), 1024);
        assert_eq!(body(7, 0), r#"{"id":7,"text":""}"#);
    }
}
