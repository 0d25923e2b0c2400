//! May this answer be stored, and for how long? (RFC 9111 §3 and §4.2)
//!
//! 1. What forbids: `no-store` (unless `must-understand` lifts it), `private`, `Vary: *`, an event stream or
//!    another body without an end; by the route's settings also `no-cache`, `Set-Cookie`, and a status that is
//!    about this very request.
//! 2. How long: what the handler said at run time, else `s-maxage`, else the route's, else `max-age`, else
//!    `Expires`, else a heuristic if the route allows one. `max-age=0` speaks to browsers and does not override
//!    a route's `ttl`. A targeted field (RFC 9213) takes the place of `Cache-Control` and `Expires`.
//! 3. A route's `ttl` applies to 200, 203, 204, 300, 301 and 308, its `negative_ttl` to 404 and 410; every other
//!    status needs freshness of its own.
//! 4. `Age` counts as time already spent.
//! 5. What is not fresh is stored only if it can be of use: revalidated, or served stale.

use std::time::{Duration, SystemTime};

use http::header::{AGE, CONTENT_TYPE, DATE, ETAG, EXPIRES, HeaderName, LAST_MODIFIED, SET_COOKIE};
use http::{HeaderMap, StatusCode, response};

use super::cache_control::{CacheControl, seconds};
use super::partial::is_part;
use super::reuse::{StaleRules, useful_when_stale};
use super::structured::targeted;
use super::vary::{Vary, vary_of};

/// An answer with a validator is kept so much longer than it is fresh, to be revalidated.
const KEPT_FOR_REVALIDATION: Duration = Duration::from_secs(3600);

/// The longest lifetime that a heuristic gives, and the part of the time since the last modification that it is
/// (RFC 9111 §4.2.2).
const LONGEST_HEURISTIC: Duration = Duration::from_secs(24 * 3600);
const HEURISTIC_FRACTION: u32 = 10;

/// An answer that may be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Freshness {
    /// How long the answer is fresh from now on; zero if it has to be revalidated each time.
    pub(crate) remaining: Duration,
    /// How long it had been stale when it arrived.
    pub(crate) overdue: Duration,
    /// How old it was when it arrived.
    pub(crate) age: Duration,
    /// How long it is of any use from now on.
    pub(crate) keep: Duration,
    /// Whether it has a validator that its handler knows.
    pub(crate) revalidatable: bool,
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
    /// `Vary: *`.
    Vary,
    /// Partial content, not final, or about fields of the request that are no part of the key.
    Status,
    /// An event stream or another body that has no end.
    Stream,
    /// Nobody said how long the answer is fresh.
    NoFreshness,
    /// The answer says that it is already stale.
    Stale,
    /// RFC 9111 §3.5: an answer to `Authorization` that does not say that it may be shared.
    Authorization,
    /// The request says `no-store`.
    Request,
    /// A request for the head alone.
    Head,
    /// The body is larger than `max_body`, or the head has more than 4,096 lines.
    TooLarge,
    /// The route's `store_if` says no.
    Condition,
    /// More than 64 scopes that the answer depends on.
    TooManyDependencies,
    /// The replica that the handler reads from could not say what it has, or is none.
    Replica,
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
            Self::Authorization => "authorization",
            Self::Request => "request-no-store",
            Self::Head => "head",
            Self::TooLarge => "too-large",
            Self::Condition => "store-if",
            Self::TooManyDependencies => "too-many-dependencies",
            Self::Replica => "replica",
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
                "Vary: * says that no two requests have the same answer; name the fields that change it"
            }
            Self::Status => "the status is about one request and cannot be shared",
            Self::Stream => "a body without an end cannot be stored; add bypass() to the route",
            Self::NoFreshness => {
                "add ttl(…) (for 404 and 410: negative_ttl(…)), or Cache-Control: s-maxage=… to the answer"
            }
            Self::Stale => "the answer says that it is stale already; give it a longer s-maxage",
            Self::Authorization => {
                "the request has Authorization; say public, s-maxage or must-revalidate if others may have the answer"
            }
            Self::Request => "the request says no-store",
            Self::Head => "a GET stores what later HEAD requests are answered from",
            Self::TooLarge => "raise max_body(…), or add bypass() to the route",
            Self::Condition => "the route's store_if says no",
            Self::TooManyDependencies => "depend on a domain instead of on its entities",
            Self::Replica => {
                "the pool of snapshot_from(…) gave no answer in time, or leads to another primary: give it one standby \
                 of the server that the cache is on"
            }
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

/// What the route and the request say about storing.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct StoreRules<'a> {
    pub(crate) lifetimes: Lifetimes,
    pub(crate) stale: StaleRules,
    /// RFC 9111 §4.2.2.
    pub(crate) heuristics: bool,
    /// `no-cache` may be stored, to be revalidated each time.
    pub(crate) no_cache: bool,
    /// `Set-Cookie` may be stored with an answer that is explicitly fresh.
    pub(crate) set_cookie: bool,
    /// A status that is about one request may be stored if it is explicitly fresh.
    pub(crate) any_status: bool,
    /// A 206 may be stored if it is one part of an answer that does not vary (RFC 9111 §3.3).
    pub(crate) partial: bool,
    /// The request has `Authorization`, and RFC 9111 §3.5 decides.
    pub(crate) authorization: bool,
    /// Fields that take the place of `Cache-Control` (RFC 9213), the first one first.
    pub(crate) targets: &'a [HeaderName],
}

/// The directives that count for this cache.
pub(crate) fn directives(headers: &HeaderMap, targets: &[HeaderName]) -> CacheControl {
    targeted(headers, targets).unwrap_or_else(|| CacheControl::of(headers))
}

/// Whether the answer to a GET may be stored. `now` is only held against the answer's own dates, and therefore
/// comes from the clock that the handler used.
pub(crate) fn judge(
    head: &response::Parts,
    rules: &StoreRules<'_>,
    now: SystemTime,
) -> Result<Freshness, NotStored> {
    let target = targeted(&head.headers, rules.targets);
    let is_targeted = target.is_some();
    let directives = target.unwrap_or_else(|| CacheControl::of(&head.headers));
    let explicit = explicit_lifetime(head, &directives, rules.lifetimes, now, is_targeted);
    if let Some(veto) = veto(head, &directives, rules, explicit.is_some()) {
        return Err(veto);
    }
    let lifetime = if directives.no_cache {
        Some(Duration::ZERO)
    } else {
        explicit.or_else(|| heuristic(head, &directives, rules, now))
    };
    let revalidatable = head.headers.contains_key(ETAG) || head.headers.contains_key(LAST_MODIFIED);
    let may_be_stored =
        rules.heuristics && (directives.public || is_heuristically_cacheable(head.status));
    let lifetime = lifetime.or((may_be_stored && revalidatable).then_some(Duration::ZERO));
    let lifetime = lifetime.ok_or(NotStored::NoFreshness)?;
    let age = age(&head.headers);
    let remaining = lifetime.saturating_sub(age);
    // RFC 9111 §4.2.4: time that other caches have spent makes it stale, too
    let overdue = age.saturating_sub(lifetime);
    let stale_use = useful_when_stale(&directives, rules.stale).saturating_sub(overdue);
    let revalidation = if revalidatable {
        KEPT_FOR_REVALIDATION
    } else {
        Duration::ZERO
    };
    let keep = remaining.saturating_add(stale_use.max(revalidation));
    // what is stale from the start is worth a row only where a 304 can save the work
    if remaining.is_zero()
        && (stale_use.max(revalidation).is_zero() || !(rules.heuristics || rules.no_cache))
    {
        return Err(NotStored::Stale);
    }
    Ok(Freshness {
        remaining,
        overdue,
        age,
        keep,
        revalidatable,
    })
}

fn veto(
    head: &response::Parts,
    directives: &CacheControl,
    rules: &StoreRules<'_>,
    is_explicit: bool,
) -> Option<NotStored> {
    // RFC 9111 §5.2.2.3
    let understood = directives.must_understand && is_understood(head.status);
    let may_be_shared =
        directives.public || directives.must_revalidate || directives.s_maxage.is_some();
    let vetoes = [
        (directives.no_store && !understood, NotStored::NoStore),
        (
            directives.must_understand && !understood,
            NotStored::NoStore,
        ),
        (directives.private, NotStored::Private),
        (directives.no_cache && !rules.no_cache, NotStored::NoCache),
        (
            head.headers.contains_key(SET_COOKIE) && !(rules.set_cookie && is_explicit),
            NotStored::SetCookie,
        ),
        (vary_of(&head.headers) == Vary::Everything, NotStored::Vary),
        (
            !(is_final_and_complete(head.status) || is_stored_part(head, rules)),
            NotStored::Status,
        ),
        (
            !rules.any_status && is_about_one_request(head.status),
            NotStored::Status,
        ),
        (is_endless(&head.headers), NotStored::Stream),
        (
            rules.authorization && !may_be_shared,
            NotStored::Authorization,
        ),
    ];
    vetoes
        .into_iter()
        .find_map(|(applies, reason)| applies.then_some(reason))
}

/// RFC 9111 §3: the status is final; 206 needs the means to combine parts (§3.3), 304 is no answer of its own.
fn is_final_and_complete(status: StatusCode) -> bool {
    !status.is_informational()
        && status != StatusCode::PARTIAL_CONTENT
        && status != StatusCode::NOT_MODIFIED
}

fn is_stored_part(head: &response::Parts, rules: &StoreRules<'_>) -> bool {
    rules.partial && vary_of(&head.headers) == Vary::Nothing && is_part(head.status, &head.headers)
}

/// Answers to credentials, preconditions, `Range`, `Expect` or the like of one request: stored, they would let
/// anybody replace an answer with an error.
fn is_about_one_request(status: StatusCode) -> bool {
    matches!(
        status.as_u16(),
        401 | 407 | 412 | 416 | 417 | 421 | 425 | 426 | 428 | 429 | 431 | 511
    )
}

/// Status codes whose requirements for caching this cache knows and meets (RFC 9110 §15).
fn is_understood(status: StatusCode) -> bool {
    matches!(
        status.as_u16(),
        200..=205 | 300..=303 | 305 | 307 | 308 | 400..=418 | 421 | 422 | 426 | 500..=505
    )
}

/// RFC 9110 §15.1.
fn is_heuristically_cacheable(status: StatusCode) -> bool {
    matches!(
        status.as_u16(),
        200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501
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

fn explicit_lifetime(
    head: &response::Parts,
    directives: &CacheControl,
    lifetimes: Lifetimes,
    now: SystemTime,
    is_targeted: bool,
) -> Option<Duration> {
    let seconds = Duration::from_secs;
    let by_route = match head.status.as_u16() {
        200 | 203 | 204 | 300 | 301 | 308 => lifetimes.route,
        404 | 410 => lifetimes.negative,
        _ => None,
    };
    let by_target = directives.max_age.filter(|_| is_targeted).map(seconds);
    lifetimes
        .at_run_time
        .or(directives.s_maxage.map(seconds))
        .or(by_target)
        .or(by_route)
        .or(directives.max_age.map(seconds))
        .or_else(|| {
            if is_targeted {
                None
            } else {
                expires(&head.headers, now)
            }
        })
}

/// RFC 9111 §4.2.2.
fn heuristic(
    head: &response::Parts,
    directives: &CacheControl,
    rules: &StoreRules<'_>,
    now: SystemTime,
) -> Option<Duration> {
    if !rules.heuristics || !(directives.public || is_heuristically_cacheable(head.status)) {
        return None;
    }
    let modified = date(&head.headers, LAST_MODIFIED)?;
    let since = date(&head.headers, DATE)
        .unwrap_or(now)
        .duration_since(modified)
        .ok()?;
    Some((since / HEURISTIC_FRACTION).min(LONGEST_HEURISTIC))
}

fn date(headers: &HeaderMap, name: HeaderName) -> Option<SystemTime> {
    headers
        .get(name)?
        .to_str()
        .ok()
        .and_then(|date| httpdate::parse_http_date(date).ok())
}

/// RFC 9111 §5.3: `Expires` minus `Date`; an invalid date is in the past.
fn expires(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    headers.get(EXPIRES)?;
    let received = date(headers, DATE).unwrap_or(now);
    Some(
        date(headers, EXPIRES)
            .and_then(|expires| expires.duration_since(received).ok())
            .unwrap_or_default(),
    )
}

/// RFC 9111 §5.1: the first value counts; an invalid one is ignored. One that does not fit is very old (§1.2.2).
fn age(headers: &HeaderMap) -> Duration {
    let first = headers
        .get(AGE)
        .and_then(|value| value.as_bytes().split(|&b| b == b',').next());
    Duration::from_secs(first.and_then(|n| seconds(n.trim_ascii())).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use http::Response;
    use proptest::prelude::*;

    use super::*;

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
            &StoreRules {
                lifetimes: Lifetimes {
                    route: ttl,
                    ..Lifetimes::default()
                },
                ..StoreRules::default()
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
        assert_eq!(
            judged(
                200,
                &[("cache-control", "max-age=10"), ("age", "99999999999")],
                None
            ),
            Err(NotStored::Stale),
            "an age that overflows is old, not invalid"
        );
    }

    #[test]
    fn what_arrives_stale_has_been_stale_for_a_while() {
        let judged = |age: &str| {
            let response = Response::builder()
                .header("cache-control", "max-age=10, stale-if-error=60")
                .header("age", age);
            let (head, ()) = response.body(()).expect("a head").into_parts();
            let rules = StoreRules {
                heuristics: true,
                ..StoreRules::default()
            };
            judge(&head, &rules, SystemTime::UNIX_EPOCH).map(|f| (f.overdue, f.keep))
        };
        let seconds = Duration::from_secs;
        assert_eq!(judged("4"), Ok((seconds(0), seconds(66))));
        assert_eq!(judged("30"), Ok((seconds(20), seconds(40))));
        assert_eq!(judged("70"), Err(NotStored::Stale), "of no use any more");
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

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn nothing_makes_a_veto_void(
            status in 200u16..600, more in "[a-z=0-9, -]{0,24}", ttl in 1u64..100,
            veto in prop::sample::select(vec!["no-store", "private", "no-cache"]),
        ) {
            let value = format!("max-age=9, {veto}, {}", more.trim());
            let fields = [("cache-control", value.as_str())];
            let judged = judged(status, &fields, Some(Duration::from_secs(ttl)));
            prop_assert!(judged.is_err() || more.contains("must-understand"));
        }
    }
}
