//! [`PgCacheService`]: carries out the plan for each request.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use http::header::{AGE, CONTENT_LENGTH, HeaderValue};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Body;
use tower_service::Service;

use crate::body::{Limits, ResponseBody, tee};
use crate::domain::Scope;
use crate::engine::{Asked, ChangeGuard, Engine, Entry, Fill, Label};
use crate::error::BoxError;
use crate::future::ResponseFuture;
use crate::http::cache_status::{Bypass, CacheStatus};
use crate::http::fields::{encode_head, stored_fields};
use crate::http::invalidation::{linked_paths, says_unchanged};
use crate::http::storable::{NotStored, judge};
use crate::nesting::{Learned, Mark};
use crate::plan::{Change, Plan, Read, Rules};

/// A service with a cache in front of it; made by [`PgCacheLayer`](crate::PgCacheLayer).
#[derive(Debug, Clone)]
pub struct PgCacheService<S> {
    inner: S,
    cache: Caching,
}

/// What a request in progress needs of its layer.
#[derive(Debug, Clone)]
pub(crate) struct Caching {
    engine: Arc<Engine>,
    rules: Arc<Rules>,
}

impl<S> PgCacheService<S> {
    pub(crate) fn new(inner: S, engine: Arc<Engine>, rules: Arc<Rules>) -> Self {
        Self {
            inner,
            cache: Caching { engine, rules },
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
    type Future = ResponseFuture<S::Future, B, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<RequestBody>) -> Self::Future {
        // the one that was polled ready is called; its clone has to be polled first
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let cache = self.cache.clone();
        match cache.rules.plan(&request) {
            Plan::Bypass(reason) => {
                cache.engine.count_bypass();
                Mark::claim(request.extensions(), &cache.engine);
                let mark = Mark::leave(request.extensions_mut(), &cache.engine, None);
                ResponseFuture::passed(inner.call(request), mark, cache.status(reason))
            }
            Plan::Read(read) => ResponseFuture::cached(cache.read(*read, inner, request)),
            Plan::Change(change) => ResponseFuture::cached(cache.change(*change, inner, request)),
        }
    }
}

impl Caching {
    async fn read<S, RequestBody, B>(
        self,
        read: Read,
        mut inner: S,
        mut request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody<B>>, S::Error>
    where
        S: Service<Request<RequestBody>, Response = Response<B>>,
        B: Body + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let outer = Mark::claim(request.extensions(), &self.engine);
        let learned = match outer.and_then(|outer| outer.learned(read.key)) {
            Some(learned) => learned,
            None => match self.engine.ask(read.key).await {
                Asked::Hit(entry) => {
                    self.engine.count_hit();
                    return Ok(self.answer(entry, read.head_only));
                }
                Asked::Miss(fill) => Learned::Missing(fill),
                Asked::Unusable(reason) => Learned::Unusable(reason),
            },
        };
        let unusable = match &learned {
            Learned::Unusable(reason) => Some(*reason),
            Learned::Missing(_) => None,
        };
        let mark = Mark::leave(request.extensions_mut(), &self.engine, Some(learned));
        let response = inner.call(request).await?;
        if mark.is_claimed() {
            return Ok(response.map(ResponseBody::passed));
        }
        match (unusable, mark.take_back()) {
            (None, Some(fill)) => {
                self.engine.count_miss();
                Ok(self.store(fill, read, response).await)
            }
            (reason, _) => {
                self.engine.count_bypass();
                let (status, reason) = (response.status(), reason.unwrap_or(Bypass::Store));
                Ok(self.explained(
                    response.map(ResponseBody::passed),
                    CacheStatus::Bypass { status, reason },
                ))
            }
        }
    }

    /// The answer to a request that missed, which is stored if it may be.
    async fn store<B>(
        &self,
        fill: Fill,
        read: Read,
        response: Response<B>,
    ) -> Response<ResponseBody<B>>
    where
        B: Body + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let status = response.status();
        let (head, body) = response.into_parts();
        let received = SystemTime::now();
        let announced = content_length(&head.headers);
        let verdict = match judge(&head, read.ttl, received) {
            Ok(_) if read.head_only => Err(NotStored::Head),
            Ok(_) if announced.is_some_and(|length| length > read.max_body as u64) => {
                Err(NotStored::TooLarge)
            }
            verdict => verdict,
        };
        match verdict {
            Err(reason) => {
                let response = Response::from_parts(head, ResponseBody::passed(body));
                self.explained(response, CacheStatus::NotStored { status, reason })
            }
            Ok(freshness) => {
                let label = Label {
                    scopes: read.scopes,
                    authority: read.authority,
                    path: read.path,
                    tenant: read.tenant,
                };
                let storing = fill.begin(
                    label,
                    freshness,
                    encode_head(status, &stored_fields(&head.headers, received)),
                );
                let body = tee(
                    body,
                    storing,
                    Limits {
                        max: read.max_body,
                        announced,
                    },
                )
                .await;
                self.explained(
                    Response::from_parts(head, body),
                    CacheStatus::Stored { status },
                )
            }
        }
    }

    fn answer<B>(&self, entry: Entry, head_only: bool) -> Response<ResponseBody<B>> {
        let Entry {
            status,
            headers,
            body,
            age,
            ttl,
        } = entry;
        let length = body.len();
        let mut response = Response::new(if head_only {
            ResponseBody::empty()
        } else {
            ResponseBody::whole(body)
        });
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response.headers_mut().insert(AGE, age.as_secs().into());
        if status != StatusCode::NO_CONTENT {
            response.headers_mut().insert(CONTENT_LENGTH, length.into());
        }
        self.explained(response, CacheStatus::Hit { ttl })
    }

    /// Answers an unsafe request; what it may have changed is invalidated before the client knows.
    async fn change<S, RequestBody, B>(
        self,
        change: Change,
        mut inner: S,
        mut request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody<B>>, S::Error>
    where
        S: Service<Request<RequestBody>, Response = Response<B>>,
    {
        Mark::claim(request.extensions(), &self.engine);
        let mark = Mark::leave(request.extensions_mut(), &self.engine, None);
        let Change {
            scopes,
            uri,
            authority,
            tenant,
        } = change;
        let guard = ChangeGuard::armed(self.engine.clone(), scopes);
        let response = match inner.call(request).await {
            Ok(response) => response.map(ResponseBody::passed),
            Err(error) => {
                guard.commit([]).await;
                return Err(error);
            }
        };
        if mark.is_claimed() {
            guard.disarm();
            return Ok(response);
        }
        let status = response.status();
        if says_unchanged(status) {
            guard.disarm();
        } else {
            let linked = authority.map(|authority| {
                let paths = linked_paths(response.headers(), &uri, &authority);
                paths.into_iter().map(move |path| {
                    Scope::uri(Some(&authority), &path).for_tenant(tenant.as_deref())
                })
            });
            guard.commit(linked.into_iter().flatten()).await;
        }
        self.engine.count_bypass();
        Ok(self.explained(
            response,
            CacheStatus::Bypass {
                status,
                reason: Bypass::Method,
            },
        ))
    }

    fn explained<B>(&self, mut response: Response<B>, status: CacheStatus) -> Response<B> {
        if self.rules.config.cache_status {
            status.add_to(response.headers_mut());
        }
        response
    }

    /// What to say of a request that passes through.
    fn status(&self, reason: Bypass) -> Option<Bypass> {
        self.rules.config.cache_status.then_some(reason)
    }
}

/// `None` also for a value that says nothing clear: the body is then as long as it turns out to be.
fn content_length(headers: &HeaderMap<HeaderValue>) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
