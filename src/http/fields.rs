//! Which fields are stored with an answer, and how a stored head is written down.
//!
//! 1. Fields that belong to one connection are not stored (RFC 9111 §3.1, RFC 9110 §7.6.1): the fixed ones
//!    and those that `Connection` lists, but never what says how to cache the answer: that is for every recipient.
//! 2. `Age` and `Cache-Status` of this cache are computed anew for every answer; `Content-Length` is that of the body.
//! 3. Several lines of one field, their order and every byte of their values are kept.
//! 4. A stored answer has a `Date` (RFC 9110 §6.6.1).

use std::time::SystemTime;

use bytes::Bytes;
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

/// Says in the status of a stored head that the cache made the `ETag`.
const ETAG_IS_OURS: u16 = 1 << 15;

/// What is added to each answer that is served: `Age`, `Cache-Status`, and perhaps `Cache-Control`.
const ADDED_FIELDS: usize = 3;

/// The fields of a stored answer as they are sent to whoever gets all of it: with the length of the body, so that it is
/// not written down for each; and with room for what is.
pub(crate) fn fields_to_serve(status: StatusCode, stored: HeaderMap, length: usize) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(stored.len() + 1 + ADDED_FIELDS);
    headers.extend(stored);
    add_length(status, &mut headers, length);
    headers
}

/// A stored head is read with room for all that [`fields_to_serve`] adds.
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
    let mut buffer = [0; 20];
    let digits = digits(n, &mut buffer);
    // digits are text
    HeaderValue::from_bytes(digits).unwrap_or_else(|_| HeaderValue::from_static("0"))
}

/// What `core::fmt` would make of it, in a fifth of the time; a hit writes two of them.
pub(crate) fn digits(mut n: u64, buffer: &mut [u8; 20]) -> &[u8] {
    let mut first = buffer.len();
    loop {
        first -= 1;
        buffer[first] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            return &buffer[first..];
        }
    }
}

/// The head as bytes: status, then for each line the lengths of name and value, and both. Numbers are
/// little-endian. `etag_is_ours`: the cache made the validator, and the handler does not know it.
pub(crate) fn encode_head(status: StatusCode, headers: &HeaderMap, etag_is_ours: bool) -> Vec<u8> {
    let size: usize = headers
        .iter()
        .map(|(n, v)| 6 + n.as_str().len() + v.len())
        .sum();
    let mut out = Vec::with_capacity(2 + size);
    let ours = if etag_is_ours { ETAG_IS_OURS } else { 0 };
    out.extend_from_slice(&(status.as_u16() | ours).to_le_bytes());
    for (name, value) in headers {
        // HeaderName is at most 64 KiB long, HeaderValue at most what one request may carry
        out.extend_from_slice(&(name.as_str().len() as u16).to_le_bytes());
        out.extend_from_slice(&(value.len() as u32).to_le_bytes());
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(value.as_bytes());
    }
    out
}

/// The reverse of [`encode_head`]; `None` if the bytes are not such a head. The values are parts of it, not copies.
pub(crate) fn decode_head(head: &Bytes) -> Option<(StatusCode, HeaderMap, bool)> {
    let mut bytes = &head[..];
    let first = u16::from_le_bytes(take(&mut bytes)?);
    let status = StatusCode::from_u16(first & !ETAG_IS_OURS).ok()?;
    let lines = Lines(bytes).count();
    let mut headers = HeaderMap::try_with_capacity(lines + 1 + ADDED_FIELDS).ok()?;
    for line in Lines(bytes) {
        let (name, value) = line?;
        headers
            .try_append(
                HeaderName::from_bytes(name).ok()?,
                HeaderValue::from_maybe_shared(head.slice_ref(value)).ok()?,
            )
            .ok()?;
    }
    Some((status, headers, first & ETAG_IS_OURS != 0))
}

/// Name and value of each line; `None`, and no more after that: there is no line.
struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = Option<(&'a [u8], &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        (!self.0.is_empty()).then(|| {
            let mut bytes = std::mem::take(&mut self.0);
            let name_length = u16::from_le_bytes(take(&mut bytes)?);
            let value_length = u32::from_le_bytes(take(&mut bytes)?);
            let (name, rest) = bytes.split_at_checked(name_length.into())?;
            let (value, rest) = rest.split_at_checked(usize::try_from(value_length).ok()?)?;
            self.0 = rest;
            Some((name, value))
        })
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&str, &[u8])]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let name: HeaderName = name.parse().expect("a name");
            headers.append(name, HeaderValue::from_bytes(value).expect("a value"));
        }
        headers
    }

    #[test]
    fn numbers_are_written_as_the_standard_library_does() {
        for n in [0, 1, 9, 10, 59, 100, 12_345, u64::MAX] {
            assert_eq!(number(n), n.to_string());
        }
    }

    #[test]
    fn a_head_survives_the_round_trip_byte_for_byte() {
        let headers = map(&[
            ("x-a", b"1"),
            ("x-b", b"\xff\xfe \t"),
            ("x-a", b""),
            ("x-a", b"2"),
        ]);
        let encoded = encode_head(StatusCode::from_u16(299).expect("a status"), &headers, true);
        let (status, decoded, etag_is_ours) = decode_head(&encoded.into()).expect("a head");
        assert!(etag_is_ours);
        assert_eq!(status.as_u16(), 299);
        assert_eq!(decoded, headers);
        assert_eq!(
            decoded.get_all("x-a").iter().collect::<Vec<_>>(),
            ["1", "", "2"]
        );
    }

    #[test]
    fn cut_or_changed_bytes_are_no_head_and_no_panic() {
        let encoded: Bytes = encode_head(
            StatusCode::OK,
            &map(&[("x-a", b"1"), ("x-long", &[b'x'; 300])]),
            false,
        )
        .into();
        let boundaries: Vec<usize> = (0..encoded.len())
            .filter(|&n| decode_head(&encoded.slice(..n)).is_some())
            .collect();
        assert_eq!(
            boundaries,
            [2, 2 + 6 + 3 + 1],
            "only whole lines make a head"
        );
        for at in 0..encoded.len() {
            let mut changed = encoded.to_vec();
            changed[at] ^= 0xff;
            let _ = decode_head(&changed.into());
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
