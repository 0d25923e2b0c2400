//! May this answer be stored, and for how long? (RFC 9111 §3 and §4.2)
//!
//! 1. What forbids: `no-store`, `private`, `no-cache`, `Set-Cookie`, `Vary`, a status that is partial, not final
//!    or about this very request, an event stream or another body without an end.
//! 2. How long: what the handler said at run time, else `s-maxage`, else the route's, else `max-age`, else
//!    `Expires`. `max-age=0` speaks to browsers and does not override a route's `ttl`.
//! 3. A route's `ttl` applies to 200, 203, 204, 300, 301 and 308, its `negative_ttl` to 404 and 410; every other
//!    status needs freshness of its own.
//! 4. `Age` counts as time already spent.

use std::time::{Duration, SystemTime};

use http::header::{AGE, CONTENT_TYPE, DATE, EXPIRES, SET_COOKIE, VARY};
use http::{HeaderMap, StatusCode, response};

use super::cache_control::CacheControl;

/// An answer that may be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Freshness {
    /// How long the answer may be served from now on.
    pub(crate) remaining: Duration,
    /// How old it was when it arrived.
    pub(crate) age: Duration,
}

/// Why an answer is not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NotStored {
    /// `Cache-Control: no-store`.
    NoStore,
    /// `Cache-Control: private`.
    Private,
    /// `Cache-Control: no-cache`.
    NoCache,
    /// The answer sets a cookie.
    SetCookie,
    /// The answer has a `Vary` field.
    Vary,
    /// Partial content, not final, or about fields of the request that are no part of the key.
    Status,
    /// An event stream or another body that has no end.
    Stream,
    /// Nobody said how long the answer is fresh.
    NoFreshness,
    /// The answer says that it is already stale.
    Stale,
    /// A request for the head alone.
    Head,
    /// The body is larger than `max_body`.
    TooLarge,
    /// The route's `store_if` says no.
    Condition,
    /// More than 64 scopes that the answer depends on.
    TooManyDependencies,
}

impl NotStored {
    /// The reason as it stands in `Cache-Status`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoStore => "no-store",
            Self::Private => "private",
            Self::NoCache => "no-cache",
            Self::SetCookie => "set-cookie",
            Self::Vary => "vary",
            Self::Status => "status",
            Self::Stream => "stream",
            Self::NoFreshness => "no-freshness",
            Self::Stale => "already-stale",
            Self::Head => "head",
            Self::TooLarge => "too-large",
            Self::Condition => "store-if",
            Self::TooManyDependencies => "too-many-dependencies",
        }
    }

    /// What would change it.
    pub(crate) const fn mend(self) -> &'static str {
        match self {
            Self::NoStore => {
                "the answer (or its handler) says no-store; leave that out if others may have it"
            }
            Self::Private => {
                "the answer says private; leave that out, and say who shares it (shared_by_tenant, per_principal)"
            }
            Self::NoCache => {
                "the answer says no-cache; say max-age=0 instead if only browsers are to ask again"
            }
            Self::SetCookie => "set cookies in answers of their own, or add bypass() to the route",
            Self::Vary => {
                "leave out Vary, and add key_header(…) for the fields that change the answer"
            }
            Self::Status => "the status is about one request and cannot be shared",
            Self::Stream => "a body without an end cannot be stored; add bypass() to the route",
            Self::NoFreshness => {
                "add ttl(…) (for 404 and 410: negative_ttl(…)), or Cache-Control: s-maxage=… to the answer"
            }
            Self::Stale => "the answer says that it is stale already; give it a longer s-maxage",
            Self::Head => "a GET stores what later HEAD requests are answered from",
            Self::TooLarge => "raise max_body(…), or add bypass() to the route",
            Self::Condition => "the route's store_if says no",
            Self::TooManyDependencies => "depend on a domain instead of on its entities",
        }
    }
}

/// What the route and the handler say about freshness.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Lifetimes {
    pub(crate) at_run_time: Option<Duration>,
    pub(crate) route: Option<Duration>,
    pub(crate) negative: Option<Duration>,
}

/// Whether the answer to a GET may be stored. `now` is only held against the answer's own `Expires`, and
/// therefore comes from the clock that the handler used.
pub(crate) fn judge(
    head: &response::Parts,
    lifetimes: Lifetimes,
    now: SystemTime,
) -> Result<Freshness, NotStored> {
    let directives = CacheControl::of(&head.headers);
    if let Some(veto) = veto(head, &directives) {
        return Err(veto);
    }
    let lifetime = lifetime(head, &directives, lifetimes, now).ok_or(NotStored::NoFreshness)?;
    let age = age(&head.headers);
    match lifetime.checked_sub(age) {
        Some(remaining) if !remaining.is_zero() => Ok(Freshness { remaining, age }),
        _ => Err(NotStored::Stale),
    }
}

fn veto(head: &response::Parts, directives: &CacheControl) -> Option<NotStored> {
    let vetoes = [
        (directives.no_store, NotStored::NoStore),
        (directives.private, NotStored::Private),
        (directives.no_cache, NotStored::NoCache),
        (head.headers.contains_key(SET_COOKIE), NotStored::SetCookie),
        (head.headers.contains_key(VARY), NotStored::Vary),
        (!is_for_others_too(head.status), NotStored::Status),
        (is_endless(&head.headers), NotStored::Stream),
    ];
    vetoes
        .into_iter()
        .find_map(|(applies, reason)| applies.then_some(reason))
}

/// RFC 9111 §3: the status is final; 206 needs the means to combine parts (§3.3), 304 is no answer of its own.
/// The others answer to credentials, preconditions, `Range`, `Expect` or the like of one request: stored, they
/// would let anybody replace an answer with an error.
fn is_for_others_too(status: StatusCode) -> bool {
    !status.is_informational()
        && !matches!(
            status.as_u16(),
            206 | 304 | 401 | 407 | 412 | 416 | 417 | 421 | 425 | 426 | 428 | 429 | 431 | 511
        )
}

fn is_endless(headers: &HeaderMap) -> bool {
    let Some(content_type) = headers.get(CONTENT_TYPE) else {
        return false;
    };
    let essence = content_type
        .as_bytes()
        .split(|&b| b == b';')
        .next()
        .unwrap_or_default()
        .trim_ascii();
    essence.eq_ignore_ascii_case(b"text/event-stream")
        || essence.eq_ignore_ascii_case(b"multipart/x-mixed-replace")
}

fn lifetime(
    head: &response::Parts,
    directives: &CacheControl,
    lifetimes: Lifetimes,
    now: SystemTime,
) -> Option<Duration> {
    let seconds = Duration::from_secs;
    let by_route = match head.status.as_u16() {
        200 | 203 | 204 | 300 | 301 | 308 => lifetimes.route,
        404 | 410 => lifetimes.negative,
        _ => None,
    };
    lifetimes
        .at_run_time
        .or(directives.s_maxage.map(seconds))
        .or(by_route)
        .or(directives.max_age.map(seconds))
        .or_else(|| expires(&head.headers, now))
}

/// RFC 9111 §5.3: `Expires` minus `Date`; an invalid date is in the past.
fn expires(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let date = |name| {
        headers
            .get(name)?
            .to_str()
            .ok()
            .and_then(|d| httpdate::parse_http_date(d).ok())
    };
    headers.get(EXPIRES)?;
    let lifetime = date(EXPIRES).and_then(|e| e.duration_since(date(DATE).unwrap_or(now)).ok());
    Some(lifetime.unwrap_or_default())
}

/// RFC 9111 §5.1: the first value counts; an invalid one is ignored.
fn age(headers: &HeaderMap) -> Duration {
    let seconds = headers
        .get(AGE)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.split(',').next()?.trim().parse::<u32>().ok());
    Duration::from_secs(seconds.unwrap_or(0).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Response;

    const MINUTE: Duration = Duration::from_secs(60);
    const NOW: &str = "Thu, 01 Jan 2026 00:00:00 GMT";

    fn judged(
        status: u16,
        fields: &[(&str, &str)],
        ttl: Option<Duration>,
    ) -> Result<u64, NotStored> {
        let mut response = Response::builder().status(status);
        for (name, value) in fields {
            response = response.header(*name, *value);
        }
        let (head, ()) = response.body(()).expect("a head").into_parts();
        let now = httpdate::parse_http_date(NOW).expect("a date");
        judge(
            &head,
            Lifetimes {
                route: ttl,
                ..Lifetimes::default()
            },
            now,
        )
        .map(|f| f.remaining.as_secs())
    }

    #[test]
    fn freshness_comes_from_the_first_source_that_speaks() {
        let cc = |v| [("cache-control", v)];
        assert_eq!(judged(200, &cc("max-age=10"), None), Ok(10));
        assert_eq!(judged(200, &cc("max-age=10"), Some(MINUTE)), Ok(60));
        assert_eq!(judged(200, &cc("max-age=0"), Some(MINUTE)), Ok(60));
        assert_eq!(
            judged(200, &cc("s-maxage=5, max-age=10"), Some(MINUTE)),
            Ok(5)
        );
        assert_eq!(
            judged(200, &cc("s-maxage=0"), Some(MINUTE)),
            Err(NotStored::Stale)
        );
        assert_eq!(judged(200, &[], None), Err(NotStored::NoFreshness));
        assert_eq!(
            judged(200, &cc("public"), None),
            Err(NotStored::NoFreshness)
        );
        assert_eq!(
            judged(200, &[("expires", "Thu, 01 Jan 2026 00:00:30 GMT")], None),
            Ok(30)
        );
        assert_eq!(
            judged(
                200,
                &[
                    ("expires", "Thu, 01 Jan 2026 00:00:30 GMT"),
                    ("date", "Thu, 01 Jan 2026 00:00:10 GMT")
                ],
                None
            ),
            Ok(20)
        );
        assert_eq!(
            judged(200, &[("expires", "0")], None),
            Err(NotStored::Stale)
        );
        assert_eq!(
            judged(200, &[("cache-control", "max-age=10"), ("age", "4")], None),
            Ok(6)
        );
        assert_eq!(
            judged(200, &[("cache-control", "max-age=10"), ("age", "10")], None),
            Err(NotStored::Stale)
        );
    }

    #[test]
    fn vetoes_hold_whatever_the_route_says() {
        for (name, value, reason) in [
            ("cache-control", "no-store", NotStored::NoStore),
            ("cache-control", "private, max-age=9", NotStored::Private),
            ("cache-control", "no-cache", NotStored::NoCache),
            ("set-cookie", "a=b", NotStored::SetCookie),
            ("vary", "*", NotStored::Vary),
            (
                "content-type",
                "text/event-stream; charset=utf-8",
                NotStored::Stream,
            ),
        ] {
            assert_eq!(
                judged(200, &[(name, value)], Some(MINUTE)),
                Err(reason),
                "{name}: {value}"
            );
        }
    }

    #[test]
    fn a_ttl_is_for_answers_that_mean_success() {
        for status in [200, 203, 204, 300, 301, 308] {
            assert_eq!(judged(status, &[], Some(MINUTE)), Ok(60), "{status}");
        }
        for status in [201, 202, 302, 303, 307, 400, 403, 404, 410, 500, 503, 599] {
            assert_eq!(
                judged(status, &[], Some(MINUTE)),
                Err(NotStored::NoFreshness),
                "{status}"
            );
            assert_eq!(
                judged(status, &[("cache-control", "max-age=7")], Some(MINUTE)),
                Ok(7),
                "{status}"
            );
        }
        for status in [206, 304, 401, 412, 416, 429] {
            assert_eq!(
                judged(status, &[("cache-control", "max-age=7")], Some(MINUTE)),
                Err(NotStored::Status),
                "{status}"
            );
        }
    }
}
