//! A request that may be answered from the store.
//!
//! 1. What is stored is served, refreshed, revalidated or replaced, as [`reuse`](crate::http::reuse) decides.
//! 2. Every fill goes through `Call::fill`: on a miss, to revalidate, and in the background.
//! 3. A stale answer stands in for an error of the inner service where somebody asked for that.
//! 4. The client's own preconditions and ranges are answered from whatever comes out of it.

mod fill;

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use http::{HeaderMap, HeaderName, Request, Response, StatusCode};
use http_body::Body;
use tower_service::Service;

use crate::answer::Outcome;
use crate::body::ResponseBody;
use crate::call::{Caching, Call};
use crate::engine::{Asked, Entry, Fill, Question, Recalled, Refreshing, Shared};
use crate::error::BoxError;
use crate::http::cache_control::RequestDirectives;
use crate::http::cache_status::{Bypass, CacheStatus, Forward};
use crate::http::conditional::{conditionals_of, take_conditionals};
use crate::http::partial::{self, completion};
use crate::http::reuse::{Condition, Reuse, decide};
use crate::http::storable::directives;
use crate::http::vary::{Vary, normalised, vary_of};
use crate::key::Key;
use crate::nesting::{Learned, Mark};
use crate::plan::Read;

pub(crate) use fill::Errand;
use fill::prepare;

impl Caching {
    /// Asks the store, unless an outer layer has learned that it cannot be asked.
    async fn look_up(&self, read: &Read, headers: &HeaderMap, outer: Option<Mark>) -> Learned {
        if let Some(reason) = outer.and_then(|outer| outer.unusable()) {
            return Learned::Unusable(reason);
        }
        let variant = |fields: &[HeaderName]| variant_key(read.key, fields, headers);
        let invalid_too = read.policy.serve_invalidated.is_some();
        match self
            .cache
            .engine
            .ask(Question {
                key: read.key,
                variant: &variant,
                part: read.may_be_partial().then(|| part_key(read.key)),
                invalid_too,
            })
            .await
        {
            Asked::Known(fill) => Learned::Known(fill),
            Asked::Unusable(reason) => Learned::Unusable(reason),
        }
    }

    /// What is in memory, if it can be served as it is. An inner layer of the engine goes by what the outer one has found.
    async fn recall(
        &self,
        read: &Read,
        headers: &HeaderMap,
        asks: &RequestDirectives,
        is_inner: bool,
    ) -> Recalled {
        if is_inner {
            return Recalled::Nothing;
        }
        let variant = |fields: &[HeaderName]| variant_key(read.key, fields, headers);
        let is_of_use = |entry: &Entry| self.would_serve(entry, read, headers, asks);
        let engine = &self.cache.engine;
        let staleness = read.policy.staleness_limit();
        engine
            .recall(read.key, &variant, staleness, is_of_use)
            .await
    }

    /// Waits for somebody else's fill, or lets others wait for this one.
    async fn share(
        &self,
        read: &Read,
        headers: &HeaderMap,
        asks: &RequestDirectives,
        fill: Fill,
    ) -> Shared {
        let variant = |fields: &[HeaderName]| variant_key(read.key, fields, headers);
        let question = Question {
            key: read.key,
            variant: &variant,
            part: None,
            invalid_too: read.policy.serve_invalidated.is_some(),
        };
        let is_of_use = |entry: &Entry| self.would_serve(entry, read, headers, asks);
        self.cache.engine.share(fill, &question, &is_of_use).await
    }

    /// Whether an entry is the one that the request selects, and can be served as it is.
    fn would_serve(
        &self,
        entry: &Entry,
        read: &Read,
        headers: &HeaderMap,
        asks: &RequestDirectives,
    ) -> bool {
        let selects =
            entry.key == read.key || entry.key == selected(read.key, &entry.headers, headers);
        selects && self.reuse(entry, read, asks) == Reuse::Serve
    }

    fn reuse(&self, entry: &Entry, read: &Read, asks: &RequestDirectives) -> Reuse {
        let says = directives(&entry.headers, read.policy.targets());
        let decided = |condition| decide(condition, &says, asks, read.policy.stale);
        let if_valid = Condition {
            valid: true,
            ..entry.condition
        };
        match read.policy.serve_invalidated {
            // on this route's own responsibility
            Some(window) if !entry.condition.valid && decided(if_valid) != Reuse::Revalidate => {
                let known = self.cache.engine.known_invalid_for(entry);
                if known.is_some_and(|known| known < window) {
                    Reuse::ServeAndRefresh
                } else {
                    Reuse::Revalidate
                }
            }
            _ => match decided(entry.condition) {
                Reuse::Serve if is_due(entry, read.early) => Reuse::ServeAndRefresh,
                decided => decided,
            },
        }
    }
}

/// `XFetch`: how many times its cost before the end an entry is refreshed by this request. An exponential variate.
fn earliness(beta: f64) -> f64 {
    let random = RandomState::new().hash_one(0) >> 11;
    // from 0, exclusive, to 1
    let uniform = (random + 1) as f64 / (1u64 << 53) as f64;
    -beta * uniform.ln()
}

fn is_due(entry: &Entry, early: f64) -> bool {
    early > 0.0 && entry.cost.as_secs_f64() * early >= entry.condition.fresh_for.as_secs_f64()
}

impl<S> Call<S> {
    pub(crate) async fn read<RequestBody, B>(
        self,
        mut read: Box<Read>,
        head: Option<Request<()>>,
        mut request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody<B>>, S::Error>
    where
        S: Service<Request<RequestBody>, Response = Response<B>> + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Send + 'static,
        RequestBody: Send + 'static,
        B: Body + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let outer = Mark::claim(&mut request, &self.cache.cache.engine, self.is_unsafe);
        let asks = match read.policy.request_directives {
            Some(true) => RequestDirectives::of(request.headers()),
            _ => RequestDirectives::default(),
        };
        read.early = read.policy.early_refresh.map_or(0.0, earliness);
        let refused = match self
            .cache
            .recall(&read, request.headers(), &asks, outer.is_some())
            .await
        {
            Recalled::Entry(entry) => {
                self.cache.cache.engine.count_use(read.key, entry.key);
                let conditionals = conditionals_of(request.headers()).filter(|_| !read.is_search);
                return Ok(self.hit(
                    (&entry).into(),
                    entry.condition,
                    &read,
                    conditionals.as_ref(),
                ));
            }
            Recalled::Nothing => None,
            Recalled::Unusable(reason) => Some(reason),
        };
        // boxed: what follows is large, and a hit in memory does not need the room
        Box::pin(self.read_on(read, asks, head, request, outer, refused)).await
    }

    /// What is not in memory; `refused`: why the store is not to be asked.
    async fn read_on<RequestBody, B>(
        mut self,
        read: Box<Read>,
        asks: RequestDirectives,
        head: Option<Request<()>>,
        request: Request<RequestBody>,
        outer: Option<Mark>,
        refused: Option<Bypass>,
    ) -> Result<Response<ResponseBody<B>>, S::Error>
    where
        S: Service<Request<RequestBody>, Response = Response<B>> + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Send + 'static,
        RequestBody: Send + 'static,
        B: Body + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let learned = match refused {
            None => self.cache.look_up(&read, request.headers(), outer).await,
            Some(reason) => Learned::Unusable(reason),
        };
        let fill = match learned {
            Learned::Known(fill) => fill,
            Learned::Unusable(_) if asks.only_if_cached => return Ok(self.not_cached()),
            Learned::Unusable(reason) => {
                return self
                    .pass_on(reason, Some(Learned::Unusable(reason)), request)
                    .await;
            }
        };
        let stored = fill.stored();
        let part = stored.clone().filter(|entry| {
            entry.is_part() && self.cache.reuse(entry, &read, &asks) == Reuse::Serve
        });
        let stored = stored.filter(|entry| !entry.is_part());
        if let Some(answer) = part
            .as_ref()
            .and_then(|part| self.hit_within(part, &read, request.headers()))
        {
            return Ok(answer);
        }
        let reuse = stored
            .as_deref()
            .map(|entry| self.cache.reuse(entry, &read, &asks));
        if let (Some(entry), Some(reuse @ (Reuse::Serve | Reuse::ServeAndRefresh))) =
            (&stored, reuse)
        {
            self.cache.cache.engine.count_use(read.key, entry.key);
            let conditionals = conditionals_of(request.headers()).filter(|_| !read.is_search);
            let answer = self.hit(
                entry.as_ref().into(),
                entry.condition,
                &read,
                conditionals.as_ref(),
            );
            if reuse == Reuse::ServeAndRefresh {
                self.refresh_in_the_background(*read, head, request, fill, stored);
            }
            return Ok(answer);
        }
        if asks.only_if_cached {
            return Ok(self.not_cached());
        }
        let why = match &stored {
            None => Forward::Miss,
            Some(_) if asks.no_cache || asks.max_age.is_some() || asks.min_fresh.is_some() => {
                Forward::Request
            }
            Some(_) => Forward::Stale,
        };
        let asks_alone = why == Forward::Request
            || asks.no_store
            || read.head_only
            || part.is_some()
            || (stored.is_some() && read.policy.stale_if_error_after.is_some());
        let (fill, stored) = if asks_alone {
            (fill, stored)
        } else {
            match self
                .cache
                .share(&read, request.headers(), &asks, fill)
                .await
            {
                Shared::Fill(fill) => {
                    let stored = fill.stored().filter(|entry| !entry.is_part());
                    (fill, stored)
                }
                Shared::Entry(entry) => {
                    self.cache.cache.engine.count_use(read.key, entry.key);
                    let conditionals =
                        conditionals_of(request.headers()).filter(|_| !read.is_search);
                    return Ok(self.collapsed(&entry, why, &read, conditionals.as_ref()));
                }
                Shared::Unusable(reason) => {
                    return self
                        .pass_on(reason, Some(Learned::Unusable(reason)), request)
                        .await;
                }
            }
        };
        let (mut errand, mut request) = prepare(*read, head, request, stored, why, asks.no_store);
        let is_whole = conditionals_of(request.headers()).is_none();
        if let Some((part, fields)) = part
            .filter(|_| is_whole)
            .and_then(|p| completion(&p.headers).map(|f| (p, f)))
        {
            request.headers_mut().extend(fields);
            errand.completes = Some(part);
        }
        self.fill_patiently(errand, request, fill).await
    }

    /// A range within a stored part.
    fn hit_within<B>(
        &self,
        part: &Entry,
        read: &Read,
        request: &HeaderMap,
    ) -> Option<Response<ResponseBody<B>>> {
        let (headers, body) = partial::answer(request, &part.headers, &part.body)?;
        self.cache.cache.engine.count_use(part.key, part.key);
        let outcome = Outcome {
            status: part.status,
            headers,
            body,
            age: Some(part.condition.age),
        };
        Some(self.hit(outcome, part.condition, read, None))
    }

    fn hit<B>(
        &self,
        outcome: Outcome,
        condition: Condition,
        read: &Read,
        conditionals: Option<&HeaderMap>,
    ) -> Response<ResponseBody<B>> {
        self.cache.cache.engine.count_hit();
        let response = self.whole(read, outcome).answer(conditionals);
        self.cache
            .explained(response, CacheStatus::Hit { condition })
    }

    /// Somebody else's fill.
    fn collapsed<B>(
        &self,
        entry: &Entry,
        why: Forward,
        read: &Read,
        conditionals: Option<&HeaderMap>,
    ) -> Response<ResponseBody<B>> {
        self.cache.cache.engine.count_hit();
        let response = self.whole(read, entry.into()).answer(conditionals);
        self.cache
            .explained(response, CacheStatus::Collapsed { why })
    }

    /// RFC 9111 §5.2.1.7.
    fn not_cached<B>(&self) -> Response<ResponseBody<B>> {
        let mut response = Response::new(ResponseBody::empty());
        *response.status_mut() = StatusCode::GATEWAY_TIMEOUT;
        self.cache.cache.engine.count_miss();
        self.cache.explained(response, CacheStatus::OnlyIfCached)
    }

    /// Runs the request that found a stale answer, extensions included, while its client has that answer.
    fn refresh_in_the_background<RequestBody, B>(
        self,
        read: Read,
        head: Option<Request<()>>,
        mut request: Request<RequestBody>,
        fill: Fill,
        stored: Option<Arc<Entry>>,
    ) where
        S: Service<Request<RequestBody>, Response = Response<B>> + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Send + 'static,
        RequestBody: Send + 'static,
        B: Body + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let key = stored.as_deref().map_or(read.key, |entry| entry.key);
        let Some(refreshing) = self.cache.cache.engine.begin_refresh(key) else {
            return;
        };
        // nobody waits for the answer, and what the client asked for is not what is to be stored
        take_conditionals(request.headers_mut());
        let (errand, request) = prepare(read, head, request, stored, Forward::Stale, false);
        tokio::spawn(refresh(self, errand, request, fill, refreshing));
    }

    /// A fill; after the route's patience has run out, a stale answer goes out and the fill goes on alone.
    async fn fill_patiently<RequestBody, B>(
        self,
        errand: Errand,
        request: Request<RequestBody>,
        fill: Fill,
    ) -> Result<Response<ResponseBody<B>>, S::Error>
    where
        S: Service<Request<RequestBody>, Response = Response<B>> + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Send + 'static,
        RequestBody: Send + 'static,
        B: Body + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let patience = errand.read.policy.stale_if_error_after;
        let stand_in = errand.stand_in().zip(patience).map(|(entry, patience)| {
            let answer: Response<ResponseBody<B>> = self.stale(entry, &errand, None);
            (answer, patience)
        });
        let Some((stale, patience)) = stand_in else {
            return self.fill(errand, request, fill).await;
        };
        let pending = self.cache.cache.engine.begin_work();
        let mut filling = tokio::spawn(async move {
            let answer = self.fill(errand, request, fill).await;
            drop(pending);
            answer
        });
        match tokio::time::timeout(patience, &mut filling).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(stopped)) if stopped.is_panic() => {
                std::panic::resume_unwind(stopped.into_panic())
            }
            // the runtime is shutting down, or the patience has run out
            Ok(Err(_)) | Err(_) => Ok(stale),
        }
    }
}

async fn refresh<S, RequestBody, B>(
    call: Call<S>,
    errand: Errand,
    request: Request<RequestBody>,
    mut fill: Fill,
    refreshing: Refreshing,
) where
    S: Service<Request<RequestBody>, Response = Response<B>>,
    B: Body + Send + 'static,
    B::Error: Into<BoxError>,
{
    let engine = call.cache.cache.engine.clone();
    if !engine.lead_in_the_background(&mut fill).await {
        return;
    }
    // nobody reads the body: a driver, which counts as work of its own, reads it to the end
    drop(call.fill(errand, request, fill).await);
    drop(refreshing);
}

/// The key under which this request finds an answer with these fields.
fn selected(key: Key, answer: &HeaderMap, request: &HeaderMap) -> Key {
    match vary_of(answer) {
        Vary::Fields(fields) => variant_key(key, &fields, request),
        Vary::Nothing | Vary::Everything => key,
    }
}

/// Under which key a part of an answer stands.
fn part_key(key: Key) -> Key {
    key.variant([(":part", None)])
}

/// The key of the variant that this request selects (RFC 9111 §4.1).
fn variant_key(key: Key, fields: &[HeaderName], request: &HeaderMap) -> Key {
    key.variant(
        fields
            .iter()
            .map(|name| (name.as_str(), normalised(request, name))),
    )
}
