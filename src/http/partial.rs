//! Stored parts (RFC 9111 §3.3 and §3.4): a 206 that is kept, answers for ranges within it, and the completion of
//! a beginning.
//!
//! 1. A part is one contiguous range of a body whose length is known, and it has exactly the bytes that its
//!    `Content-Range` says.
//! 2. It answers a request for one range that lies within it, and nothing else.
//! 3. Parts are combined only if they share a strong validator; without one nobody knows whether they belong
//!    together.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use http::header::{
    CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderValue, IF_RANGE, RANGE,
};
use http::{HeaderMap, StatusCode};

use super::conditional::{EntityTag, entity_tag};
use super::range::{content_range, for_partial, if_range_holds, range_of, requested, value};

/// Whether this is the head of an answer that can be stored as a part: one range, of a body of known length.
pub(crate) fn is_part(status: StatusCode, headers: &HeaderMap) -> bool {
    let is_multipart = headers.get(CONTENT_TYPE).is_some_and(|kind| {
        kind.as_bytes()
            .to_ascii_lowercase()
            .starts_with(b"multipart/byteranges")
    });
    status == StatusCode::PARTIAL_CONTENT && !is_multipart && part_of(headers).is_some()
}

/// How long the body of a part has to be.
pub(crate) fn announced_length(headers: &HeaderMap) -> Option<u64> {
    part_of(headers).map(|(part, _)| (part.end - part.start) as u64)
}

/// The positions of a part, and the length of the whole.
fn part_of(headers: &HeaderMap) -> Option<(Range<usize>, usize)> {
    let range = content_range(headers)?;
    let position = |n: u64| usize::try_from(n).ok();
    let (first, last, complete) = (
        position(range.first)?,
        position(range.last)?,
        position(range.complete?)?,
    );
    Some((first..last.checked_add(1)?, complete))
}

/// What a request for one range gets of a stored part, if the range lies within it.
pub(crate) fn answer(
    request: &HeaderMap,
    stored: &HeaderMap,
    body: &Bytes,
) -> Option<(HeaderMap, Bytes)> {
    let (part, complete) = part_of(stored)?;
    let asked = requested(request)?;
    let [asked] = asked.as_slice() else {
        return None;
    };
    if part.len() != body.len() || !if_range_holds(request, stored) {
        return None;
    }
    let wanted = asked.within(complete)?;
    if wanted.start < part.start || wanted.end > part.end {
        return None;
    }
    let mut headers = for_partial(stored, wanted.len());
    headers.insert(CONTENT_RANGE, value(range_of(&wanted, complete)));
    Some((
        headers,
        body.slice(wanted.start - part.start..wanted.end - part.start),
    ))
}

/// What is missing behind a stored beginning.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rest {
    /// The fields that ask for it (RFC 9110 §13.1.5).
    pub(crate) fields: HeaderMap,
    pub(crate) length: usize,
}

/// None if what is stored is no beginning, or has no strong validator, or the whole would be longer than `limit`.
pub(crate) fn completion(stored: &HeaderMap, limit: usize) -> Option<Rest> {
    let (part, complete) = part_of(stored)?;
    let validator = strong(stored)?;
    if part.start != 0 || part.end >= complete || complete > limit {
        return None;
    }
    let mut fields = HeaderMap::new();
    fields.insert(RANGE, value(format!("bytes={}-", part.end)));
    fields.insert(IF_RANGE, validator.clone());
    Some(Rest {
        fields,
        length: complete - part.end,
    })
}

/// The complete answer out of a stored beginning and what followed it; none if they do not fit together.
pub(crate) fn combined(
    stored: (&HeaderMap, &Bytes),
    followed: (&HeaderMap, &Bytes),
) -> Option<(HeaderMap, Bytes)> {
    let ((beginning, complete), (rest, of)) = (part_of(stored.0)?, part_of(followed.0)?);
    let fits = complete == of
        && beginning.start == 0
        && beginning.len() == stored.1.len()
        && rest.start == beginning.end
        && rest.end == complete
        && rest.len() == followed.1.len()
        && strong(stored.0)? == strong(followed.0)?;
    if !fits {
        return None;
    }
    // RFC 9111 §3.4: the fields of the new answer replace those of the stored one
    let mut headers = stored.0.clone();
    for name in followed.0.keys() {
        headers.remove(name);
    }
    headers.extend(followed.0.clone());
    headers.remove(CONTENT_RANGE);
    headers.insert(CONTENT_LENGTH, complete.into());
    let mut body = BytesMut::with_capacity(complete);
    body.extend_from_slice(stored.1);
    body.extend_from_slice(followed.1);
    Some((headers, body.freeze()))
}

/// RFC 9110 §8.8.1.
fn strong(headers: &HeaderMap) -> Option<&HeaderValue> {
    match entity_tag(headers)? {
        EntityTag::Strong(_) => headers.get(ETAG),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::fields_of as map;

    fn part(range: &str, etag: &str) -> HeaderMap {
        map(&[("content-range", range), ("etag", etag), ("x-a", range)])
    }

    #[test]
    fn a_part_answers_one_range_within_it() {
        let (stored, body) = (
            part("bytes 4-9/20", r#""a""#),
            Bytes::from_static(b"456789"),
        );
        let got = |range: &str| {
            let answer = answer(&map(&[("range", range)]), &stored, &body)?;
            let range = answer.0[CONTENT_RANGE].to_str().expect("text").to_owned();
            Some((range, answer.1))
        };
        assert_eq!(
            got("bytes=4-9"),
            Some(("bytes 4-9/20".to_owned(), body.clone()))
        );
        assert_eq!(
            got("bytes=6-7"),
            Some(("bytes 6-7/20".to_owned(), Bytes::from_static(b"67")))
        );
        for outside in [
            "bytes=3-9",
            "bytes=4-10",
            "bytes=6-",
            "bytes=-5",
            "bytes=4-5,7-8",
            "bytes=30-",
            "lines=4-5",
        ] {
            assert_eq!(got(outside), None, "{outside}");
        }
        let request = map(&[("range", "bytes=4-5"), ("if-range", r#""b""#)]);
        assert_eq!(answer(&request, &stored, &body), None);
        assert_eq!(
            answer(&map(&[("range", "bytes=4-5")]), &stored, &body.slice(1..)),
            None,
            "a body that is too short"
        );
    }

    #[test]
    fn a_beginning_asks_for_the_rest_and_is_combined_with_it() {
        let (beginning, first) = (part("bytes 0-3/6", r#""a""#), Bytes::from_static(b"0123"));
        let missing = Rest {
            fields: map(&[("range", "bytes=4-"), ("if-range", r#""a""#)]),
            length: 2,
        };
        assert_eq!(completion(&beginning, 6), Some(missing));
        assert_eq!(completion(&beginning, 5), None, "the whole is too long");
        let rest = (part("bytes 4-5/6", r#""a""#), Bytes::from_static(b"45"));
        let (headers, body) = combined((&beginning, &first), (&rest.0, &rest.1)).expect("they fit");
        assert_eq!(body, "012345");
        assert_eq!(
            headers,
            map(&[
                ("etag", r#""a""#),
                ("x-a", "bytes 4-5/6"),
                ("content-length", "6")
            ])
        );
        for (range, etag, bytes) in [
            ("bytes 4-5/6", r#""b""#, "45"),
            ("bytes 4-5/6", r#"W/"a""#, "45"),
            ("bytes 3-5/6", r#""a""#, "345"),
            ("bytes 4-4/6", r#""a""#, "4"),
            ("bytes 4-6/7", r#""a""#, "456"),
            ("bytes 4-5/6", r#""a""#, "4"),
        ] {
            let bytes = Bytes::copy_from_slice(bytes.as_bytes());
            assert_eq!(
                combined((&beginning, &first), (&part(range, etag), &bytes)),
                None,
                "{range} {etag}"
            );
        }
    }

    #[test]
    fn without_a_strong_validator_or_a_beginning_nothing_is_completed() {
        for (range, etag) in [
            ("bytes 0-3/6", r#"W/"a""#),
            ("bytes 1-3/6", r#""a""#),
            ("bytes 0-5/6", r#""a""#),
            ("bytes 0-3/*", r#""a""#),
        ] {
            assert_eq!(completion(&part(range, etag), 6), None, "{range} {etag}");
        }
        assert!(is_part(
            StatusCode::PARTIAL_CONTENT,
            &part("bytes 0-3/6", "")
        ));
        assert!(!is_part(
            StatusCode::PARTIAL_CONTENT,
            &part("bytes 0-3/*", "")
        ));
        assert!(!is_part(StatusCode::OK, &part("bytes 0-3/6", "")));
        let several = map(&[
            ("content-type", "Multipart/ByteRanges; boundary=a"),
            ("content-range", "bytes 0-3/6"),
        ]);
        assert!(!is_part(StatusCode::PARTIAL_CONTENT, &several));
    }
}
