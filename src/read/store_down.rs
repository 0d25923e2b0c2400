//! Reading while the store cannot be asked, where the route has it that what is in memory will do
//! ([`stale_if_store_down`](crate::PgCacheLayer::stale_if_store_down)).
//!
//! 1. A fresh answer is served as it is, if the request wants no other and the answer does not forbid it.
//! 2. One that has expired stands in for an error of the inner service, where RFC 5861 §4 has been asked for.

use http::{HeaderMap, HeaderName, Request, Response, StatusCode};
use http_body::Body;
use tower_service::Service;

use crate::body::ResponseBody;
use crate::call::{Caching, Call};
use crate::engine::Entry;
use crate::error::BoxError;
use crate::http::cache_control::RequestDirectives;
use crate::http::cache_status::{Bypass, CacheStatus, Forward};
use crate::http::conditional::conditionals_of;
use crate::http::reuse::{Reuse, decide, may_stand_in};
use crate::http::storable::directives;
use crate::nesting::Learned;
use crate::plan::Read;

use super::fill::is_error;
use super::{selects, variant_key};

impl Caching {
    /// A fresh answer that nobody can confirm.
    pub(super) fn unconfirmed<B>(
        &self,
        read: &Read,
        headers: &HeaderMap,
        asks: &RequestDirectives,
    ) -> Option<Response<ResponseBody<B>>> {
        let entry = self.last_known(read, headers, |entry| {
            let condition = entry.condition;
            let says = directives(&entry.head.fields(), read.policy.targets());
            // fresh as it is, it may be out of date: what RFC 9111 §4.2.4 says of being disconnected
            !condition.fresh_for.is_zero()
                && !says.forbids_stale()
                && decide(condition, || says, asks, read.policy.stale) == Reuse::Serve
        })?;
        self.cache.engine.count_unconfirmed();
        let condition = entry.condition;
        Some(self.served(
            &entry,
            read,
            headers,
            CacheStatus::Unconfirmed { condition },
        ))
    }

    /// An answer that may take the place of an error.
    fn stand_in(&self, read: &Read, headers: &HeaderMap) -> Option<Entry> {
        self.last_known(read, headers, |entry| {
            let says = directives(&entry.head.fields(), read.policy.targets());
            may_stand_in(entry.condition, &says, read.policy.stale)
        })
    }

    /// What is in memory, is what the request selects and `is_of_use`, as long as the route allows it.
    fn last_known(
        &self,
        read: &Read,
        headers: &HeaderMap,
        is_of_use: impl Fn(&Entry) -> bool,
    ) -> Option<Entry> {
        let at_most = read.policy.stale_if_store_down?;
        let variant = |fields: &[HeaderName]| variant_key(read.key, fields, headers);
        self.cache
            .engine
            .unconfirmed(read.key, &variant, at_most, |entry| {
                selects(entry, read, headers) && is_of_use(entry)
            })
    }
}

impl<S> Call<S> {
    /// Passes a request on whose answer cannot be looked up; if the inner service fails, there may be something in memory.
    pub(super) async fn pass_without_store<RequestBody, B>(
        &mut self,
        read: &Read,
        reason: Bypass,
        request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody<B>>, S::Error>
    where
        S: Service<Request<RequestBody>, Response = Response<B>>,
        B: Body + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let learned = Some(Learned::Unusable(reason));
        if reason != Bypass::Store || read.policy.stale_if_store_down.is_none() {
            return self.pass_on(reason, learned, request).await;
        }
        let headers = request.headers().clone();
        let answered = self.ask_inner(request, Vec::new(), learned, None).await;
        let (response, is_claimed) = match answered {
            Ok(answered) => answered.seen_to().await,
            Err((error, mark)) => {
                let stand_in = (!mark.is_claimed())
                    .then(|| self.in_place_of_an_error(read, &headers, None))
                    .flatten();
                return stand_in.ok_or(error);
            }
        };
        if is_claimed {
            return Ok(response);
        }
        let status = response.status();
        let stand_in = is_error(status)
            .then(|| self.in_place_of_an_error(read, &headers, Some(status)))
            .flatten();
        Ok(stand_in.unwrap_or_else(|| self.passed(response, reason)))
    }

    fn in_place_of_an_error<B>(
        &self,
        read: &Read,
        headers: &HeaderMap,
        status: Option<StatusCode>,
    ) -> Option<Response<ResponseBody<B>>> {
        let entry = self.cache.stand_in(read, headers)?;
        let engine = &self.cache.cache.engine;
        engine.count_bypass();
        engine.count_unconfirmed();
        let conditionals = conditionals_of(headers).filter(|_| !read.is_search);
        let why = Forward::Stale;
        let said = self.cache.said(CacheStatus::StandIn { why, status });
        let whole = read.whole((&entry).into());
        Some(whole.answer(conditionals.as_ref(), said))
    }
}
