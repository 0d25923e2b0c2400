//! One request on its way through a layer: passing it on, and seeing to what it changes. What is looked up and
//! stored is in [`read`](crate::read).

use std::sync::Arc;

use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Request, Response, StatusCode, response};
use http_body::Body;
use tower_service::Service;

use crate::body::ResponseBody;
use crate::cache::PgCache;
use crate::domain::{Domain, Scope};
use crate::engine::ChangeGuard;
use crate::error::BoxError;
use crate::http::cache_status::{Bypass, CacheStatus};
use crate::http::invalidation::{is_safe, linked_paths, represents_target, says_unchanged};
use crate::http::stored_head::Added;
use crate::http::structured::{groups, is_too_long};
use crate::nesting::{Learned, Mark};
use crate::plan::{Change, Plan, Subject};
use crate::rules::Rules;
use crate::runtime::{CacheScope, Remarks};

const CACHE_GROUP_INVALIDATION: HeaderName = HeaderName::from_static("cache-group-invalidation");

/// What a request in progress needs of its layer.
#[derive(Debug, Clone)]
pub(crate) struct Caching {
    pub(crate) cache: PgCache,
    pub(crate) rules: Arc<Rules>,
}

impl Caching {
    pub(crate) fn plan<B: Body + 'static>(&self, request: &Request<B>) -> Plan {
        let depth = Mark::depth(request.extensions(), &self.cache.engine);
        self.rules
            .route(request, |routed| routed.plan(request, depth))
    }

    /// What the answer to a request that may be looked up is stored as.
    #[allow(clippy::redundant_closure_for_method_calls)] // the method is for one lifetime only
    pub(crate) fn subject<B>(&self, request: &Request<B>) -> Result<Subject, Bypass> {
        self.rules.route(request, |routed| routed.subject())
    }

    /// Whether the route's `store_if` agrees.
    pub(crate) fn may_store(&self, head: Option<&Request<()>>, answer: &response::Parts) -> bool {
        let Some(head) = head else { return true };
        self.rules.route(head, |routed| {
            routed
                .policy
                .store_if
                .as_ref()
                .is_none_or(|rule| rule.0(&routed.head, answer))
        })
    }

    /// What an answer says of this cache, if it shall.
    pub(crate) fn said(&self, status: CacheStatus) -> Option<HeaderValue> {
        let says = self.rules.config.cache_status;
        says.then(|| status.last_member()).flatten()
    }

    pub(crate) fn explained<B>(
        &self,
        mut response: Response<B>,
        status: CacheStatus,
    ) -> Response<B> {
        Added::status(self.said(status)).append_to(response.headers_mut());
        response
    }
}

/// One request on its way through the layer.
pub(crate) struct Call<S> {
    pub(crate) cache: Caching,
    pub(crate) inner: S,
    /// The tenant of what the request changes; `None` is every tenant.
    tenant: Option<String>,
    /// The row of the table, or axum's pattern.
    pub(crate) route: Option<String>,
    /// The request's head, if the route's `store_if` wants to see it later.
    pub(crate) head: Option<Request<()>>,
    /// By its method; where the route says that it only reads, there is nothing for an outer layer to do.
    is_unsafe: bool,
}

/// An answer of the inner service, and what there is to know about how it came about.
pub(crate) struct Answered<B> {
    pub(crate) response: Response<B>,
    pub(crate) remarks: Remarks,
    pub(crate) guard: ChangeGuard,
    pub(crate) mark: Mark,
}

impl<B> Answered<B> {
    /// The answer to a request that was passed on. What the handler said it has changed is seen to, if an inner layer has
    /// not claimed the request, and with it that; whether one has.
    pub(crate) async fn seen_to(self) -> (Response<ResponseBody<B>>, bool) {
        let response = self.response.map(ResponseBody::passed);
        let is_claimed = self.mark.is_claimed();
        if is_claimed {
            self.guard.disarm();
        } else {
            self.guard.commit(self.remarks.invalidates).await;
        }
        (response, is_claimed)
    }
}

impl<S> Call<S> {
    pub(crate) fn new<B>(cache: Caching, inner: S, request: &Request<B>) -> Self {
        let (tenant, route, head) = cache.rules.route(request, |routed| {
            let wants_head = routed.policy.store_if.is_some();
            (
                routed.tenant_of_change(),
                routed.name(request),
                wants_head.then(|| without_body(request)),
            )
        });
        Self {
            cache,
            inner,
            tenant,
            route,
            head,
            is_unsafe: !is_safe(request.method()),
        }
    }

    /// Calls the inner service. `conditionals`: what the client asked, if the request no longer says it. What the handler says it has changed is seen to, however the call ends.
    pub(crate) async fn ask_inner<RequestBody, B>(
        &mut self,
        mut request: Request<RequestBody>,
        scopes: Vec<Scope>,
        learned: Option<Learned>,
        conditionals: Option<HeaderMap>,
    ) -> Result<Answered<B>, (S::Error, Mark)>
    where
        S: Service<Request<RequestBody>, Response = Response<B>>,
    {
        let engine = &self.cache.cache.engine;
        let mark = Mark::leave(request.extensions_mut(), engine, learned, conditionals);
        let scope = CacheScope::active();
        request.extensions_mut().insert(scope.clone());
        request.extensions_mut().insert(self.cache.cache.clone());
        let guard = ChangeGuard::armed(engine.clone(), scopes, scope.clone(), self.tenant.clone());
        let mut unanswered = mark.unanswered();
        let answer = self.inner.call(request).await;
        unanswered.is_answered();
        match answer {
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
                Err((error, mark))
            }
        }
    }

    /// A request that is neither looked up nor stored.
    pub(crate) async fn pass<RequestBody, B>(
        mut self,
        reason: Bypass,
        mut request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody<B>>, S::Error>
    where
        S: Service<Request<RequestBody>, Response = Response<B>>,
    {
        Mark::claim(&mut request, &self.cache.cache.engine, self.is_unsafe);
        self.pass_on(reason, None, request).await
    }

    /// The same, of a request that is claimed; `learned`: what an inner layer need not find out again.
    pub(crate) async fn pass_on<RequestBody, B>(
        &mut self,
        reason: Bypass,
        learned: Option<Learned>,
        request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody<B>>, S::Error>
    where
        S: Service<Request<RequestBody>, Response = Response<B>>,
    {
        let answered = self.ask_inner(request, Vec::new(), learned, None).await;
        let answered = answered.map_err(|(error, _)| error)?;
        let (response, is_claimed) = answered.seen_to().await;
        if is_claimed {
            return Ok(response);
        }
        Ok(self.passed(response, reason))
    }

    pub(crate) fn passed<B>(&self, response: Response<B>, reason: Bypass) -> Response<B> {
        self.cache.cache.engine.count_bypass();
        self.cache
            .rules
            .explain_bypass(self.route.as_deref(), reason);
        let status = response.status();
        self.cache
            .explained(response, CacheStatus::Bypass { status, reason })
    }

    /// An unsafe request: what it may have changed is invalidated before the client has the answer.
    pub(crate) async fn change<RequestBody, B>(
        mut self,
        mut change: Change,
        mut request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody<B>>, S::Error>
    where
        S: Service<Request<RequestBody>, Response = Response<B>>,
        B: Body + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let later = match change.later_gets.take() {
            Some((read, subject)) => {
                self.cache
                    .begin_later(read, subject, request.headers())
                    .await
            }
            None => None,
        };
        Mark::claim(&mut request, &self.cache.cache.engine, self.is_unsafe);
        let answered = self
            .ask_inner(request, change.scopes.clone(), None, None)
            .await;
        let Answered {
            response,
            remarks,
            mut guard,
            mark,
        } = answered.map_err(|(error, _)| error)?;
        if mark.is_claimed_as_change() {
            guard.disarm();
            return Ok(response.map(ResponseBody::passed));
        }
        let status = response.status();
        let mut remarks = remarks;
        let mut more = std::mem::take(&mut remarks.invalidates);
        if change
            .invalidate_on
            .as_ref()
            .map_or(!says_unchanged(status), |rule| rule.0(status))
        {
            more.extend(named_by_the_answer(response.headers(), &change));
        } else {
            guard.only_what_is_said();
        }
        let committed = guard.commit(more).await;
        if mark.is_claimed() {
            return Ok(response.map(ResponseBody::passed));
        }
        let represents = status == StatusCode::OK
            && change.authority.as_deref().is_some_and(|authority| {
                represents_target(response.headers(), &change.uri, authority)
            });
        match (later, committed) {
            (Some(later), Some(xid)) if represents => {
                Ok(self.store_later(later, xid, response, remarks).await)
            }
            _ => Ok(self.passed(response.map(ResponseBody::passed), Bypass::Method)),
        }
    }
}

/// RFC 9111 §4.4 and RFC 9875 §3: what the answer to an unsafe request names besides the target.
fn named_by_the_answer(headers: &HeaderMap, change: &Change) -> Vec<Scope> {
    let Some(authority) = change.authority.as_deref() else {
        return Vec::new();
    };
    let paths = linked_paths(headers, &change.uri, authority);
    let mut scopes: Vec<Scope> = paths
        .iter()
        .map(|path| Scope::uri(Some(authority), path))
        .collect();
    let mut groups = groups(headers, &CACHE_GROUP_INVALIDATION);
    // nothing is stored in the others
    groups.retain(|group| !is_too_long(group));
    scopes.extend(group_scopes(&groups, authority, change.groups_as_domains));
    scopes
}

/// The scopes of groups of an origin and, where the route says so, of the domains that they name.
pub(crate) fn group_scopes<'a>(
    groups: &'a [String],
    authority: &'a str,
    as_domains: bool,
) -> impl Iterator<Item = Scope> + 'a {
    let domain = move |group: &String| {
        as_domains
            .then(|| Domain::try_from(group.as_str()).ok())
            .flatten()
            .map(Scope::from)
    };
    groups
        .iter()
        .flat_map(move |group| [Some(Scope::group(authority, group)), domain(group)])
        .flatten()
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
