//! [`Notable`]: which kinds of fields a request has that matter to a cache.
//!
//! Found in one pass over the names. Most requests have few of them or none, and to look for each of some twenty names takes
//! longer than to find the answer in memory.

use http::header::{COOKIE, FORWARDED, HOST, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::http::claimed::{OVERRIDES, has_capitals, is_claim};
use crate::http::conditional::CONDITIONALS;
use crate::request::CREDENTIALS;

/// A set of kinds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Notable(u8);

impl Notable {
    /// In one of the known fields; see [`request::has_credentials`](crate::request::has_credentials).
    pub(crate) const CREDENTIALS: Self = Self(1);
    pub(crate) const COOKIES: Self = Self(2);
    /// What may be a claim; see [`claimed`](crate::http::claimed).
    pub(crate) const CLAIMS: Self = Self(4);
    /// Fields that ask for another method.
    pub(crate) const OVERRIDES: Self = Self(8);
    /// Preconditions and ranges.
    pub(crate) const CONDITIONALS: Self = Self(16);
    pub(crate) const UPGRADE: Self = Self(32);

    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let kinds = headers.iter().map(|(name, value)| kinds_of(name, value).0);
        Self(kinds.fold(0, |all, kinds| all | kinds))
    }

    pub(crate) const fn has(self, kind: Self) -> bool {
        self.0 & kind.0 != 0
    }

    const fn when(self, applies: bool) -> Self {
        if applies { self } else { Self(0) }
    }
}

fn kinds_of(name: &HeaderName, value: &HeaderValue) -> Notable {
    let is_credential = || Notable::CREDENTIALS.when(CREDENTIALS.contains(name));
    // the usual field is done with at its first letter
    match name.as_str().as_bytes().first() {
        Some(b'a' | b'p') => is_credential(),
        Some(b'c') => Notable::COOKIES.when(*name == COOKIE),
        Some(b'f') => Notable::CLAIMS.when(*name == FORWARDED || is_claim(name)),
        Some(b'h') => Notable::CLAIMS.when(*name == HOST && has_capitals(value.as_bytes())),
        Some(b'i' | b'r') => Notable::CONDITIONALS.when(CONDITIONALS.contains(name)),
        Some(b'u') => Notable::UPGRADE.when(*name == UPGRADE),
        Some(b'x') if OVERRIDES.contains(name) => Notable::OVERRIDES,
        Some(b'x') if is_claim(name) => Notable::CLAIMS,
        Some(b'x') => is_credential(),
        _ => Notable(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::claimed::CLAIMS;
    use crate::http::fields_of;

    fn of(fields: &[(&str, &str)]) -> Notable {
        Notable::of(&fields_of(fields))
    }

    #[test]
    fn every_name_of_a_kind_is_noted() {
        let assert_all = |names: &[HeaderName], kind: Notable| {
            for name in names {
                assert_eq!(of(&[("accept", "x"), (name.as_str(), "x")]), kind, "{name}");
            }
        };
        assert_all(&CREDENTIALS, Notable::CREDENTIALS);
        assert_all(&OVERRIDES, Notable::OVERRIDES);
        assert_all(&CONDITIONALS, Notable::CONDITIONALS);
        assert_all(&[COOKIE], Notable::COOKIES);
        assert_all(&[UPGRADE], Notable::UPGRADE);
        for name in CLAIMS.iter().chain(&["forwarded"]) {
            assert_eq!(of(&[(name, "x")]), Notable::CLAIMS, "{name}");
        }
        assert_eq!(of(&[("host", "a.Example")]), Notable::CLAIMS);
    }

    #[test]
    fn what_does_not_matter_is_not_noted() {
        let usual = [
            ("host", "a.example"),
            ("user-agent", "X"),
            ("accept", "*/*"),
            ("accept-encoding", "gzip"),
            ("connection", "keep-alive"),
            ("cache-control", "no-cache"),
            ("referer", "X"),
            ("x-forwarded-for", "192.0.2.1"),
            ("x-request-id", "1"),
            ("priority", "u=1"),
        ];
        assert_eq!(of(&usual), Notable::default());
        let mut all = usual.to_vec();
        all.extend([("cookie", "a=b"), ("range", "bytes=0-")]);
        let some = of(&all);
        assert!(some.has(Notable::COOKIES) && some.has(Notable::CONDITIONALS));
        assert!(!some.has(Notable::CREDENTIALS) && !some.has(Notable::CLAIMS));
    }
}
