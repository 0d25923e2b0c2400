//! [`PgCacheService`]: the tower side of a layer. Plans each request, and has the plan carried out.

use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use crate::body::ResponseBody;
use crate::cache::PgCache;
use crate::call::{Caching, Call};
use crate::error::BoxError;
use crate::future::ResponseFuture;
use crate::plan::Plan;
use crate::rules::Rules;

/// A service with a cache in front of it; made by [`PgCacheLayer`](crate::PgCacheLayer).
#[derive(Debug, Clone)]
pub struct PgCacheService<S> {
    inner: S,
    cache: Caching,
}

impl<S> PgCacheService<S> {
    pub(crate) fn new(inner: S, cache: PgCache, rules: Arc<Rules>) -> Self {
        Self {
            inner,
            cache: Caching { cache, rules },
        }
    }
}

impl<S, RequestBody, B> Service<Request<RequestBody>> for PgCacheService<S>
where
    S: Service<Request<RequestBody>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    RequestBody: Body + Send + 'static,
    B: Body + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<ResponseBody<B>>;
    type Error = S::Error;
    type Future = ResponseFuture<B, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<RequestBody>) -> Self::Future {
        let plan = self.cache.plan(&request);
        if let Plan::Read(read) = &plan {
            if let Some(answer) = self.cache.at_once(read, &request) {
                return ResponseFuture::ready(answer);
            }
        }
        // the one that was polled ready is called; its clone has to be polled first
        let clone = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, clone);
        let cache = self.cache.clone();
        match plan {
            Plan::Bypass(reason) => {
                ResponseFuture::new(Call::new(cache, inner, &request).pass(reason, request))
            }
            Plan::Read(read) => cache.read(inner, read, request),
            Plan::Search(read) => ResponseFuture::new(cache.search(inner, read, request)),
            Plan::Change(change) => {
                ResponseFuture::new(Call::new(cache, inner, &request).change(*change, request))
            }
        }
    }
}
