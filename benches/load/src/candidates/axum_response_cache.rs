//! The peer `axum-response-cache`: one map behind one mutex, without a limit.

use axum::Router;
use axum_response_cache::CacheLayer;

use super::TTL;
use crate::app::{App, ITEM};

pub(super) fn router(app: &App) -> Router {
    Router::new()
        .route(ITEM, app.item())
        .layer(CacheLayer::with_lifespan(TTL))
}
