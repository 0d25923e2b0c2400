//! Ranges: cut out of what is stored, and of what a complete miss brought.

use tower_pgcache::GeneratedEtag;

use super::stage::{Fields, LONG_AGO, MINUTE, Stage};

const DIGITS: &str = "0123456789";

const CASES: &[(Fields<'static>, u16, &str, Option<&str>)] = &[
    (&[("range", "bytes=2-4")], 206, "234", Some("bytes 2-4/10")),
    (&[("range", "bytes=7-")], 206, "789", Some("bytes 7-9/10")),
    (&[("range", "bytes=-2")], 206, "89", Some("bytes 8-9/10")),
    (&[("range", "bytes=8-99")], 206, "89", Some("bytes 8-9/10")),
    (&[("range", "bytes=10-")], 416, "", Some("bytes */10")),
    (&[("range", "lines=1-2")], 200, DIGITS, None),
    (&[("range", "bytes=4-2")], 200, DIGITS, None),
    (
        &[("range", "bytes=2-4"), ("if-range", "\"1\"")],
        206,
        "234",
        Some("bytes 2-4/10"),
    ),
    (
        &[("range", "bytes=2-4"), ("if-range", "\"2\"")],
        200,
        DIGITS,
        None,
    ),
    (
        &[("range", "bytes=2-4"), ("if-range", "W/\"1\"")],
        200,
        DIGITS,
        None,
    ),
    (
        &[("range", "bytes=2-4"), ("if-none-match", "\"1\"")],
        304,
        "",
        None,
    ),
];

async fn origin() -> Stage {
    let fields = &[
        ("etag", "\"1\""),
        ("last-modified", LONG_AGO),
        ("content-type", "text/plain"),
    ];
    Stage::new(|l| l.ttl(MINUTE), fields, DIGITS).await
}

#[tokio::test]
async fn they_are_answered_alike_on_a_hit_and_on_a_miss() {
    let stage = origin().await;
    stage.get(&[]).await;
    for (n, (fields, status, body, content_range)) in CASES.iter().enumerate() {
        for uri in [&format!("/{n}"), "/a"] {
            let answer = stage.ask("GET", uri, fields).await;
            let what = format!("{uri} {fields:?}");
            assert_eq!(answer.is_hit(), uri == "/a");
            assert_eq!(answer.status, *status, "{what}");
            assert_eq!(answer.text(), *body, "{what}");
            assert_eq!(answer.header("content-range"), *content_range, "{what}");
            assert_eq!(stage.origin.was_asked("range"), None);
            if *status == 206 {
                let length = body.len().to_string();
                assert_eq!(answer.header("content-length"), Some(&*length));
            }
            let whole = stage.ask("GET", uri, &[]).await;
            assert_eq!((whole.text(), whole.is_hit()), (DIGITS, true));
        }
    }
}

#[tokio::test]
async fn several_come_in_parts() {
    let stage = origin().await;
    for hit in [false, true] {
        let answer = stage.get(&[("range", "bytes=0-1,5-6")]).await;
        assert_eq!(answer.is_hit(), hit);
        assert_eq!(answer.status, 206);
        let kind = answer.header("content-type").unwrap();
        let boundary = kind
            .strip_prefix("multipart/byteranges; boundary=")
            .unwrap();
        let part = |range: &str, body: &str| {
            format!(
                "\r\n--{boundary}\r\nContent-Type: text/plain\r\nContent-Range: bytes {range}/10\r\n\r\n{body}"
            )
        };
        let expected = format!(
            "{}{}\r\n--{boundary}--\r\n",
            part("0-1", "01"),
            part("5-6", "56")
        );
        assert_eq!(answer.text(), expected);
    }
}

/// Without a `Date` nobody knows whether the date is a strong validator; a stored answer has one.
#[tokio::test]
async fn a_date_continues_what_is_stored() {
    let stage = origin().await;
    for status in [200, 206] {
        let answer = stage
            .get(&[("range", "bytes=2-4"), ("if-range", LONG_AGO)])
            .await;
        assert_eq!(answer.status, status);
    }
}

#[tokio::test]
async fn a_head_has_none() {
    let stage = origin().await;
    stage.get(&[]).await;
    let answer = stage.ask("HEAD", "/a", &[("range", "bytes=2-4")]).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-length"), Some("10"));
    assert_eq!(answer.header("content-range"), None);
}

#[tokio::test]
async fn a_weak_tag_is_not_enough_to_continue() {
    for (etag, status) in [(GeneratedEtag::Weak, 200), (GeneratedEtag::Strong, 206)] {
        let stage = Stage::new(|l| l.ttl(MINUTE).etag(etag), &[], DIGITS).await;
        let tag = stage.get(&[]).await.header("etag").unwrap().to_owned();
        let answer = stage
            .get(&[("range", "bytes=5-"), ("if-range", &tag)])
            .await;
        assert!(answer.is_hit());
        assert_eq!(answer.status, status, "{etag:?}");
    }
}
