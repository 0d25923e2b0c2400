//! [`PgCacheService`]: carries out the plan for each request.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use http::header::{AGE, CONTENT_LENGTH, HeaderValue};
use http::{HeaderMap, Request, Response, StatusCode, response};
use http_body::Body;
use tower_service::Service;

use crate::body::{Limits, ResponseBody, tee};
use crate::cache::PgCache;
use crate::domain::Scope;
use crate::engine::{Asked, ChangeGuard, Entry, Fill, Label};
use crate::error::BoxError;
use crate::future::ResponseFuture;
use crate::http::cache_status::{Bypass, CacheStatus};
use crate::http::fields::{encode_head, stored_fields};
use crate::http::invalidation::{linked_paths, says_unchanged};
use crate::http::storable::{Freshness, NotStored, judge};
use crate::nesting::{Learned, Mark};
use crate::plan::{Change, Plan, Read};
use crate::policy::{MAX_DEPENDENCIES, StatusRule};
use crate::rules::{Rules, add_client_cache};
use crate::runtime::{CacheScope, Remarks};

/// A service with a cache in front of it; made by [`PgCacheLayer`](crate::PgCacheLayer).
#[derive(Debug, Clone)]
pub struct PgCacheService<S> {
    inner: S,
    cache: Caching,
}

/// What a request in progress needs of its layer.
#[derive(Debug, Clone)]
struct Caching {
    cache: PgCache,
    rules: Arc<Rules>,
}

/// A plan, with what else is known of the request that it is for.
struct Planned {
    plan: Plan,
    /// The tenant of what the request changes; `None` is every tenant.
    tenant: Option<String>,
    invalidate_on: Option<StatusRule>,
    /// The request's head, if the route's `store_if` wants to see it later.
    head: Option<Request<()>>,
    /// The row of the table, or axum's pattern.
    route: Option<String>,
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
        // the one that was polled ready is called; its clone has to be polled first
        let clone = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, clone);
        let cache = self.cache.clone();
        let Planned {
            plan,
            tenant,
            invalidate_on,
            head,
            route,
        } = cache.plan(&request);
        let call = Call {
            cache,
            inner,
            tenant,
            route,
        };
        match plan {
            Plan::Bypass(reason) => ResponseFuture::new(call.pass(reason, request)),
            Plan::Read(read) => ResponseFuture::new(call.read(*read, head, request)),
            Plan::Change(change) => {
                ResponseFuture::new(call.change(*change, invalidate_on, request))
            }
        }
    }
}

impl Caching {
    fn plan<B: Body>(&self, request: &Request<B>) -> Planned {
        self.rules.route(request, |routed| Planned {
            plan: routed.plan(request),
            tenant: routed.tenant_of_change(),
            invalidate_on: routed.policy.invalidate_on.clone(),
            head: routed
                .policy
                .store_if
                .is_some()
                .then(|| without_body(request)),
            route: routed.name(request),
        })
    }

    /// Whether the route's `store_if` agrees.
    fn may_store(&self, head: Option<&Request<()>>, answer: &response::Parts) -> bool {
        let Some(head) = head else { return true };
        self.rules.route(head, |routed| {
            routed
                .policy
                .store_if
                .as_ref()
                .is_none_or(|rule| rule.0(&routed.head, answer))
        })
    }

    fn explained<B>(&self, mut response: Response<B>, status: CacheStatus) -> Response<B> {
        if self.rules.config.cache_status {
            status.add_to(response.headers_mut());
        }
        response
    }
}

/// One request on its way through the layer.
struct Call<S> {
    cache: Caching,
    inner: S,
    tenant: Option<String>,
    route: Option<String>,
}

/// An answer of the inner service, and what there is to know about how it came about.
struct Answered<B> {
    response: Response<B>,
    remarks: Remarks,
    guard: ChangeGuard,
    mark: Mark,
}

impl<S> Call<S> {
    /// Calls the inner service. What the handler says it has changed is seen to, however the call ends.
    async fn ask_inner<RequestBody, B>(
        &mut self,
        mut request: Request<RequestBody>,
        scopes: Vec<Scope>,
        learned: Option<Learned>,
    ) -> Result<Answered<B>, S::Error>
    where
        S: Service<Request<RequestBody>, Response = Response<B>>,
    {
        let engine = &self.cache.cache.engine;
        let mark = Mark::leave(request.extensions_mut(), engine, learned);
        let scope = CacheScope::active();
        request.extensions_mut().insert(scope.clone());
        request.extensions_mut().insert(self.cache.cache.clone());
        let guard = ChangeGuard::armed(engine.clone(), scopes, scope.clone(), self.tenant.clone());
        match self.inner.call(request).await {
            Ok(mut response) => {
                let remarks = scope.and(Remarks::of(&response));
                remarks.leave_with(&mut response);
                Ok(Answered {
                    response,
                    remarks,
                    guard,
                    mark,
                })
            }
            Err(error) => {
                if mark.is_claimed_as_change() {
                    guard.disarm();
                } else {
                    guard.commit([]).await;
                }
                Err(error)
            }
        }
    }

    /// A request that is neither looked up nor stored.
    async fn pass<RequestBody, B>(
        mut self,
        reason: Bypass,
        request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody<B>>, S::Error>
    where
        S: Service<Request<RequestBody>, Response = Response<B>>,
    {
        Mark::claim(request.extensions(), &self.cache.cache.engine, false);
        let Answered {
            response,
            remarks,
            guard,
            mark,
        } = self.ask_inner(request, Vec::new(), None).await?;
        let response = response.map(ResponseBody::passed);
        if mark.is_claimed() {
            guard.disarm();
            return Ok(response);
        }
        guard.commit(remarks.invalidates).await;
        Ok(self.passed(response, reason))
    }

    fn passed<B>(&self, response: Response<B>, reason: Bypass) -> Response<B> {
        self.cache.cache.engine.count_bypass();
        self.cache
            .rules
            .explain_bypass(self.route.as_deref(), reason);
        let status = response.status();
        self.cache
            .explained(response, CacheStatus::Bypass { status, reason })
    }

    async fn read<RequestBody, B>(
        mut self,
        read: Read,
        head: Option<Request<()>>,
        request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody<B>>, S::Error>
    where
        S: Service<Request<RequestBody>, Response = Response<B>>,
        B: Body + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let engine = self.cache.cache.engine.clone();
        let outer = Mark::claim(request.extensions(), &engine, false);
        let learned = match outer.and_then(|outer| outer.learned(read.key)) {
            Some(learned) => learned,
            None => match engine.ask(read.key).await {
                Asked::Hit(entry) => {
                    engine.count_hit();
                    return Ok(self.answer(entry, &read));
                }
                Asked::Miss(fill) => Learned::Missing(fill),
                Asked::Unusable(reason) => Learned::Unusable(reason),
            },
        };
        let unusable = match &learned {
            Learned::Unusable(reason) => Some(*reason),
            Learned::Missing(_) => None,
        };
        let Answered {
            response,
            mut remarks,
            guard,
            mark,
        } = self.ask_inner(request, Vec::new(), Some(learned)).await?;
        if mark.is_claimed() {
            guard.disarm();
            return Ok(response.map(ResponseBody::passed));
        }
        guard.commit(std::mem::take(&mut remarks.invalidates)).await;
        match (unusable, mark.take_back()) {
            (None, Some(fill)) => {
                engine.count_miss();
                Ok(self
                    .store(fill, read, head.as_ref(), response, remarks)
                    .await)
            }
            (reason, _) => Ok(self.passed(
                response.map(ResponseBody::passed),
                reason.unwrap_or(Bypass::Store),
            )),
        }
    }

    /// The answer to a request that missed, which is stored if it may be.
    async fn store<B>(
        self,
        fill: Fill,
        mut read: Read,
        request: Option<&Request<()>>,
        response: Response<B>,
        remarks: Remarks,
    ) -> Response<ResponseBody<B>>
    where
        B: Body + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let status = response.status();
        let (mut head, body) = response.into_parts();
        let received = SystemTime::now();
        let announced = content_length(&head.headers);
        match self.storable(&mut read, request, &head, remarks, received) {
            Err(reason) => {
                self.cache
                    .rules
                    .explain_not_stored(self.route.as_deref(), reason);
                let response = Response::from_parts(head, ResponseBody::passed(body));
                self.cache
                    .explained(response, CacheStatus::NotStored { status, reason })
            }
            Ok(freshness) => {
                let stored_head = encode_head(status, &stored_fields(&head.headers, received));
                if read.is_personal {
                    add_client_cache(&mut head.headers, &read.client_cache);
                }
                let Read {
                    scopes,
                    authority,
                    path,
                    tenant,
                    max_body,
                    ..
                } = read;
                let storing = fill.begin(
                    Label {
                        scopes,
                        authority,
                        path,
                        tenant,
                    },
                    freshness,
                    stored_head,
                );
                let body = tee(
                    body,
                    storing,
                    Limits {
                        max: max_body,
                        announced,
                    },
                )
                .await;
                self.cache.explained(
                    Response::from_parts(head, body),
                    CacheStatus::Stored { status },
                )
            }
        }
    }

    /// Whether the answer may be stored; adds the dependencies that the handler named.
    fn storable(
        &self,
        read: &mut Read,
        request: Option<&Request<()>>,
        head: &response::Parts,
        remarks: Remarks,
        received: SystemTime,
    ) -> Result<Freshness, NotStored> {
        if remarks.no_store || remarks.ttl.is_some_and(|ttl| ttl.is_zero()) {
            return Err(NotStored::NoStore);
        }
        read.lifetimes.at_run_time = remarks.ttl;
        let freshness = judge(head, read.lifetimes, received)?;
        let tenant = read.tenant.as_deref();
        read.scopes.extend(
            remarks
                .depends_on
                .into_iter()
                .map(|scope| scope.for_tenant(tenant)),
        );
        read.scopes.sort();
        read.scopes.dedup();
        let own_scopes = 1 + usize::from(read.tenant.is_some());
        let too_large =
            content_length(&head.headers).is_some_and(|length| length > read.max_body as u64);
        let refusals = [
            (read.head_only, NotStored::Head),
            (too_large, NotStored::TooLarge),
            (
                read.scopes.len() > MAX_DEPENDENCIES + own_scopes,
                NotStored::TooManyDependencies,
            ),
            (!self.cache.may_store(request, head), NotStored::Condition),
        ];
        refusals
            .into_iter()
            .find_map(|(applies, reason)| applies.then_some(reason))
            .map_or(Ok(freshness), Err)
    }

    fn answer<B>(&self, entry: Entry, read: &Read) -> Response<ResponseBody<B>> {
        let Entry {
            status,
            headers,
            body,
            age,
            ttl,
        } = entry;
        let length = body.len();
        let mut response = Response::new(if read.head_only {
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
        if read.is_personal {
            add_client_cache(response.headers_mut(), &read.client_cache);
        }
        self.cache.explained(response, CacheStatus::Hit { ttl })
    }

    /// An unsafe request: what it may have changed is invalidated before the client has the answer.
    async fn change<RequestBody, B>(
        mut self,
        change: Change,
        invalidate_on: Option<StatusRule>,
        request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody<B>>, S::Error>
    where
        S: Service<Request<RequestBody>, Response = Response<B>>,
    {
        let Change {
            scopes,
            uri,
            authority,
        } = change;
        Mark::claim(request.extensions(), &self.cache.cache.engine, true);
        let Answered {
            response,
            remarks,
            mut guard,
            mark,
        } = self.ask_inner(request, scopes, None).await?;
        let response = response.map(ResponseBody::passed);
        if mark.is_claimed_as_change() {
            guard.disarm();
            return Ok(response);
        }
        let status = response.status();
        let mut more = remarks.invalidates;
        let changed = invalidate_on.map_or(!says_unchanged(status), |rule| rule.0(status));
        if changed {
            let paths = authority
                .iter()
                .flat_map(|authority| linked_paths(response.headers(), &uri, authority));
            more.extend(paths.map(|path| Scope::uri(authority.as_deref(), &path)));
        } else {
            guard.only_what_is_said();
        }
        guard.commit(more).await;
        if mark.is_claimed() {
            return Ok(response);
        }
        Ok(self.passed(response, Bypass::Method))
    }
}

/// `None` also for a value that says nothing clear: the body is then as long as it turns out to be.
fn content_length(headers: &HeaderMap<HeaderValue>) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn without_body<B>(request: &Request<B>) -> Request<()> {
    let mut head = Request::new(());
    *head.method_mut() = request.method().clone();
    *head.uri_mut() = request.uri().clone();
    *head.version_mut() = request.version();
    *head.headers_mut() = request.headers().clone();
    *head.extensions_mut() = request.extensions().clone();
    head
}
