//! `Cache-Control` in responses (RFC 9111 §5.2.2) and requests (§5.2.1).
//!
//! 1. Names are case-insensitive; an unknown directive is ignored.
//! 2. Arguments may be tokens or quoted strings, whatever the directive (§5.2).
//! 3. A directive with a bad number counts as 0: an answer with invalid freshness information is stale
//!    (§4.2.1). Of several values the smallest counts.
//! 4. `private` and `no-cache` with field names count as without: a shared cache may always store less.

use http::HeaderMap;
use http::header::{CACHE_CONTROL, PRAGMA};

/// The largest delta-seconds, also for values that overflow (RFC 9111 §1.2.2).
const MAX_SECONDS: u64 = 1 << 31;

/// The response directives that a shared cache obeys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CacheControl {
    pub(crate) no_store: bool,
    pub(crate) no_cache: bool,
    pub(crate) private: bool,
    pub(crate) public: bool,
    pub(crate) must_revalidate: bool,
    pub(crate) proxy_revalidate: bool,
    pub(crate) must_understand: bool,
    pub(crate) max_age: Option<u64>,
    pub(crate) s_maxage: Option<u64>,
    /// RFC 5861.
    pub(crate) stale_while_revalidate: Option<u64>,
    /// RFC 5861.
    pub(crate) stale_if_error: Option<u64>,
}

impl CacheControl {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut directives = Self::default();
        for line in headers.get_all(CACHE_CONTROL) {
            for (name, argument) in members(line.as_bytes()) {
                directives.add(name, argument.as_deref());
            }
        }
        directives
    }

    pub(super) fn add(&mut self, name: &[u8], argument: Option<&[u8]>) {
        let is = |directive: &str| name.eq_ignore_ascii_case(directive.as_bytes());
        if is("no-store") {
            self.no_store = true;
        } else if is("no-cache") {
            self.no_cache = true;
        } else if is("private") {
            self.private = true;
        } else if is("public") {
            self.public = true;
        } else if is("must-revalidate") {
            self.must_revalidate = true;
        } else if is("proxy-revalidate") {
            self.proxy_revalidate = true;
        } else if is("must-understand") {
            self.must_understand = true;
        } else if is("max-age") {
            self.max_age = smallest(self.max_age, argument);
        } else if is("s-maxage") {
            self.s_maxage = smallest(self.s_maxage, argument);
        } else if is("stale-while-revalidate") {
            self.stale_while_revalidate = smallest(self.stale_while_revalidate, argument);
        } else if is("stale-if-error") {
            self.stale_if_error = smallest(self.stale_if_error, argument);
        }
    }

    /// Whether a stale answer must not be served on the cache's own account (RFC 9111 §4.2.4). `s-maxage` says
    /// so too (§5.2.2.10), but gives way to the RFC 5861 directives next to it.
    pub(crate) fn forbids_stale(&self) -> bool {
        self.must_revalidate || self.proxy_revalidate || self.no_cache
    }
}

fn smallest(known: Option<u64>, argument: Option<&[u8]>) -> Option<u64> {
    let seconds = delta_seconds(argument);
    Some(known.map_or(seconds, |k| k.min(seconds)))
}

/// The request directives, for a cache that obeys them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RequestDirectives {
    pub(crate) no_store: bool,
    pub(crate) no_cache: bool,
    pub(crate) only_if_cached: bool,
    pub(crate) max_age: Option<u64>,
    pub(crate) min_fresh: Option<u64>,
    /// How stale an answer may be; without an argument, any.
    pub(crate) max_stale: Option<u64>,
}

impl RequestDirectives {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut directives = Self::default();
        for line in headers.get_all(CACHE_CONTROL) {
            for (name, argument) in members(line.as_bytes()) {
                directives.add(name, argument.as_deref());
            }
        }
        // RFC 9111 §5.4: Pragma counts where there is no Cache-Control
        if !headers.contains_key(CACHE_CONTROL) {
            let mut pragmas = headers
                .get_all(PRAGMA)
                .into_iter()
                .flat_map(|line| members(line.as_bytes()));
            directives.no_cache = pragmas.any(|(name, _)| name.eq_ignore_ascii_case(b"no-cache"));
        }
        directives
    }

    fn add(&mut self, name: &[u8], argument: Option<&[u8]>) {
        let is = |directive: &str| name.eq_ignore_ascii_case(directive.as_bytes());
        if is("no-store") {
            self.no_store = true;
        } else if is("no-cache") {
            self.no_cache = true;
        } else if is("only-if-cached") {
            self.only_if_cached = true;
        } else if is("max-age") {
            self.max_age = smallest(self.max_age, argument);
        } else if is("min-fresh") {
            self.min_fresh = Some(delta_seconds(argument));
        } else if is("max-stale") {
            self.max_stale = Some(argument.map_or(MAX_SECONDS, |a| delta_seconds(Some(a))));
        }
    }
}

/// What is no number is 0.
fn delta_seconds(argument: Option<&[u8]>) -> u64 {
    argument.and_then(seconds).unwrap_or(0)
}

/// RFC 9111 §1.2.2: a non-negative integer; what is larger than fits counts as the largest.
pub(super) fn seconds(digits: &[u8]) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    is_number.then(|| {
        digits
            .iter()
            .fold(0u64, |n, d| (n * 10 + u64::from(d - b'0')).min(MAX_SECONDS))
    })
}

/// The members of a list of `name[=argument]`, with quoted strings unquoted.
fn members(line: &[u8]) -> impl Iterator<Item = (&[u8], Option<Vec<u8>>)> {
    split_outside_quotes(line).filter_map(|member| {
        let (name, argument) = match member.iter().position(|&b| b == b'=') {
            Some(at) => (&member[..at], Some(unquote(member[at + 1..].trim_ascii()))),
            None => (member, None),
        };
        let name = name.trim_ascii();
        (!name.is_empty()).then_some((name, argument))
    })
}

fn split_outside_quotes(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (mut quoted, mut escaped) = (false, false);
    line.split(move |&byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => return true,
            _ => {}
        }
        false
    })
}

fn unquote(argument: &[u8]) -> Vec<u8> {
    let Some(inner) = argument
        .strip_prefix(b"\"")
        .and_then(|a| a.strip_suffix(b"\""))
    else {
        return argument.to_vec();
    };
    let mut escaped = false;
    inner
        .iter()
        .copied()
        .filter(|&byte| {
            escaped = byte == b'\\' && !escaped;
            !escaped
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn request_directives_and_pragma() {
        let request = |fields: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, value.parse().expect("a field value"));
            }
            RequestDirectives::of(&headers)
        };
        assert!(request(&[("pragma", "No-Cache")]).no_cache);
        assert!(!request(&[("pragma", "no-cache"), ("cache-control", "max-age=1")]).no_cache);
        assert_eq!(
            request(&[("cache-control", "max-stale")]).max_stale,
            Some(MAX_SECONDS)
        );
        assert_eq!(
            request(&[("cache-control", "max-stale=5, min-fresh=3")]).max_stale,
            Some(5)
        );
        assert_eq!(request(&[("cache-control", "max-age=x")]).max_age, Some(0));
    }

    fn parse(lines: &[&str]) -> CacheControl {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(CACHE_CONTROL, line.parse().expect("a field value"));
        }
        CacheControl::of(&headers)
    }

    #[test]
    fn directives_are_read_whatever_their_form() {
        let seconds = |n| CacheControl {
            max_age: Some(n),
            ..CacheControl::default()
        };
        assert_eq!(parse(&["max-age=60"]), seconds(60));
        assert_eq!(parse(&["MAX-AGE=\"60\""]), seconds(60));
        assert_eq!(parse(&[" , ,max-age = 60 , x=\"a,no-store\""]), seconds(60));
        assert_eq!(parse(&["max-age=60", "max-age=30"]), seconds(30));
        assert_eq!(
            parse(&["max-age=99999999999999999999"]),
            seconds(MAX_SECONDS)
        );
        assert_eq!(
            parse(&["max-age=60, No-Store"]),
            CacheControl {
                no_store: true,
                ..seconds(60)
            }
        );
        assert_eq!(
            parse(&["private=\"set-cookie\""]),
            CacheControl {
                private: true,
                ..CacheControl::default()
            }
        );
    }

    #[test]
    fn bad_numbers_make_the_answer_stale() {
        for bad in [
            "max-age",
            "max-age=",
            "max-age=-1",
            "max-age=1.5",
            "max-age=1s",
            "max-age=\"",
            "max-age=0x10",
        ] {
            assert_eq!(parse(&[bad]).max_age, Some(0), "{bad}");
        }
    }

    #[test]
    fn quotes_hide_commas_and_escapes_hide_quotes() {
        assert!(!parse(&[r#"x="a, no-store""#]).no_store);
        assert!(!parse(&[r#"x="a\", no-store""#]).no_store);
        assert!(parse(&[r#"x="a\\", no-store"#]).no_store);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_follows_never_takes_a_directive_back(before in "[ -~]{0,24}", after in "[ -~]{0,24}") {
            let line = |text: &str| text.trim().to_owned();
            let read = parse(&[&line(&before), "no-store, max-age=5", &line(&after)]);
            prop_assert!(read.no_store && read.max_age.is_some_and(|n| n <= 5));
        }
    }
}
