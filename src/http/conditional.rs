//! Preconditions: what a request asks of a stored answer, and what a 304 says about one (RFC 9110 §8.8 and §13,
//! RFC 9111 §3.2 and §4.3).
//!
//! 1. The order is that of RFC 9110 §13.2.2, and only an answer with status 200 has preconditions (§13.2.1).
//! 2. An entity-tag that is not one (no quotes, `w/`) equals nothing but the same bytes, and is never strong: a
//!    wrong "not modified" is worse than a body too many.
//! 3. `*` counts only where it stands alone (§13.1.1, §13.1.2).
//! 4. A date that cannot be read, or of which there are several, makes its field ignored (§13.1.3, §13.1.4).
//! 5. The inner service is asked about the stored validators only (RFC 9111 §4.3.1); what a client asks about is
//!    evaluated afterwards.
//! 6. A 304 that names validators has to name the stored ones (RFC 9111 §4.3.4).

use std::time::SystemTime;

use http::header::{
    CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, DATE, ETAG,
    HeaderName, HeaderValue, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    IF_UNMODIFIED_SINCE, LAST_MODIFIED, RANGE,
};
use http::{HeaderMap, StatusCode};

use super::cache_status::CACHE_STATUS;
use super::fields::stored_fields;

pub(crate) static CONDITIONALS: [HeaderName; 6] = [
    IF_MATCH,
    IF_NONE_MATCH,
    IF_MODIFIED_SINCE,
    IF_UNMODIFIED_SINCE,
    IF_RANGE,
    RANGE,
];

/// What a 304 must not change: it would no longer fit the stored body (RFC 9111 §3.2).
const OF_THE_STORED_BODY: [HeaderName; 4] = [
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    CONTENT_RANGE,
    HeaderName::from_static("content-md5"),
];

/// What describes a body, and therefore has no place beside none (RFC 9110 §15.4.5, RFC 9530 §2 and §3).
const OF_A_BODY: [HeaderName; 9] = [
    CONTENT_ENCODING,
    CONTENT_LANGUAGE,
    CONTENT_LENGTH,
    CONTENT_RANGE,
    CONTENT_TYPE,
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("content-md5"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("repr-digest"),
];

/// What the preconditions of a GET or HEAD come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Answer as if there were none.
    Proceed,
    /// 304: the client has this representation already.
    NotModified,
    /// 412: the client wants another representation than this.
    PreconditionFailed,
}

/// Evaluates the preconditions of a GET or HEAD against the answer that it would get. `Range` and `If-Range`
/// come after this (RFC 9110 §13.2.2 step 5).
pub(crate) fn evaluate(request: &HeaderMap, stored: &HeaderMap, status: StatusCode) -> Verdict {
    if status != StatusCode::OK {
        Verdict::Proceed // RFC 9110 §13.2.1
    } else if !is_as_expected(request, stored) {
        Verdict::PreconditionFailed
    } else if is_known_to_client(request, stored) {
        Verdict::NotModified
    } else {
        Verdict::Proceed
    }
}

/// RFC 9110 §13.2.2 steps 1 and 2.
fn is_as_expected(request: &HeaderMap, stored: &HeaderMap) -> bool {
    if request.contains_key(IF_MATCH) {
        return names(request, &IF_MATCH, stored, EntityTag::equals_strongly);
    }
    match (
        date(request, &IF_UNMODIFIED_SINCE),
        date(stored, &LAST_MODIFIED),
    ) {
        (Some(limit), Some(modified)) => modified <= limit,
        _ => true, // RFC 9110 §13.1.4: ignored without both dates
    }
}

/// RFC 9110 §13.2.2 steps 3 and 4.
fn is_known_to_client(request: &HeaderMap, stored: &HeaderMap) -> bool {
    if request.contains_key(IF_NONE_MATCH) {
        return names(request, &IF_NONE_MATCH, stored, EntityTag::equals_weakly);
    }
    // RFC 9111 §4.3.2: the answer's Date stands in for a Last-Modified that is not there
    let modified = if stored.contains_key(LAST_MODIFIED) {
        date(stored, &LAST_MODIFIED)
    } else {
        date(stored, &DATE)
    };
    match (date(request, &IF_MODIFIED_SINCE), modified) {
        (Some(since), Some(modified)) => modified <= since,
        _ => false,
    }
}

/// Whether the list `field` names the stored entity-tag, or anything at all with `*`.
fn names<'a>(
    request: &'a HeaderMap,
    field: &HeaderName,
    stored: &'a HeaderMap,
    equals: fn(EntityTag<'a>, EntityTag<'a>) -> bool,
) -> bool {
    members(request, field).eq([b"*"])
        || entity_tag(stored)
            .is_some_and(|tag| members(request, field).any(|m| equals(EntityTag::read(m), tag)))
}

/// The fields that ask the inner service whether a stored answer still holds (RFC 9111 §4.3.1); `None` if it
/// has no validator that the inner service knows. `etag_is_ours`: the tag is from [`generated_etag`].
pub(crate) fn revalidation(stored: &HeaderMap, etag_is_ours: bool) -> Option<HeaderMap> {
    let mut fields = HeaderMap::new();
    // what is no tag may be read as a list or as `*`, which the current representation always fulfils
    let tag = entity_tag(stored).filter(|t| !etag_is_ours && t.is_valid());
    if let (Some(_), Some(value)) = (tag, stored.get(ETAG)) {
        fields.insert(IF_NONE_MATCH, value.clone());
    }
    if let (Some(_), Some(value)) = (date(stored, &LAST_MODIFIED), stored.get(LAST_MODIFIED)) {
        fields.insert(IF_MODIFIED_SINCE, value.clone());
    }
    (!fields.is_empty()).then_some(fields)
}

/// Removes the preconditions and `Range` from a request, and returns them for the evaluation of the answer.
pub(crate) fn take_conditionals(request: &mut HeaderMap) -> Option<HeaderMap> {
    let taken = conditionals_of(request)?;
    for name in taken.keys() {
        request.remove(name);
    }
    Some(taken)
}

/// A copy of the preconditions and `Range` of a request, if there are any.
pub(crate) fn conditionals_of(request: &HeaderMap) -> Option<HeaderMap> {
    let mut found = HeaderMap::new(); // allocates with the first field
    for name in &CONDITIONALS {
        for value in request.get_all(name) {
            found.append(name, value.clone());
        }
    }
    (!found.is_empty()).then_some(found)
}

/// Whether a 304 is about this stored answer (RFC 9111 §4.3.4). The 304 must answer a request that
/// [`revalidation`] made from `stored`; an entity-tag of ours is unknown to the inner service, and has to be
/// removed from `stored` before.
pub(crate) fn is_about(not_modified: &HeaderMap, stored: &HeaderMap) -> bool {
    use EntityTag::Strong;
    match (entity_tag(not_modified), entity_tag(stored)) {
        (Some(new @ Strong(_)), Some(old)) => new.equals_strongly(old),
        (Some(new), Some(old)) => new.equals_weakly(old),
        (Some(Strong(_)), None) => false,
        (_, _) if not_modified.contains_key(LAST_MODIFIED) => {
            is_same_date(not_modified, stored, &LAST_MODIFIED)
        }
        // without any validator it can only mean the one that it was asked about
        (new, _) => new.is_none(),
    }
}

/// Updates a stored answer with the fields of a 304 that is about it (RFC 9111 §3.2). Whether the result may
/// still be stored has to be judged anew: a 304 may bring `no-store` or `Set-Cookie`. Without a `Date` of its
/// own it leaves the stored one.
pub(crate) fn freshen(stored: &mut HeaderMap, not_modified: &HeaderMap) {
    let mut update = stored_fields(not_modified, SystemTime::UNIX_EPOCH);
    if !not_modified.contains_key(DATE) {
        update.remove(DATE); // only made up
    }
    for name in OF_THE_STORED_BODY.iter().chain([&CACHE_STATUS]) {
        update.remove(name);
    }
    for name in update.keys() {
        stored.remove(name);
    }
    for (name, value) in &update {
        // too many lines for a head: what is already there matters more
        let _ = stored.try_append(name, value.clone());
    }
}

/// The fields of a 304 that is answered from a stored answer (RFC 9110 §15.4.5): those that say something about
/// caching and the exchange, not those that describe a body that is not there.
pub(crate) fn for_not_modified(stored: &HeaderMap) -> HeaderMap {
    let mut fields = stored.clone();
    for name in &OF_A_BODY {
        fields.remove(name);
    }
    if fields.contains_key(ETAG) {
        fields.remove(LAST_MODIFIED);
    }
    fields
}

/// An entity-tag for a body whose handler gave none: 128 bits of its hash.
pub(crate) fn generated_etag(body: &[u8], strong: bool) -> HeaderValue {
    let hash = blake3::hash(body).to_hex();
    let weakness = if strong { "" } else { "W/" };
    #[expect(
        clippy::expect_used,
        reason = "quotes and hexadecimal digits are a field value"
    )]
    HeaderValue::try_from(format!("{weakness}\"{}\"", &hash[..32])).expect("a field value")
}

/// An entity-tag without its decoration (RFC 9110 §8.8.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EntityTag<'a> {
    Strong(&'a [u8]),
    Weak(&'a [u8]),
    /// What stands where an entity-tag should.
    Invalid(&'a [u8]),
}

impl<'a> EntityTag<'a> {
    pub(super) fn read(member: &'a [u8]) -> Self {
        match member.strip_prefix(b"W/") {
            Some(rest) => opaque_tag(rest).map(Self::Weak),
            None => opaque_tag(member).map(Self::Strong),
        }
        .unwrap_or(Self::Invalid(member))
    }

    fn is_valid(self) -> bool {
        !matches!(self, Self::Invalid(_))
    }

    /// RFC 9110 §8.8.3.2.
    pub(super) fn equals_strongly(self, other: Self) -> bool {
        matches!((self, other), (Self::Strong(a), Self::Strong(b)) if a == b)
    }

    /// RFC 9110 §8.8.3.2.
    fn equals_weakly(self, other: Self) -> bool {
        match (self, other) {
            (Self::Strong(a) | Self::Weak(a), Self::Strong(b) | Self::Weak(b))
            | (Self::Invalid(a), Self::Invalid(b)) => a == b,
            _ => false,
        }
    }
}

/// RFC 9110 §8.8.3: `DQUOTE *etagc DQUOTE`. A backslash is a character like any other.
fn opaque_tag(quoted: &[u8]) -> Option<&[u8]> {
    let inner = quoted.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    let is_etagc = |&b: &u8| matches!(b, 0x21 | 0x23..=0x7e | 0x80..);
    inner.iter().all(is_etagc).then_some(inner)
}

/// The entity-tag of an answer; of several none counts.
pub(super) fn entity_tag(headers: &HeaderMap) -> Option<EntityTag<'_>> {
    only(headers, &ETAG).map(EntityTag::read)
}

/// The members of a list of entity-tags (RFC 9110 §5.6.1): empty ones are left out, commas in quotes are kept.
fn members<'a>(headers: &'a HeaderMap, field: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers.get_all(field).into_iter().flat_map(|line| {
        let mut quoted = false;
        line.as_bytes()
            .split(move |&byte| {
                quoted ^= byte == b'"';
                byte == b',' && !quoted
            })
            .map(<[u8]>::trim_ascii)
            .filter(|member| !member.is_empty())
    })
}

/// The value of a field that may have one only; `None` if it has several lines.
pub(super) fn only<'a>(headers: &'a HeaderMap, field: &HeaderName) -> Option<&'a [u8]> {
    let mut lines = headers.get_all(field).iter();
    let line = lines.next()?;
    lines.next().is_none().then(|| line.as_bytes().trim_ascii())
}

/// A date in any of the three forms (RFC 9110 §5.6.7).
pub(super) fn date(headers: &HeaderMap, field: &HeaderName) -> Option<SystemTime> {
    let text = std::str::from_utf8(only(headers, field)?).ok()?;
    httpdate::parse_http_date(text).ok()
}

fn is_same_date(a: &HeaderMap, b: &HeaderMap, field: &HeaderName) -> bool {
    match (date(a, field), date(b, field)) {
        (Some(a), Some(b)) => a == b,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http::fields_of as map;

    const EARLIER: &str = "Thu, 01 Jan 2026 00:00:00 GMT";
    const DAY: &str = "Fri, 02 Jan 2026 00:00:00 GMT";
    const LATER: &str = "Sat, 03 Jan 2026 00:00:00 GMT";

    fn verdict(request: &[(&str, &str)], stored: &[(&str, &str)]) -> Verdict {
        evaluate(&map(request), &map(stored), StatusCode::OK)
    }

    #[test]
    fn if_none_match_compares_weakly_and_reads_lists() {
        for (list, tag, expected) in [
            (r#""a""#, r#""a""#, Verdict::NotModified),
            (r#"W/"a""#, r#""a""#, Verdict::NotModified),
            (r#""a""#, r#"W/"a""#, Verdict::NotModified),
            (r#" ,, "x" ,"a", "#, r#""a""#, Verdict::NotModified),
            (r#""x,y" , "a,b""#, r#""a,b""#, Verdict::NotModified),
            (r#""a\","b""#, r#""b""#, Verdict::NotModified),
            ("\"é\"", "\"é\"", Verdict::NotModified),
            ("*", r#""a""#, Verdict::NotModified),
            (" , *", r#""a""#, Verdict::NotModified),
            (r#""""#, r#""""#, Verdict::NotModified),
            (r#""a,b""#, r#""a""#, Verdict::Proceed),
            (r#""A""#, r#""a""#, Verdict::Proceed),
            (r#"*, "b""#, r#""a""#, Verdict::Proceed),
            ("", r#""a""#, Verdict::Proceed),
        ] {
            let found = verdict(&[("if-none-match", list)], &[("etag", tag)]);
            assert_eq!(found, expected, "{list} {tag}");
        }
        let lines = [("if-none-match", r#""x""#), ("if-none-match", r#""a""#)];
        assert_eq!(
            verdict(&lines, &[("etag", r#""a""#)]),
            Verdict::NotModified,
            "a second line counts"
        );
    }

    #[test]
    fn what_is_no_entity_tag_equals_only_itself() {
        for (list, tag, expected) in [
            ("a", "a", Verdict::NotModified),
            (r#"w/"a""#, r#"w/"a""#, Verdict::NotModified),
            ("a", r#""a""#, Verdict::Proceed),
            (r#""a""#, "a", Verdict::Proceed),
            (r#"w/"a""#, r#"W/"a""#, Verdict::Proceed),
            (r#""a"#, r#""a""#, Verdict::Proceed),
            (r#""x"y, "a""#, r#""a""#, Verdict::NotModified),
            (r#""x"y", "a""#, r#""a""#, Verdict::Proceed),
        ] {
            let found = verdict(&[("if-none-match", list)], &[("etag", tag)]);
            assert_eq!(found, expected, "{list} {tag}");
        }
    }

    #[test]
    fn if_match_compares_strongly() {
        for (list, tag, expected) in [
            (r#""x", "a""#, Some(r#""a""#), Verdict::Proceed),
            ("*", Some(r#""a""#), Verdict::Proceed),
            ("*", None, Verdict::Proceed),
            (r#""x""#, Some(r#""a""#), Verdict::PreconditionFailed),
            (r#"W/"a""#, Some(r#"W/"a""#), Verdict::PreconditionFailed),
            (r#""a""#, Some(r#"W/"a""#), Verdict::PreconditionFailed),
            ("a", Some("a"), Verdict::PreconditionFailed),
            (r#""a""#, None, Verdict::PreconditionFailed),
        ] {
            let stored: Vec<_> = tag.map(|t| ("etag", t)).into_iter().collect();
            let found = verdict(&[("if-match", list)], &stored);
            assert_eq!(found, expected, "{list} {tag:?}");
        }
    }

    #[test]
    fn dates_are_compared_in_all_three_forms() {
        let stored = [("last-modified", DAY)];
        for (since, expected) in [
            (EARLIER, Verdict::Proceed),
            (DAY, Verdict::NotModified),
            (LATER, Verdict::NotModified),
            ("Friday, 02-Jan-26 00:00:00 GMT", Verdict::NotModified),
            ("Fri Jan  2 00:00:00 2026", Verdict::NotModified),
            ("2026-01-03", Verdict::Proceed),
            ("", Verdict::Proceed),
        ] {
            let found = verdict(&[("if-modified-since", since)], &stored);
            assert_eq!(found, expected, "{since}");
        }
        for (since, expected) in [
            (EARLIER, Verdict::PreconditionFailed),
            (DAY, Verdict::Proceed),
            ("never", Verdict::Proceed),
        ] {
            let found = verdict(&[("if-unmodified-since", since)], &stored);
            assert_eq!(found, expected, "{since}");
        }
        let twice = [("if-modified-since", LATER), ("if-modified-since", LATER)];
        assert_eq!(verdict(&twice, &stored), Verdict::Proceed, "several values");
    }

    #[test]
    fn date_stands_in_for_a_missing_last_modified_but_not_for_a_broken_one() {
        let request = [("if-modified-since", DAY)];
        let not_modified = Verdict::NotModified;
        assert_eq!(verdict(&request, &[("date", DAY)]), not_modified);
        assert_eq!(verdict(&request, &[("date", LATER)]), Verdict::Proceed);
        let broken = [("date", DAY), ("last-modified", "0")];
        assert_eq!(verdict(&request, &broken), Verdict::Proceed);
        assert_eq!(verdict(&request, &[]), Verdict::Proceed);
    }

    #[test]
    fn entity_tags_come_before_dates_and_failure_before_not_modified() {
        let stored = [("etag", r#""a""#), ("last-modified", DAY)];
        for (request, expected) in [
            (
                [("if-none-match", r#""x""#), ("if-modified-since", LATER)],
                Verdict::Proceed,
            ),
            (
                [("if-match", r#""a""#), ("if-unmodified-since", EARLIER)],
                Verdict::Proceed,
            ),
            (
                [("if-match", r#""x""#), ("if-none-match", r#""a""#)],
                Verdict::PreconditionFailed,
            ),
            (
                [("if-match", r#""a""#), ("if-none-match", r#""a""#)],
                Verdict::NotModified,
            ),
        ] {
            assert_eq!(verdict(&request, &stored), expected, "{request:?}");
        }
    }

    #[test]
    fn only_a_200_has_preconditions() {
        let request = map(&[("if-none-match", "*"), ("if-match", r#""x""#)]);
        for status in [204, 206, 301, 404, 500] {
            let status = StatusCode::from_u16(status).expect("a status");
            assert_eq!(
                evaluate(&request, &HeaderMap::new(), status),
                Verdict::Proceed
            );
        }
    }

    #[test]
    fn validators_that_the_inner_service_knows_revalidate() {
        let stored = map(&[("etag", r#"W/"a""#), ("last-modified", DAY)]);
        let both = map(&[("if-none-match", r#"W/"a""#), ("if-modified-since", DAY)]);
        assert_eq!(revalidation(&stored, false), Some(both));
        let date = map(&[("if-modified-since", DAY)]);
        assert_eq!(revalidation(&stored, true), Some(date));
        for stored in [
            map(&[("etag", "*")]),
            map(&[("etag", r#""a", "b""#)]),
            map(&[("etag", r#""a""#), ("etag", r#""b""#)]),
            map(&[("last-modified", "yesterday"), ("date", DAY)]),
        ] {
            assert_eq!(revalidation(&stored, false), None, "{stored:?}");
        }
    }

    #[test]
    fn conditionals_are_taken_with_all_their_lines() {
        let mut request = map(&[
            ("if-none-match", r#""a""#),
            ("accept", "*/*"),
            ("if-none-match", r#""b""#),
            ("range", "bytes=0-1"),
        ]);
        let copy = conditionals_of(&request).expect("conditionals");
        let taken = take_conditionals(&mut request).expect("conditionals");
        assert_eq!(copy, taken);
        assert_eq!(
            taken.get_all(IF_NONE_MATCH).iter().collect::<Vec<_>>(),
            [r#""a""#, r#""b""#]
        );
        assert_eq!(taken.len(), 3);
        assert_eq!(request, map(&[("accept", "*/*")]));
        assert_eq!(take_conditionals(&mut request), None);
    }

    #[test]
    fn a_304_is_about_the_answer_whose_validators_it_names() {
        let tag = |t| vec![("etag", t)];
        let modified = |d| vec![("last-modified", d)];
        let strong = r#""a""#;
        let weak = r#"W/"a""#;
        for (not_modified, stored, expected) in [
            (tag(strong), tag(strong), true),
            (tag(strong), tag(weak), false),
            (tag(weak), tag(strong), true),
            (tag(weak), tag(weak), true),
            (tag(r#""b""#), tag(strong), false),
            (tag(strong), modified(DAY), false),
            (tag(weak), modified(DAY), false),
            (
                [tag(weak), modified(DAY)].concat(),
                modified(DAY),
                true, // the weak validator that both have is the same
            ),
            (modified(DAY), modified(DAY), true),
            (modified(LATER), modified(DAY), false),
            (modified(DAY), vec![], false),
            ([tag(strong), modified(LATER)].concat(), tag(strong), true),
            (vec![], vec![], true),
            (vec![], modified(DAY), true),
            (vec![], tag(strong), true),
        ] {
            assert_eq!(
                is_about(&map(&not_modified), &map(&stored)),
                expected,
                "{not_modified:?} {stored:?}"
            );
        }
    }

    #[test]
    fn a_304_replaces_fields_but_not_what_describes_the_body() {
        let mut stored = map(&[
            ("content-type", "text/html"),
            ("content-encoding", "gzip"),
            ("etag", r#""a""#),
            ("x-list", "1"),
            ("x-list", "2"),
            ("x-kept", "1"),
            ("date", EARLIER),
        ]);
        freshen(
            &mut stored,
            &map(&[
                ("content-type", "text/plain"),
                ("content-encoding", "br"),
                ("content-length", "0"),
                ("content-range", "bytes 0-1/2"),
                ("cache-status", "inner; hit"),
                ("connection", "x-hop"),
                ("x-hop", "1"),
                ("age", "5"),
                ("etag", r#"W/"a""#),
                ("last-modified", DAY),
                ("x-list", "3"),
                ("x-list", "4"),
                ("cache-control", "max-age=1"),
            ]),
        );
        let expected = map(&[
            ("content-type", "text/plain"),
            ("content-encoding", "gzip"),
            ("etag", r#"W/"a""#),
            ("last-modified", DAY),
            ("x-list", "3"),
            ("x-list", "4"),
            ("x-kept", "1"),
            ("date", EARLIER),
            ("cache-control", "max-age=1"),
        ]);
        assert_eq!(stored, expected);
        freshen(&mut stored, &map(&[("date", LATER)]));
        assert_eq!(stored[DATE], LATER);
    }

    #[test]
    fn a_304_carries_no_description_of_a_body() {
        let stored = map(&[
            ("cache-control", "max-age=1"),
            ("content-location", "/a"),
            ("content-type", "text/html"),
            ("content-language", "en"),
            ("content-digest", "sha-256=:AA==:"),
            ("etag", r#""a""#),
            ("last-modified", DAY),
            ("vary", "accept"),
            ("x-other", "1"),
        ]);
        let expected = map(&[
            ("cache-control", "max-age=1"),
            ("content-location", "/a"),
            ("etag", r#""a""#),
            ("vary", "accept"),
            ("x-other", "1"),
        ]);
        assert_eq!(for_not_modified(&stored), expected);
        let dated = map(&[("last-modified", DAY)]);
        assert_eq!(
            for_not_modified(&dated),
            dated,
            "the only validator is kept"
        );
    }

    #[test]
    fn generated_tags_are_tags_of_the_body() {
        let weak = generated_etag(b"a", false);
        let strong = generated_etag(b"a", true);
        assert_eq!(weak.len(), 36);
        assert_eq!(weak.as_bytes(), [b"W/", strong.as_bytes()].concat());
        assert_ne!(strong, generated_etag(b"b", true));
        assert!(EntityTag::read(strong.as_bytes()).is_valid());
    }

    fn field_value() -> impl Strategy<Value = HeaderValue> {
        let bytes = prop_oneof![
            Just(b'"'),
            Just(b','),
            Just(b'W'),
            Just(b'/'),
            Just(b'*'),
            Just(b'a'),
            any::<u8>(),
        ];
        prop::collection::vec(bytes, 0..24)
            .prop_filter_map("a field value", |b| HeaderValue::from_bytes(&b).ok())
    }

    fn etagc() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![Just(b','), Just(b'\\'), 0x23u8..0x7f, 0x80u8..];
        prop::collection::vec(byte, 0..12)
    }

    fn tag_value(weak: bool, opaque: &[u8]) -> HeaderValue {
        let prefix: &[u8] = if weak { b"W/\"" } else { b"\"" };
        HeaderValue::from_bytes(&[prefix, opaque, b"\""].concat()).expect("a value")
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn arbitrary_fields_do_not_panic(values in prop::collection::vec(field_value(), 8)) {
            let [mut request, mut stored] = [HeaderMap::new(), HeaderMap::new()];
            for (name, value) in CONDITIONALS.iter().zip(&values) {
                request.append(name, value.clone());
            }
            stored.insert(ETAG, values[6].clone());
            stored.insert(LAST_MODIFIED, values[7].clone());
            let _ = evaluate(&request, &stored, StatusCode::OK);
            let _ = revalidation(&stored, false);
            prop_assert!(is_about(&stored, &stored) || date(&stored, &LAST_MODIFIED).is_none());
        }

        #[test]
        fn the_stored_tag_is_found_among_others(
            opaque in etagc(), other in field_value(), weak: bool, after: bool,
        ) {
            let tag = tag_value(weak, &opaque);
            let mut stored = HeaderMap::new();
            stored.insert(ETAG, tag.clone());
            let asked = |name: HeaderName| {
                let mut request = HeaderMap::new();
                for value in if after { [&other, &tag] } else { [&tag, &other] } {
                    request.append(&name, value.clone());
                }
                evaluate(&request, &stored, StatusCode::OK)
            };
            prop_assert_eq!(asked(IF_NONE_MATCH), Verdict::NotModified);
            if !weak {
                prop_assert_eq!(asked(IF_MATCH), Verdict::Proceed);
            }
        }

        #[test]
        fn different_tags_never_match(a in etagc(), b in etagc(), weak: bool) {
            prop_assume!(a != b);
            let request = HeaderMap::from_iter([(IF_NONE_MATCH, tag_value(weak, &a))]);
            let stored = HeaderMap::from_iter([(ETAG, tag_value(!weak, &b))]);
            prop_assert_eq!(evaluate(&request, &stored, StatusCode::OK), Verdict::Proceed);
        }
    }
}
