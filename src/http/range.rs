//! Parts of a stored answer: `Range`, `If-Range` and `Content-Range` (RFC 9110 §14, §15.3.7, §15.5.17).
//!
//! 1. A `Range` that is malformed, given several times or in another unit than bytes is ignored (§14.2), as is
//!    one whose `If-Range` does not hold (§13.1.5).
//! 2. Numbers may have any length; what does not fit counts as the largest.
//! 3. Ranges that overlap or touch are sent as one part, in the order asked for (§15.3.7.2). More than 16 parts,
//!    or ranges that sum up to more than the body, get the whole body (§14.2, §17.15).
//! 4. One part is a slice of the body; only several are copied.
//! 5. Where every range lies behind the end, the answer is 416. A body of no bytes has a last byte to ask for,
//!    but `Content-Range` cannot say so (§14.4): the answer stays whole.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::header::{
    CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, DATE, HeaderName, HeaderValue, IF_RANGE,
    LAST_MODIFIED, RANGE,
};

use super::conditional::{EntityTag, date, entity_tag, only};

const MAX_PARTS: usize = 16;

/// Digests of what is sent, not of the representation (RFC 9530 §2).
const DIGESTS_OF_CONTENT: [HeaderName; 2] = [
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("content-md5"),
];

/// What of a stored answer a request gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ranged {
    /// All of it, as if there were no `Range`.
    Whole,
    /// 206: these fields and bytes.
    Partial { headers: HeaderMap, body: Bytes },
    /// 416 with these fields.
    Unsatisfiable { headers: HeaderMap },
}

/// What `request` gets of a complete 200.
pub(crate) fn apply(request: &HeaderMap, stored: &HeaderMap, body: &Bytes) -> Ranged {
    let Some(set) = requested(request) else {
        return Ranged::Whole;
    };
    if !if_range_holds(request, stored) {
        return Ranged::Whole;
    }
    let ranges: Vec<_> = set.iter().filter_map(|s| s.within(body.len())).collect();
    if ranges.is_empty() {
        return unsatisfied(&set, body.len());
    }
    let total = ranges.iter().map(Range::len).fold(0, usize::saturating_add);
    let parts = coalesced(ranges);
    match parts.as_slice() {
        _ if total > body.len() || parts.len() > MAX_PARTS => Ranged::Whole,
        [part] => single(part, stored, body),
        parts => multipart(parts, stored, body),
    }
}

/// A member of a range set (RFC 9110 §14.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RangeSpec {
    /// `4-`
    From(u64),
    /// `4-9`
    Between(u64, u64),
    /// `-5`
    Last(u64),
}

impl RangeSpec {
    fn parse(member: &[u8]) -> Option<Self> {
        let dash = member.iter().position(|&b| b == b'-')?;
        let (first, last) = (&member[..dash], &member[dash + 1..]);
        match (first, last) {
            (b"", suffix) => number(suffix).map(Self::Last),
            (first, b"") => number(first).map(Self::From),
            (first, last) => {
                let spec = Self::Between(number(first)?, number(last)?);
                (magnitude(first) <= magnitude(last)).then_some(spec)
            }
        }
    }

    /// The bytes of a body of this length, if there are any (RFC 9110 §14.1.2).
    pub(super) fn within(self, length: usize) -> Option<Range<usize>> {
        let saturated = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let range = match self {
            Self::From(first) => saturated(first)..length,
            Self::Between(first, last) => {
                saturated(first)..saturated(last).saturating_add(1).min(length)
            }
            Self::Last(count) => length.saturating_sub(saturated(count))..length,
        };
        (!range.is_empty()).then_some(range)
    }
}

/// The ranges of bytes that a request asks for, whether or not they can be had; `None` if it has to be answered
/// as if it did not ask.
pub(crate) fn requested(request: &HeaderMap) -> Option<Vec<RangeSpec>> {
    let value = only(request, &RANGE)?;
    let equals = value.iter().position(|&b| b == b'=')?;
    let (unit, set) = (&value[..equals], &value[equals + 1..]);
    if !unit.eq_ignore_ascii_case(b"bytes") {
        return None;
    }
    let set: Vec<_> = set
        .split(|&b| b == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|member| !member.is_empty())
        .map(RangeSpec::parse)
        .collect::<Option<_>>()?;
    (!set.is_empty()).then_some(set)
}

fn number(digits: &[u8]) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    is_number.then(|| {
        digits.iter().fold(0u64, |n, d| {
            n.saturating_mul(10).saturating_add(u64::from(d - b'0'))
        })
    })
}

/// Compares like the number, of whatever length.
fn magnitude(digits: &[u8]) -> (usize, &[u8]) {
    let zeros = digits.iter().take_while(|&&d| d == b'0').count();
    (digits.len() - zeros, &digits[zeros..])
}

/// RFC 9110 §13.1.5: what the client has a part of is still what is stored.
pub(super) fn if_range_holds(request: &HeaderMap, stored: &HeaderMap) -> bool {
    if !request.contains_key(IF_RANGE) {
        return true;
    }
    let Some(validator) = only(request, &IF_RANGE) else {
        return false;
    };
    match date(request, &IF_RANGE) {
        Some(asked) => {
            date(stored, &LAST_MODIFIED) == Some(asked) && has_strong_last_modified(stored)
        }
        None => {
            entity_tag(stored).is_some_and(|tag| EntityTag::read(validator).equals_strongly(tag))
        }
    }
}

/// RFC 9110 §8.8.2.2: no second change can have happened within the second that the date names.
fn has_strong_last_modified(stored: &HeaderMap) -> bool {
    match (date(stored, &DATE), date(stored, &LAST_MODIFIED)) {
        (Some(date), Some(modified)) => date
            .duration_since(modified)
            .is_ok_and(|age| age >= Duration::from_secs(1)),
        _ => false,
    }
}

/// Joins what overlaps or touches; what is left comes in the order asked for.
fn coalesced(ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    let mut asked: Vec<_> = ranges.into_iter().enumerate().collect();
    asked.sort_unstable_by_key(|(_, range)| range.start);
    let mut parts: Vec<(usize, Range<usize>)> = Vec::new();
    for (order, range) in asked {
        match parts.last_mut() {
            Some((first, part)) if range.start <= part.end => {
                *first = order.min(*first);
                part.end = range.end.max(part.end);
            }
            _ => parts.push((order, range)),
        }
    }
    parts.sort_unstable_by_key(|(order, _)| *order);
    parts.into_iter().map(|(_, range)| range).collect()
}

/// RFC 9110 §15.5.17.
fn unsatisfied(set: &[RangeSpec], length: usize) -> Ranged {
    let asks_for_last = set.iter().any(|s| matches!(s, RangeSpec::Last(1..)));
    if length == 0 && asks_for_last {
        return Ranged::Whole;
    }
    let headers = HeaderMap::from_iter([(CONTENT_RANGE, value(format!("bytes */{length}")))]);
    Ranged::Unsatisfiable { headers }
}

/// RFC 9110 §15.3.7.1.
fn single(part: &Range<usize>, stored: &HeaderMap, body: &Bytes) -> Ranged {
    let mut headers = for_partial(stored, part.len());
    headers.insert(CONTENT_RANGE, value(range_of(part, body.len())));
    let body = body.slice(part.clone());
    Ranged::Partial { headers, body }
}

/// RFC 9110 §15.3.7.2 and §14.6.
fn multipart(parts: &[Range<usize>], stored: &HeaderMap, body: &Bytes) -> Ranged {
    let boundary = boundary(parts, body);
    let content_type = stored.get(CONTENT_TYPE);
    let mut content = Vec::new();
    for part in parts {
        content.extend_from_slice(format!("\r\n--{boundary}\r\n").as_bytes());
        if let Some(content_type) = content_type {
            content.extend_from_slice(b"Content-Type: ");
            content.extend_from_slice(content_type.as_bytes());
            content.extend_from_slice(b"\r\n");
        }
        let range = range_of(part, body.len());
        content.extend_from_slice(format!("Content-Range: {range}\r\n\r\n").as_bytes());
        content.extend_from_slice(&body[part.clone()]);
    }
    content.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());

    let mut headers = for_partial(stored, content.len());
    headers.remove(CONTENT_RANGE); // §15.3.7.2: MUST NOT stand beside the parts' own
    let content_type = format!("multipart/byteranges; boundary={boundary}");
    headers.insert(CONTENT_TYPE, value(content_type));
    let body = content.into();
    Ranged::Partial { headers, body }
}

/// A line that no part contains. It follows from the parts, so that whoever writes a body cannot write its
/// boundary into it; the search is for those who do not believe in hashes.
fn boundary(parts: &[Range<usize>], body: &[u8]) -> String {
    let mut hash = blake3::Hasher::new();
    for part in parts {
        hash.update(&(part.start as u64).to_le_bytes());
        hash.update(&body[part.clone()]);
    }
    loop {
        let boundary = hash.finalize().to_hex()[..32].to_owned();
        let occurs = |part: &Range<usize>| contains(&body[part.clone()], boundary.as_bytes());
        if !parts.iter().any(occurs) {
            return boundary;
        }
        hash.update(b"+");
    }
}

fn contains(body: &[u8], wanted: &[u8]) -> bool {
    body.windows(wanted.len())
        .any(|window| window.first() == wanted.first() && window == wanted)
}

pub(super) fn for_partial(stored: &HeaderMap, length: usize) -> HeaderMap {
    let mut headers = stored.clone();
    for name in &DIGESTS_OF_CONTENT {
        headers.remove(name);
    }
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    headers
}

pub(super) fn range_of(part: &Range<usize>, complete: usize) -> String {
    format!("bytes {}-{}/{complete}", part.start, part.end - 1)
}

#[expect(clippy::expect_used, reason = "digits, words and dashes of ours")]
pub(super) fn value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).expect("a field value")
}

/// Which bytes a 206 carries (RFC 9110 §14.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ContentRange {
    /// The position of the first byte.
    pub(super) first: u64,
    /// The position of the last byte.
    pub(super) last: u64,
    /// The length of the whole representation, if it is known.
    pub(super) complete: Option<u64>,
}

/// The `Content-Range` of a 206 with one part; `None` if it is invalid or names no bytes (`bytes */10`).
pub(super) fn content_range(headers: &HeaderMap) -> Option<ContentRange> {
    let value = std::str::from_utf8(only(headers, &CONTENT_RANGE)?).ok()?;
    let (unit, range) = value.split_once(' ')?;
    let (positions, complete) = range.split_once('/')?;
    let (first, last) = positions.split_once('-')?;
    let (first, last) = (exact(first)?, exact(last)?);
    let complete = match complete {
        "*" => None,
        digits => Some(exact(digits)?),
    };
    let is_valid = unit.eq_ignore_ascii_case("bytes")
        && first <= last
        && complete.is_none_or(|length| last < length);
    is_valid.then_some(ContentRange {
        first,
        last,
        complete,
    })
}

fn exact(digits: &str) -> Option<u64> {
    let is_number = digits.bytes().all(|b| b.is_ascii_digit()); // `parse` takes a sign, too
    is_number.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http::fields_of as map;

    const BODY: Bytes = Bytes::from_static(b"0123456789");
    const MONDAY: &str = "Mon, 05 Jan 2026 00:00:00 GMT";
    const A_SECOND_LATER: &str = "Mon, 05 Jan 2026 00:00:01 GMT";

    fn ranged(range: &str) -> Ranged {
        apply(&map(&[("range", range)]), &HeaderMap::new(), &BODY)
    }

    fn part(range: &str) -> (String, Bytes) {
        match ranged(range) {
            Ranged::Partial { headers, body } => {
                assert_eq!(headers[CONTENT_LENGTH], body.len().to_string());
                let range = headers[CONTENT_RANGE].to_str().expect("text");
                (range.to_owned(), body)
            }
            other => panic!("{range}: {other:?}"),
        }
    }

    /// The parts of a multipart body: their fields and their bytes.
    fn parts_of(headers: &HeaderMap, body: &[u8]) -> Vec<(ContentRange, Vec<u8>)> {
        let content_type = headers[CONTENT_TYPE].to_str().expect("text");
        let (_, boundary) = content_type.split_once("boundary=").expect("a boundary");
        let delimiter = format!("\r\n--{boundary}");
        let at: Vec<usize> = (0..body.len())
            .filter(|&at| body[at..].starts_with(delimiter.as_bytes()))
            .collect();
        assert_eq!(at.first(), Some(&0));
        assert_eq!(
            &body[at[at.len() - 1]..],
            format!("{delimiter}--\r\n").as_bytes()
        );
        at.windows(2)
            .map(|w| {
                let part = &body[w[0] + delimiter.len() + 2..w[1]];
                let end = (0..part.len())
                    .find(|&at| part[at..].starts_with(b"\r\n\r\n"))
                    .expect("a head");
                let head = std::str::from_utf8(&part[..end]).expect("text");
                let lines: Vec<_> = head
                    .split("\r\n")
                    .map(|line| line.split_once(": ").expect("a field"))
                    .collect();
                let range = content_range(&map(&lines)).expect("a range");
                (range, part[end + 4..].to_vec())
            })
            .collect()
    }

    #[test]
    fn one_range_is_a_slice_of_the_body() {
        for (range, content_range, expected) in [
            ("bytes=0-4", "bytes 0-4/10", "01234"),
            ("BYTES=4-4", "bytes 4-4/10", "4"),
            ("bytes=7-", "bytes 7-9/10", "789"),
            ("bytes=-3", "bytes 7-9/10", "789"),
            ("bytes=-99", "bytes 0-9/10", "0123456789"),
            ("bytes=0-", "bytes 0-9/10", "0123456789"),
            ("bytes=8-99999999999999999999999", "bytes 8-9/10", "89"),
            ("bytes= ,8-9 , 20-30,", "bytes 8-9/10", "89"),
            ("bytes=3-4,5-6,0-2", "bytes 0-6/10", "0123456"),
        ] {
            let (found, body) = part(range);
            assert_eq!(
                (found.as_str(), &body[..]),
                (content_range, expected.as_bytes()),
                "{range}"
            );
            let offset = body.as_ptr() as usize - BODY.as_ptr() as usize;
            assert!(offset < BODY.len(), "{range}: not a slice");
        }
    }

    #[test]
    fn what_is_no_range_is_ignored() {
        for range in [
            "",
            "bytes",
            "bytes=",
            "bytes=,",
            "bytes=-",
            "bytes=a-b",
            "bytes=1",
            "bytes=5-4",
            "bytes=99999999999999999999999-99999999999999999999998",
            "bytes=0-1,x",
            "bytes=+1-2",
            "bytes=1 - 2",
            "bytes=1--2",
            "bytes =1-2",
            "lines=0-1",
        ] {
            assert_eq!(ranged(range), Ranged::Whole, "{range}");
        }
        let twice = map(&[("range", "bytes=0-1"), ("range", "bytes=0-1")]);
        assert_eq!(apply(&twice, &HeaderMap::new(), &BODY), Ranged::Whole);
    }

    #[test]
    fn ranges_behind_the_end_are_not_satisfiable() {
        let headers = map(&[("content-range", "bytes */10")]);
        for range in [
            "bytes=10-",
            "bytes=10-20",
            "bytes=-0",
            "bytes=99999999999999999999999-",
            "bytes=10-11,-0",
        ] {
            let expected = Ranged::Unsatisfiable {
                headers: headers.clone(),
            };
            assert_eq!(ranged(range), expected, "{range}");
        }
    }

    #[test]
    fn an_empty_body_has_no_parts() {
        let of_nothing = |range| apply(&map(&[("range", range)]), &HeaderMap::new(), &Bytes::new());
        assert_eq!(of_nothing("bytes=-5"), Ranged::Whole);
        assert!(matches!(
            of_nothing("bytes=0-"),
            Ranged::Unsatisfiable { .. }
        ));
    }

    #[test]
    fn several_ranges_come_as_parts_in_the_order_asked_for() {
        let stored = map(&[
            ("content-type", "text/plain"),
            ("content-digest", "sha-256=:AA==:"),
            ("etag", "\"a\""),
        ]);
        let request = map(&[("range", "bytes=7-8, 0-1, 2-2, 20-")]);
        let Ranged::Partial { headers, body } = apply(&request, &stored, &BODY) else {
            panic!("no parts");
        };
        assert_eq!(headers["etag"], "\"a\"");
        assert!(!headers.contains_key("content-digest"));
        assert!(!headers.contains_key(CONTENT_RANGE));
        assert_eq!(headers[CONTENT_LENGTH], body.len().to_string());
        let text = std::str::from_utf8(&body).expect("text");
        assert!(text.contains(
            "\r\nContent-Type: text/plain\r\nContent-Range: bytes 7-8/10\r\n\r\n78\r\n--"
        ));
        let parts: Vec<_> = parts_of(&headers, &body)
            .into_iter()
            .map(|(range, bytes)| (range.first, bytes))
            .collect();
        assert_eq!(parts, [(7, b"78".to_vec()), (0, b"012".to_vec())]);
    }

    #[test]
    fn too_many_parts_or_bytes_get_the_whole_body() {
        let body = Bytes::from(vec![0; 100]);
        let of_hundred =
            |range: String| apply(&map(&[("range", &range)]), &HeaderMap::new(), &body);
        let scattered = |parts: usize| {
            let set: Vec<_> = (0..parts).map(|n| format!("{0}-{0}", 2 * n)).collect();
            format!("bytes={}", set.join(","))
        };
        assert!(matches!(of_hundred(scattered(16)), Ranged::Partial { .. }));
        assert_eq!(of_hundred(scattered(17)), Ranged::Whole);
        assert_eq!(of_hundred("bytes=0-,0-".into()), Ranged::Whole);
        let bomb = format!("bytes={}", vec!["0-"; 5000].join(","));
        assert_eq!(of_hundred(bomb), Ranged::Whole);
    }

    #[test]
    fn if_range_needs_a_strong_validator_that_is_stored() {
        let tag = |t| vec![("etag", t)];
        let dated = |date| vec![("last-modified", MONDAY), ("date", date)];
        for (if_range, stored, holds) in [
            (r#""a""#, tag(r#""a""#), true),
            (r#""b""#, tag(r#""a""#), false),
            (r#"W/"a""#, tag(r#"W/"a""#), false),
            ("a", tag("a"), false),
            (r#""a""#, vec![], false),
            (MONDAY, dated(A_SECOND_LATER), true),
            (
                "Monday, 05-Jan-26 00:00:00 GMT",
                dated(A_SECOND_LATER),
                true,
            ),
            (A_SECOND_LATER, dated(A_SECOND_LATER), false),
            (MONDAY, dated(MONDAY), false),
            (MONDAY, vec![("last-modified", MONDAY)], false),
            ("", vec![], false),
        ] {
            let request = map(&[("range", "bytes=0-0"), ("if-range", if_range)]);
            let is_partial = apply(&request, &map(&stored), &BODY) != Ranged::Whole;
            assert_eq!(is_partial, holds, "{if_range} {stored:?}");
        }
    }

    #[test]
    fn content_range_is_read_strictly() {
        let read = |value| content_range(&map(&[("content-range", value)]));
        let range = |first, last, complete| {
            Some(ContentRange {
                first,
                last,
                complete,
            })
        };
        assert_eq!(read("bytes 4-9/10"), range(4, 9, Some(10)));
        assert_eq!(read("Bytes 4-9/*"), range(4, 9, None));
        for bad in [
            "bytes */10",
            "bytes 4-10/10",
            "bytes 5-4/10",
            "bytes=4-9/10",
            "bytes +4-9/10",
            "bytes 4-9",
            "bytes 4-/10",
            "bytes 0-99999999999999999999/*",
            "lines 4-9/10",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    fn range_value() -> impl Strategy<Value = String> {
        let number = prop_oneof![0u64..12, any::<u64>()];
        let spec = prop_oneof![
            (0u64..60, 0u64..60).prop_map(|(a, b)| format!("{}-{}", a.min(b), a.max(b))),
            number.clone().prop_map(|n| format!("{n}-")),
            number.prop_map(|n| format!("-{n}")),
        ];
        prop::collection::vec(spec, 1..20).prop_map(|set| format!("bytes={}", set.join(", ")))
    }

    /// What the ranges of a valid set name, byte by byte.
    fn named(request: &HeaderMap, length: usize) -> Vec<bool> {
        let mut named = vec![false; length];
        for spec in requested(request).expect("a valid set") {
            for (at, named) in named.iter_mut().enumerate() {
                let at = at as u64;
                *named |= match spec {
                    RangeSpec::From(first) => at >= first,
                    RangeSpec::Between(first, last) => (first..=last).contains(&at),
                    RangeSpec::Last(count) => length as u64 - at <= count,
                };
            }
        }
        named
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn parts_are_exactly_the_bytes_asked_for(
            range in range_value(), body in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let request = map(&[("range", &range)]);
            let body = Bytes::from(body);
            let named = named(&request, body.len());
            match apply(&request, &HeaderMap::new(), &body) {
                Ranged::Whole => {}
                Ranged::Unsatisfiable { .. } => prop_assert!(!named.contains(&true)),
                Ranged::Partial { headers, body: sent } => {
                    let parts = match content_range(&headers) {
                        Some(range) => vec![(range, sent.to_vec())],
                        None => parts_of(&headers, &sent),
                    };
                    let mut covered = vec![false; body.len()];
                    for (range, bytes) in parts {
                        prop_assert_eq!(range.complete, Some(body.len() as u64));
                        let (first, last) = (range.first as usize, range.last as usize);
                        prop_assert_eq!(&body[first..=last], &bytes[..]);
                        prop_assert!(!covered[first..=last].contains(&true), "no byte comes twice");
                        covered[first..=last].fill(true);
                    }
                    prop_assert_eq!(covered, named);
                }
            }
        }

        #[test]
        fn arbitrary_fields_do_not_panic(
            range in prop::collection::vec(any::<u8>(), 0..24), digits in "[0-9,-]{0,24}",
        ) {
            let arbitrary = [b"bytes=".to_vec(), range.clone()].concat();
            for bytes in [range, arbitrary, format!("bytes={digits}").into_bytes()] {
                let Ok(value) = HeaderValue::from_bytes(&bytes) else { continue };
                let headers = HeaderMap::from_iter([
                    (RANGE, value.clone()),
                    (IF_RANGE, value.clone()),
                    (CONTENT_RANGE, value),
                ]);
                let _ = (apply(&headers, &headers, &BODY), content_range(&headers));
                let mut unconditional = headers;
                unconditional.remove(IF_RANGE);
                let _ = apply(&unconditional, &HeaderMap::new(), &BODY);
            }
        }
    }
}
