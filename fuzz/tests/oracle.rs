//! What `Policy::shared_cache` decides, compared with the crate `http-cache-semantics` on a product of exchanges.
//! Every difference belongs to a class below, with the section that decides it; a difference of no class fails
//! the test, and so does a class without a difference.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, response};
use http_cache_semantics::{CacheOptions, CachePolicy};
use tower_pgcache::NotStored;
use tower_pgcache::fuzzing::{Exchange, now, shared_cache};

const OVERFLOWS: &str = "max-age=99999999999999999999";

const STATUSES: [u16; 15] = [
    200, 201, 203, 204, 206, 301, 302, 307, 400, 401, 404, 410, 416, 500, 503,
];

const CACHE_CONTROL: [&str; 35] = [
    "",
    "public",
    "private",
    "private=\"x-a\"",
    "no-store",
    "No-Store, max-age=60",
    "no-cache",
    "no-cache=\"x-a\", max-age=60",
    "max-age=60",
    "max-age=0",
    "max-age=\"60\"",
    "MAX-AGE=60",
    "max-age",
    "max-age=x",
    "max-age=-1",
    OVERFLOWS,
    "max-age=60, max-age=30",
    "max-age=30, max-age=60",
    "s-maxage=60",
    "s-maxage=0, max-age=60",
    "s-maxage, max-age=60",
    "s-maxage=60, max-age=5",
    "s-maxage=60, private",
    "public, max-age=60",
    "max-age=60, must-revalidate",
    "max-age=60, proxy-revalidate",
    "max-age=0, proxy-revalidate",
    "must-understand, no-store, max-age=60",
    "must-understand, max-age=60",
    "immutable",
    "max-age=60, immutable",
    "max-age=60, stale-while-revalidate=60",
    "must-revalidate",
    "x=\"no-store, y\", max-age=60",
    "public, s-maxage=60, must-revalidate",
];

/// Fields of the answer besides `Cache-Control`.
const FIELDS: [&[(&str, &str)]; 15] = [
    &[],
    &[("age", "20")],
    &[("age", "20, 50")],
    &[("age", "99999999999")],
    &[("age", "x")],
    &[("expires", IN_A_MINUTE)],
    &[("expires", IN_A_MINUTE), ("date", HALF_A_MINUTE_AGO)],
    &[("expires", "0")],
    &[("expires", HALF_A_MINUTE_AGO)],
    &[("expires", OBSOLETE)],
    &[("last-modified", DAYS_AGO)],
    &[("last-modified", YEARS_AGO)],
    &[("set-cookie", "a=b"), ("expires", IN_A_MINUTE)],
    &[("pragma", "no-cache"), ("expires", IN_A_MINUTE)],
    &[("vary", "x, *"), ("expires", IN_A_MINUTE)],
];

const IN_A_MINUTE: &str = "Thu, 01 Jan 2026 00:01:00 GMT";
const OBSOLETE: &str = "Thursday, 01-Jan-26 00:01:00 GMT";
const HALF_A_MINUTE_AGO: &str = "Wed, 31 Dec 2025 23:59:30 GMT";
const DAYS_AGO: &str = "Mon, 29 Dec 2025 00:00:00 GMT";
const YEARS_AGO: &str = "Sun, 01 Jan 2023 00:00:00 GMT";

const REQUESTS: [&[(&str, &str)]; 14] = [
    &[],
    &[("cache-control", "no-cache")],
    &[("cache-control", "max-age=10")],
    &[("cache-control", "max-age=\"10\"")],
    &[("cache-control", "max-age=x")],
    &[("cache-control", "MAX-AGE=0")],
    &[("cache-control", "min-fresh=40")],
    &[("cache-control", "max-stale")],
    &[("cache-control", "max-stale=10")],
    &[("cache-control", "max-stale=x")],
    &[("cache-control", "no-store")],
    &[("cache-control", "only-if-cached")],
    &[("pragma", "no-cache")],
    &[("pragma", "no-cache"), ("cache-control", "max-age=1000")],
];

const OFFSETS: [u64; 6] = [0, 10, 40, 60, 70, 100_000];

/// The exchange that fills the cache.
struct Case {
    status: u16,
    cache_control: &'static str,
    fields: &'static [(&'static str, &'static str)],
    authorized: bool,
    head: response::Parts,
    ours: Exchange,
    theirs: CachePolicy,
}

impl Case {
    fn says(&self, directive: &str) -> bool {
        let mut members = self.cache_control.split(", ");
        members.any(|m| m.split('=').next() == Some(directive))
    }

    fn conflicts(&self) -> bool {
        self.cache_control.matches("max-age=").count() == 2 && !self.says("s-maxage")
    }

    fn has(&self, field: &str) -> bool {
        self.fields.iter().any(|(name, _)| *name == field)
    }

    fn value(&self, field: &str) -> Option<&'static str> {
        let found = self.fields.iter().find(|(name, _)| *name == field);
        found.map(|(_, value)| *value)
    }

    fn our_seconds(&self) -> Option<u64> {
        self.ours.stored.ok().map(|fresh| fresh.as_secs())
    }

    /// How long the crate says that the answer is fresh; `None` if it is not storable.
    fn their_seconds(&self) -> Option<u64> {
        let fresh = self.theirs.time_to_live(now()).as_secs();
        self.theirs.is_storable().then_some(fresh)
    }
}

fn case(
    status: u16,
    cache_control: &'static str,
    fields: &'static [(&'static str, &'static str)],
    authorized: bool,
) -> Case {
    let mut request = Request::get("http://host/");
    if authorized {
        request = request.header("authorization", "Basic x");
    }
    let request = request.body(()).expect("a request");
    let mut answer = Response::builder().status(status);
    if !cache_control.is_empty() {
        answer = answer.header("cache-control", cache_control);
    }
    for (name, value) in fields {
        answer = answer.header(*name, *value);
    }
    let (head, ()) = answer.body(()).expect("an answer").into_parts();
    let ours = shared_cache(request.headers(), &head);
    let theirs = CachePolicy::new_options(&request, &head, now(), CacheOptions::default());
    Case {
        status,
        cache_control,
        fields,
        authorized,
        head,
        ours,
        theirs,
    }
}

/// A class of differences about storing: its reason, and whether it explains this one.
type StoreClass = (&'static str, fn(&Case) -> bool);

/// The crate knows 14 status codes.
fn is_unknown_to_them(status: u16) -> bool {
    matches!(status, 201 | 400 | 401 | 416 | 500 | 503)
}

const STORE_CLASSES: [StoreClass; 15] = [
    (
        "RFC 9111 §4.1: `*` counts among other members of Vary, too",
        |c| c.value("vary") == Some("x, *") && c.ours.stored == Err(NotStored::Vary),
    ),
    (
        "RFC 9111 §5.2: names of directives are case-insensitive (no-store)",
        |c| c.says("No-Store") && c.ours.stored == Err(NotStored::NoStore),
    ),
    (
        "RFC 9111 §5.2: names of directives are case-insensitive (max-age)",
        |c| c.says("MAX-AGE") && matches!(c.our_seconds(), Some(40 | 60)),
    ),
    (
        "RFC 9111 §5.2.2.3: must-understand lifts no-store for a status that is understood",
        |c| c.says("must-understand") && c.says("no-store") && c.their_seconds().is_none(),
    ),
    (
        "RFC 9111 §3: without must-understand any final status may be stored",
        |c| {
            is_unknown_to_them(c.status) && c.their_seconds().is_none() && c.our_seconds() > Some(0)
        },
    ),
    ("RFC 9111 §7.3: Set-Cookie does not inhibit caching", |c| {
        c.has("set-cookie") && c.their_seconds() == Some(0) && c.our_seconds() > Some(0)
    }),
    (
        "RFC 9111 §3.5: conflicting directives are no must-revalidate, which would share the answer",
        |c| c.authorized && c.conflicts() && c.ours.stored == Err(NotStored::Authorization),
    ),
    (
        "RFC 9111 §4.2.1: of conflicting directives the smallest counts",
        |c| c.cache_control == "max-age=60, max-age=30" && c.our_seconds() < c.their_seconds(),
    ),
    (
        "RFC 9111 §5.1: of several values of Age the first counts",
        |c| {
            c.value("age") == Some("20, 50")
                && c.our_seconds().map(|ours| ours + 20) == c.their_seconds()
        },
    ),
    (
        "RFC 9110 §5.6.7: obsolete forms of dates are read, too",
        |c| {
            c.value("expires") == Some(OBSOLETE)
                && (c.our_seconds(), c.their_seconds()) == (Some(60), Some(0))
        },
    ),
    (
        "RFC 9111 §4.2.2: a heuristic lifetime has a limit, ours is a day",
        |c| {
            c.value("last-modified") == Some(YEARS_AGO)
                && (c.our_seconds(), c.their_seconds()) == (Some(86_400), Some(9_469_440))
        },
    ),
    ("RFC 8246 §2: immutable gives no lifetime", |c| {
        c.cache_control == "immutable" && matches!(c.their_seconds(), Some(86_380 | 86_400))
    }),
    ("RFC 9111 §5.4: Pragma has no meaning in an answer", |c| {
        c.has("pragma")
            && c.cache_control.is_empty()
            && (c.our_seconds(), c.their_seconds()) == (Some(60), Some(0))
    }),
    (
        "RFC 9111 §4.2.1: a directive without its number makes the answer stale",
        |c| {
            matches!(c.cache_control, "max-age" | "s-maxage, max-age=60")
                && c.our_seconds().unwrap_or(0) == 0
        },
    ),
    (
        "RFC 9111 §5.2.2.8, §1.2.2: proxy-revalidate is about stale answers; a number that overflows is large",
        |c| {
            (c.says("proxy-revalidate") || c.our_seconds() >= Some((1 << 31) - 20))
                && c.their_seconds() == Some(0)
        },
    ),
];

fn product() -> impl Iterator<Item = Case> {
    STATUSES.into_iter().flat_map(|status| {
        CACHE_CONTROL.into_iter().flat_map(move |cache_control| {
            FIELDS.into_iter().flat_map(move |fields| {
                [false, true]
                    .into_iter()
                    .map(move |authorized| case(status, cache_control, fields, authorized))
            })
        })
    })
}

#[test]
fn answers_are_stored_and_fresh_as_long() {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut unexplained = Vec::new();
    for case in product() {
        // what is not fresh may be stored or not: only the time that it is fresh is compared
        let (ours, theirs) = (case.our_seconds(), case.their_seconds());
        if ours.unwrap_or(0) == theirs.unwrap_or(0) {
            continue;
        }
        match STORE_CLASSES.iter().find(|(_, explains)| explains(&case)) {
            Some((reason, _)) => *seen.entry(reason).or_default() += 1,
            None => unexplained.push(format!(
                "{} {:?} {:?} authorized={}: ours {:?}, theirs {theirs:?}",
                case.status, case.cache_control, case.fields, case.authorized, case.ours.stored
            )),
        }
    }
    assert!(
        unexplained.is_empty(),
        "{} unexplained:\n{}",
        unexplained.len(),
        unexplained.join("\n")
    );
    let unused: Vec<_> = STORE_CLASSES
        .iter()
        .filter(|(r, _)| !seen.contains_key(r))
        .collect();
    assert!(unused.is_empty(), "no such difference any more: {unused:?}");
}

/// A request that meets the stored answer of a case.
struct Meeting<'c> {
    case: &'c Case,
    request: &'static [(&'static str, &'static str)],
    passed: u64,
    ours: bool,
}

impl Meeting<'_> {
    fn asks(&self, directives: &str) -> bool {
        self.request.contains(&("cache-control", directives))
    }

    fn accepts_stale(&self) -> bool {
        self.request
            .iter()
            .any(|(_, value)| value.starts_with("max-stale"))
    }

    fn age(&self) -> u64 {
        self.case.ours.age().as_secs() + self.passed
    }

    fn is_stale_for_ten(&self) -> bool {
        let lifetime = self.case.our_seconds().unwrap_or(0);
        self.passed.saturating_sub(lifetime) == 10
    }

    fn is_stale(&self) -> bool {
        self.case
            .our_seconds()
            .is_some_and(|fresh| fresh <= self.passed)
    }
}

type ReuseClass = (&'static str, fn(&Meeting<'_>) -> bool);

const REUSE_CLASSES: &[ReuseClass] = &[
    (
        "RFC 9111 §5.1: of several values of Age the first counts",
        |m| m.asks("max-stale=10") && m.case.value("age") == Some("20, 50") && !m.ours,
    ),
    (
        "RFC 9111 §1.2.2: numbers that overflow are equally large",
        |m| {
            m.asks("max-stale=10")
                && m.case.cache_control == OVERFLOWS
                && m.case.value("age") == Some("99999999999")
                && m.passed < 10
        },
    ),
    (
        "RFC 9111 §3: what arrives too stale to stand in for an error is not stored",
        |m| m.accepts_stale() && m.case.ours.stored == Err(NotStored::Stale),
    ),
    (
        "RFC 9111 §5.2: names of directives are case-insensitive (no-store)",
        |m| m.accepts_stale() && m.case.ours.stored == Err(NotStored::NoStore),
    ),
    (
        "RFC 9111 §5.2: names of directives are case-insensitive",
        |m| m.asks("MAX-AGE=0") && m.age() > 0 && !m.ours,
    ),
    (
        "RFC 9111 §5.2.1.1: what is no number is read as 0, the stricter way",
        |m| m.asks("max-age=x") && m.age() > 0 && !m.ours,
    ),
    (
        "RFC 9111 §5.2.1.2: what is no number is read as 0, the stricter way",
        |m| m.asks("max-stale=x") && !m.ours && m.is_stale(),
    ),
    (
        "RFC 9111 §5.4: Pragma counts only where there is no Cache-Control",
        |m| m.request.len() == 2 && m.ours,
    ),
    (
        "RFC 9111 §5.2.2.10: s-maxage means proxy-revalidate, too",
        |m| m.accepts_stale() && m.case.says("s-maxage") && !m.ours,
    ),
    (
        "RFC 9111 §5.2.2.4: no-cache is not served without validation, whatever the request accepts",
        |m| m.accepts_stale() && m.case.says("no-cache") && !m.ours,
    ),
    (
        "RFC 9111 §5.2.2.8: proxy-revalidate is not served stale, whatever the request accepts",
        |m| m.accepts_stale() && m.case.says("proxy-revalidate") && !m.ours,
    ),
    (
        "RFC 9111 §4.2.1: conflicting directives do not mean must-revalidate",
        |m| m.accepts_stale() && m.case.conflicts() && m.ours,
    ),
    (
        "RFC 9111 §3: what says nothing about its freshness is not stored",
        |m| m.accepts_stale() && m.case.ours.stored == Err(NotStored::NoFreshness),
    ),
    (
        "RFC 9111 §5.2.1.2: max-stale is by no more than the number, which is allowed itself",
        |m| m.asks("max-stale=10") && m.ours && m.is_stale_for_ten(),
    ),
];

#[test]
fn stored_answers_are_served_to_the_same_requests() {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut unexplained = Vec::new();
    // where the freshness differs, the reuse does; a status makes no difference here
    let agreed = product().filter(|case| {
        case.status == 200 && case.our_seconds().unwrap_or(0) == case.their_seconds().unwrap_or(0)
    });
    for case in agreed.filter(|case| case.theirs.is_storable()) {
        for (fields, passed) in REQUESTS.into_iter().flat_map(|r| OFFSETS.map(|o| (r, o))) {
            let mut request = Request::get("http://host/").body(()).expect("a request");
            *request.headers_mut() = fields.iter().map(field).collect::<HeaderMap>();
            let elapsed = Duration::from_secs(passed);
            let ours = case
                .ours
                .is_served(&case.head.headers, request.headers(), elapsed);
            let theirs = case
                .theirs
                .before_request(&request, now() + elapsed)
                .satisfies_without_revalidation();
            if ours == theirs {
                continue;
            }
            let meeting = Meeting {
                case: &case,
                request: fields,
                passed,
                ours,
            };
            match REUSE_CLASSES
                .iter()
                .find(|(_, explains)| explains(&meeting))
            {
                Some((reason, _)) => *seen.entry(reason).or_default() += 1,
                None => unexplained.push(format!(
                    "{:?} {:?} {fields:?} after {passed}: ours {:?} {ours}, theirs {theirs}",
                    case.cache_control, case.fields, case.ours.stored
                )),
            }
        }
    }
    assert!(
        unexplained.is_empty(),
        "{} unexplained:\n{}",
        unexplained.len(),
        unexplained.join("\n")
    );
    let unused: Vec<_> = REUSE_CLASSES
        .iter()
        .filter(|(r, _)| !seen.contains_key(r))
        .collect();
    assert!(unused.is_empty(), "no such difference any more: {unused:?}");
}

fn field((name, value): &(&'static str, &'static str)) -> (HeaderName, HeaderValue) {
    (
        HeaderName::from_static(name),
        HeaderValue::from_static(value),
    )
}
