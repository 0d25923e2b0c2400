//! A request that may be answered from the store.
//!
//! 1. What is stored is served, refreshed, revalidated or replaced, as [`reuse`](crate::http::reuse) decides.
//! 2. Every fill goes through `Call::fill`: on a miss, to revalidate, and in the background.
//! 3. A stale answer stands in for an error of the inner service where somebody asked for that.
//! 4. While the store cannot be asked, what is in memory may do: see [`store_down`].
//! 5. The client's own preconditions and ranges are answered from whatever comes out of it.

mod errand;
mod fill;
mod store_down;
mod storing;

use std::borrow::Borrow;
use std::future::Future;
use std::sync::Arc;

use http::header::VARY;
use http::{HeaderMap, HeaderName, Request, Response, StatusCode};
use http_body::Body;
use tower_service::Service;

use crate::answer::{Fields, Outcome};
use crate::body::ResponseBody;
use crate::call::{Caching, Call};
use crate::engine::{Asked, Entry, Fill, Question, Recalled, Refreshing, Shared};
use crate::error::BoxError;
use crate::future::ResponseFuture;
use crate::http::cache_control::RequestDirectives;
use crate::http::cache_status::{Bypass, CacheStatus, Forward};
use crate::http::conditional::{conditionals_of, take_conditionals};
use crate::http::invalidation::is_safe;
use crate::http::partial;
use crate::http::reuse::{Condition, Reuse, decide};
use crate::http::storable::directives;
use crate::http::stored_head::Head;
use crate::http::vary::{Vary, normalised, vary};
use crate::key::Key;
use crate::nesting::{Learned, Mark};
use crate::plan::{Read, Subject};

pub(crate) use errand::Errand;
use errand::prepare;

impl Caching {
    /// The answer, if it is in memory and young enough for the route: nobody has to be asked or waited for.
    pub(crate) fn at_once<RequestBody, B>(
        &self,
        read: &Read,
        request: &Request<RequestBody>,
    ) -> Option<Response<ResponseBody<B>>> {
        let staleness = read.policy.staleness_limit();
        // an inner layer goes by what the outer one has found
        if staleness.is_zero() || read.depth > 0 {
            return None;
        }
        let headers = request.headers();
        let asks = read.asks(headers);
        let variant = |fields: &[HeaderName]| variant_key(read.key, fields, headers);
        let is_of_use = |entry: &Entry| self.would_serve(entry, read, headers, &asks);
        let engine = &self.cache.engine;
        let entry = engine.recall_at_once(read.key, &variant, staleness, is_of_use)?;
        Some(self.hit(&entry, read, headers))
    }

    /// Looks in memory; what is not there is looked up, and filled if need be.
    pub(crate) fn read<S, RequestBody, B>(
        self,
        inner: S,
        read: Read,
        mut request: Request<RequestBody>,
    ) -> ResponseFuture<B, S::Error>
    where
        S: Service<Request<RequestBody>, Response = Response<B>> + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Send + 'static,
        RequestBody: Send + 'static,
        B: Body + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let is_unsafe = !is_safe(request.method());
        let asks = read.asks(request.headers());
        let outer = Mark::claim(&mut request, &self.cache.engine, is_unsafe);
        if outer.is_some() || !self.cache.engine.remembers() {
            // an inner layer goes by what the outer one has found
            let refused = outer.and_then(|outer| outer.unusable());
            return ResponseFuture::new(self.look_further(inner, read, request, asks, refused));
        }
        ResponseFuture::new(async move {
            let refused = match self.recall(&read, request.headers(), &asks).await {
                Recalled::Entry(entry) => return Ok(self.hit(&entry, &read, request.headers())),
                Recalled::Nothing => None,
                Recalled::Unusable(reason) => Some(reason),
            };
            // boxed: a hit in memory does not need the room
            Box::pin(self.look_further(inner, read, request, asks, refused)).await
        })
    }

    /// What is not in memory. `refused`: why there is nothing to ask.
    #[allow(clippy::manual_async_fn)] // it says that it is `Send`
    fn look_further<S, RequestBody, B>(
        self,
        inner: S,
        read: Read,
        request: Request<RequestBody>,
        asks: RequestDirectives,
        refused: Option<Bypass>,
    ) -> impl Future<Output = Result<Response<ResponseBody<B>>, S::Error>> + Send
    where
        S: Service<Request<RequestBody>, Response = Response<B>> + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Send + 'static,
        RequestBody: Send + 'static,
        B: Body + Send + 'static,
        B::Error: Into<BoxError>,
    {
        async move {
            let asked = match refused {
                None => match self.look_for(&read, request.headers(), &asks).await {
                    Ok(entry) => return Ok(self.hit(entry, &read, request.headers())),
                    Err(asked) => asked,
                },
                Some(reason) => Asked::Unusable(reason),
            };
            if let Asked::Unusable(Bypass::Store) = asked {
                if let Some(answer) = self.unconfirmed(&read, request.headers(), &asks) {
                    return Ok(answer);
                }
            }
            let stored = match &asked {
                Asked::Known(fill) => fill.stored(),
                Asked::Unusable(_) => None,
            };
            // decided once: from the first look on it is known that a commit has invalidated it
            let stored = stored.map(|entry| {
                let reuse = self.reuse(&entry, &read, &asks);
                (entry, reuse)
            });
            if let Some((part, Reuse::Serve)) = &stored {
                if let Some(answer) = self.hit_within(part, &read, request.headers()) {
                    return Ok(answer);
                }
            }
            let call = Call::new(self, inner, &request);
            // boxed: a hit does not need the room
            Box::pin(call.read_on(read, asks, request, asked, stored)).await
        }
    }

    /// What is in memory, if it can be served as it is.
    async fn recall(&self, read: &Read, headers: &HeaderMap, asks: &RequestDirectives) -> Recalled {
        let variant = |fields: &[HeaderName]| variant_key(read.key, fields, headers);
        let is_of_use = |entry: &Entry| self.would_serve(entry, read, headers, asks);
        let engine = &self.cache.engine;
        let staleness = read.policy.staleness_limit();
        engine
            .recall(read.key, &variant, staleness, is_of_use)
            .await
    }

    /// What is stored, if it can be served as it is; else what there is to know.
    #[allow(clippy::manual_async_fn)] // that has room for its arguments twice
    fn look_for(
        &self,
        read: &Read,
        headers: &HeaderMap,
        asks: &RequestDirectives,
    ) -> impl Future<Output = Result<Entry, Asked>> + Send {
        async move {
            let variant = |fields: &[HeaderName]| variant_key(read.key, fields, headers);
            // what is invalid is decided on once: from the first look on it is known to be
            let is_of_use = |entry: &Entry| {
                entry.condition.valid
                    && !entry.is_part()
                    && self.reuse(entry, read, asks) == Reuse::Serve
            };
            let part = read.may_be_partial().then(|| part_key(read.key));
            let question = question(read, &variant, part);
            self.cache.engine.look_for(&question, is_of_use).await
        }
    }

    /// What is stored.
    async fn look_up(&self, read: &Read, headers: &HeaderMap) -> Asked {
        let variant = |fields: &[HeaderName]| variant_key(read.key, fields, headers);
        let part = read.may_be_partial().then(|| part_key(read.key));
        let question = question(read, &variant, part);
        self.cache.engine.ask(question).await
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
        let is_of_use = |entry: &Entry| self.would_serve(entry, read, headers, asks);
        let question = question(read, &variant, None);
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
        selects(entry, read, headers) && self.reuse(entry, read, asks) == Reuse::Serve
    }

    fn reuse(&self, entry: &Entry, read: &Read, asks: &RequestDirectives) -> Reuse {
        let says = || directives(&entry.head.fields(), read.policy.targets());
        let decided = |condition| decide(condition, says, asks, read.policy.stale);
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

fn is_due(entry: &Entry, early: f64) -> bool {
    early > 0.0 && entry.cost.as_secs_f64() * early >= entry.condition.fresh_for.as_secs_f64()
}

impl Caching {
    fn hit<B>(
        &self,
        entry: impl Borrow<Entry> + Into<Outcome>,
        read: &Read,
        request: &HeaderMap,
    ) -> Response<ResponseBody<B>> {
        let condition = entry.borrow().condition;
        self.served(entry, read, request, CacheStatus::Hit { condition })
    }

    /// A stored answer, or somebody else's.
    fn served<B>(
        &self,
        entry: impl Borrow<Entry> + Into<Outcome>,
        read: &Read,
        request: &HeaderMap,
        status: CacheStatus,
    ) -> Response<ResponseBody<B>> {
        self.cache.engine.count_hit(read.key, entry.borrow().key);
        let asks = read.may_be_conditional && !read.is_search;
        let conditionals = asks.then(|| conditionals_of(request)).flatten();
        let whole = read.whole(entry.into());
        whole.answer(conditionals.as_ref(), self.said(status))
    }

    /// A range within a stored part. `None` if the request wants more than that.
    fn hit_within<B>(
        &self,
        part: &Entry,
        read: &Read,
        request: &HeaderMap,
    ) -> Option<Response<ResponseBody<B>>> {
        let (headers, body) = partial::answer(request, &part.head.fields(), &part.body)?;
        let condition = part.condition;
        let outcome = Outcome {
            status: part.head.status,
            fields: Fields::Given(headers),
            body,
            age: Some(condition.age),
        };
        self.cache.engine.count_hit(part.key, part.key);
        let said = self.said(CacheStatus::Hit { condition });
        Some(read.whole(outcome).answer(None, said))
    }

    /// RFC 9111 §5.2.1.7.
    fn not_cached<B>(&self) -> Response<ResponseBody<B>> {
        let mut response = Response::new(ResponseBody::empty());
        *response.status_mut() = StatusCode::GATEWAY_TIMEOUT;
        self.cache.engine.count_miss();
        self.explained(response, CacheStatus::OnlyIfCached)
    }
}

impl<S> Call<S> {
    /// What cannot be served as it is.
    async fn read_on<RequestBody, B>(
        mut self,
        read: Read,
        asks: RequestDirectives,
        request: Request<RequestBody>,
        asked: Asked,
        stored: Option<(Arc<Entry>, Reuse)>,
    ) -> Result<Response<ResponseBody<B>>, S::Error>
    where
        S: Service<Request<RequestBody>, Response = Response<B>> + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Send + 'static,
        RequestBody: Send + 'static,
        B: Body + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let subject = match self.cache.subject(&request) {
            Ok(subject) => subject,
            Err(reason) => return self.pass_on(reason, None, request).await,
        };
        let fill = match asked {
            Asked::Known(fill) => *fill,
            Asked::Unusable(_) if asks.only_if_cached => return Ok(self.cache.not_cached()),
            Asked::Unusable(reason) => {
                return self.pass_without_store(&read, reason, request).await;
            }
        };
        let (part, stored) = match stored {
            Some((entry, reuse)) if entry.is_part() => {
                (Some(entry).filter(|_| reuse == Reuse::Serve), None)
            }
            Some((entry, Reuse::ServeAndRefresh)) => {
                let answer = self.cache.hit(&*entry, &read, request.headers());
                self.refresh_in_the_background(read, subject, request, fill, Some(entry));
                return Ok(answer);
            }
            Some((entry, _)) => (None, Some(entry)),
            None => (None, None),
        };
        if asks.only_if_cached {
            return Ok(self.cache.not_cached());
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
                    let status = CacheStatus::Collapsed { why };
                    return Ok(self.cache.served(&entry, &read, request.headers(), status));
                }
                Shared::Unusable(reason) => {
                    return self
                        .pass_on(reason, Some(Learned::Unusable(reason)), request)
                        .await;
                }
            }
        };
        let stored = (stored, fill.asked_at());
        let (mut errand, mut request) = prepare(read, subject, request, stored, why, asks.no_store);
        let is_whole = conditionals_of(request.headers()).is_none();
        if let Some(part) = part.filter(|_| is_whole) {
            errand.complete(part, &fill, request.headers_mut());
        }
        Box::pin(self.fill_patiently(errand, request, fill)).await
    }

    /// Runs the request that found a stale answer, extensions included, while its client has that answer.
    fn refresh_in_the_background<RequestBody, B>(
        self,
        read: Read,
        subject: Subject,
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
        let stored = (stored, fill.asked_at());
        let (errand, request) = prepare(read, subject, request, stored, Forward::Stale, false);
        tokio::spawn(refresh(self, errand, request, fill, refreshing));
    }

    /// A fill; after the route's patience has run out, a stale answer goes out and the fill goes on alone, unless too many do.
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
        let stand_in = patience.and_then(|patience| {
            let entry = errand.stand_in_after(patience)?;
            let answer: Response<ResponseBody<B>> = self.stale(entry, &errand, None);
            Some((answer, patience))
        });
        let Some((stale, patience)) = stand_in else {
            return self.fill(errand, request, fill).await;
        };
        let engine = self.cache.cache.engine.clone();
        let Some(place) = engine.may_be_left_alone() else {
            let filled = tokio::time::timeout(patience, self.fill(errand, request, fill)).await;
            return filled.unwrap_or(Ok(stale));
        };
        let pending = engine.begin_work();
        let mut filling = tokio::spawn(async move {
            let answer = self.fill(errand, request, fill).await;
            drop((place, pending));
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
    mut errand: Errand,
    request: Request<RequestBody>,
    mut fill: Fill,
    refreshing: Refreshing,
) where
    S: Service<Request<RequestBody>, Response = Response<B>>,
    B: Body + Send + 'static,
    B::Error: Into<BoxError>,
{
    let engine = call.cache.cache.engine.clone();
    if !engine.lead_in_the_background(&mut fill).await || !errand.look_at_source(&mut fill).await {
        return;
    }
    // nobody reads the body: a driver, which counts as work of its own, reads it to the end
    drop(call.fill(errand, request, fill).await);
    drop(refreshing);
}

fn question<'a>(
    read: &Read,
    variant: &'a (dyn Fn(&[HeaderName]) -> Key + Sync),
    part: Option<Key>,
) -> Question<'a> {
    Question {
        key: read.key,
        variant,
        part,
        invalid_too: read.policy.serve_invalidated.is_some(),
    }
}

/// Whether an entry is the one that the request selects.
fn selects(entry: &Entry, read: &Read, request: &HeaderMap) -> bool {
    entry.key == read.key || entry.key == selected(read.key, &entry.head, request)
}

/// The key under which this request finds an answer with this head.
fn selected(key: Key, answer: &Head, request: &HeaderMap) -> Key {
    match vary(answer.get_all(&VARY)) {
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
