//! Which fields are stored with an answer.
//!
//! 1. Fields that belong to one connection are not stored (RFC 9111 §3.1, RFC 9110 §7.6.1): the fixed ones
//!    and those that `Connection` lists, but never what says how to cache the answer: that is for every recipient.
//! 2. `Age` and `Cache-Status` of this cache are computed anew for every answer; `Content-Length` is that of the body.
//! 3. A stored answer has a `Date` (RFC 9110 §6.6.1).

use std::time::SystemTime;

use http::header::{
    AGE, CONNECTION, CONTENT_LENGTH, DATE, EXPIRES, HeaderName, HeaderValue, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE, VARY,
};
use http::{HeaderMap, StatusCode};

const PER_CONNECTION: [HeaderName; 5] = [CONNECTION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE];
const PER_CONNECTION_UNREGISTERED: [&str; 5] = [
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
];

/// The fields of an answer that are stored.
pub(crate) fn stored_fields(headers: &HeaderMap, received: SystemTime) -> HeaderMap {
    let listed: Vec<String> = headers
        .get_all(CONNECTION)
        .into_iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    // a map that is full panics; a head with so many lines is not stored, but is asked about
    let mut stored = HeaderMap::try_with_capacity(headers.len() + 1).unwrap_or_default();
    for (name, value) in headers {
        let is_of_connection = PER_CONNECTION.contains(name)
            || PER_CONNECTION_UNREGISTERED.contains(&name.as_str())
            || (listed.iter().any(|l| l == name.as_str()) && !is_for_caches(name));
        if !is_of_connection && name != AGE && name != CONTENT_LENGTH {
            let _ = stored.try_append(name, value.clone());
        }
    }
    if !stored.contains_key(DATE) {
        if let Ok(date) = HeaderValue::from_str(&httpdate::fmt_http_date(received)) {
            let _ = stored.try_insert(DATE, date);
        }
    }
    stored
}

/// What `Connection` must not list (RFC 9110 §7.6.1): without it an answer that was judged with
/// `must-revalidate` would be served stale. The targeted fields (RFC 9213) have names of this form, too.
fn is_for_caches(name: &HeaderName) -> bool {
    [EXPIRES, VARY].contains(name) || name.as_str().ends_with("cache-control")
}

/// The length of the body, so that it is not written down for each who gets it.
pub(crate) fn add_length(status: StatusCode, headers: &mut HeaderMap, length: usize) {
    if has_content(status) && status != StatusCode::PARTIAL_CONTENT {
        let length = || number(length as u64);
        headers.entry(CONTENT_LENGTH).or_insert_with(length);
    }
}

/// Whether answers with this status have a body, if only an empty one (RFC 9110 §6.4.1).
pub(crate) fn has_content(status: StatusCode) -> bool {
    !status.is_informational()
        && !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// In digits.
pub(crate) fn number(n: u64) -> HeaderValue {
    if let Some(small) = usize::try_from(n).ok().and_then(|n| SMALL.get(n)) {
        // an age mostly is: it takes no allocation
        let leading = small.iter().take_while(|&&digit| digit == b'0').count();
        let digits = std::str::from_utf8(&small[leading.min(2)..]);
        return HeaderValue::from_static(digits.unwrap_or("0"));
    }
    let mut buffer = [0; 20];
    let digits = digits(n, &mut buffer);
    // digits are text
    HeaderValue::from_bytes(digits).unwrap_or_else(|_| HeaderValue::from_static("0"))
}

/// The numbers of three digits, with zeros before them.
static SMALL: [[u8; 3]; 1000] = {
    let mut all = [[b'0'; 3]; 1000];
    let mut n = 0;
    while n < all.len() {
        all[n] = [digit(n as u64 / 100), digit(n as u64 / 10), digit(n as u64)];
        n += 1;
    }
    all
};

/// The last one.
const fn digit(n: u64) -> u8 {
    b'0' + (n % 10) as u8
}

/// What `core::fmt` would make of it, in a fifth of the time; a hit writes two of them.
pub(crate) fn digits(mut n: u64, buffer: &mut [u8; 20]) -> &[u8] {
    let mut first = buffer.len();
    loop {
        first -= 1;
        buffer[first] = digit(n);
        n /= 10;
        if n == 0 {
            return &buffer[first..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::fields_of;

    fn map(fields: &[(&str, &[u8])]) -> HeaderMap {
        fields_of(fields)
    }

    #[test]
    fn numbers_are_written_as_the_standard_library_does() {
        for n in (0..1100).chain([12_345, u64::MAX]) {
            assert_eq!(number(n), n.to_string());
        }
    }

    #[test]
    fn fields_of_the_connection_are_not_stored() {
        let headers = map(&[
            ("connection", b"close, X-Hop"),
            ("x-hop", b"1"),
            ("keep-alive", b"timeout=5"),
            ("transfer-encoding", b"chunked"),
            ("upgrade", b"h2c"),
            ("trailer", b"x"),
            ("te", b"trailers"),
            ("proxy-authenticate", b"Basic"),
            ("age", b"3"),
            ("content-length", b"5"),
            ("content-type", b"text/plain"),
            ("date", b"Thu, 01 Jan 2026 00:00:00 GMT"),
        ]);
        let stored = stored_fields(&headers, SystemTime::UNIX_EPOCH);
        let mut names: Vec<_> = stored.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-type", "date"]);
    }

    #[test]
    fn connection_cannot_remove_what_says_how_to_cache() {
        let headers = map(&[
            (
                "connection",
                b"cache-control, CDN-Cache-Control, expires, vary, date",
            ),
            ("cache-control", b"must-revalidate"),
            ("cdn-cache-control", b"max-age=1"),
            ("expires", b"0"),
            ("vary", b"accept"),
        ]);
        let stored = stored_fields(&headers, SystemTime::UNIX_EPOCH);
        let mut names: Vec<_> = stored.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        let expected = [
            "cache-control",
            "cdn-cache-control",
            "date",
            "expires",
            "vary",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn an_answer_without_a_date_gets_the_time_it_was_received() {
        let stored = stored_fields(&HeaderMap::new(), SystemTime::UNIX_EPOCH);
        assert_eq!(stored[DATE], "Thu, 01 Jan 1970 00:00:00 GMT");
    }
}
