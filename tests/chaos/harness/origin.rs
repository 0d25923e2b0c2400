//! Where the pages come from: versions in the memory of the test, which nothing disturbs.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Path, State};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

#[derive(Debug, Clone, Default)]
pub(super) struct Origin(Arc<Pages>);

#[derive(Debug, Default)]
struct Pages {
    last: AtomicI64,
    versions: Mutex<HashMap<String, i64>>,
}

impl Origin {
    pub(super) async fn serve(&self) -> SocketAddr {
        let app = Router::new()
            .route("/{*path}", get(read).put(write))
            .with_state(self.clone());
        test_support::wire::serve(app).await
    }

    /// From now on the page has a version that none had before.
    pub(super) fn change(&self, path: &str) -> i64 {
        let mut versions = self
            .0
            .versions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // under the lock: versions of a page only grow
        let version = 1 + self.0.last.fetch_add(1, Ordering::Relaxed);
        versions.insert(path.to_owned(), version);
        version
    }

    fn version(&self, path: &str) -> i64 {
        let versions = self
            .0
            .versions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        versions.get(path).copied().unwrap_or(0)
    }
}

/// Some pages are small, and some need more than one packet.
async fn read(State(origin): State<Origin>, Path(path): Path<String>) -> Json<Value> {
    let large = path.ends_with(['0', '5']);
    let filler = "text ".repeat(if large { 4000 } else { 1 });
    Json(json!({ "path": path, "version": origin.version(&path), "filler": filler }))
}

async fn write(State(origin): State<Origin>, Path(path): Path<String>) -> Json<Value> {
    let version = origin.change(&path);
    Json(json!({ "path": path, "version": version }))
}
