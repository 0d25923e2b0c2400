//! Preconditions: answered by the cache, from what is stored and on a complete miss.

use http::StatusCode;
use tower_pgcache::GeneratedEtag;

use super::stage::{Fields, LONG_AGO, MINUTE, Stage, ask, engine, says, with_ttl};

const EARLIER: &str = "Wed, 31 Dec 2025 00:00:00 GMT";
const LATER: &str = "Fri, 02 Jan 2026 00:00:00 GMT";

const CASES: &[(Fields<'static>, u16)] = &[
    (&[("if-none-match", "\"1\"")], 304),
    (&[("if-none-match", "W/\"1\"")], 304),
    (&[("if-none-match", "\"0\", \"1\"")], 304),
    (
        &[("if-none-match", "\"0\""), ("if-none-match", "\"1\"")],
        304,
    ),
    (&[("if-none-match", "*")], 304),
    (&[("if-none-match", "\"2\"")], 200),
    (
        &[("if-none-match", "\"2\""), ("if-modified-since", LATER)],
        200,
    ),
    (&[("if-modified-since", LONG_AGO)], 304),
    (&[("if-modified-since", LATER)], 304),
    (&[("if-modified-since", EARLIER)], 200),
    (&[("if-modified-since", "yesterday")], 200),
    (&[("if-match", "\"1\"")], 200),
    (&[("if-match", "*")], 200),
    (&[("if-match", "W/\"1\"")], 412),
    (&[("if-match", "\"2\"")], 412),
    (&[("if-unmodified-since", LATER)], 200),
    (&[("if-unmodified-since", EARLIER)], 412),
];

async fn origin() -> Stage {
    let fields = &[
        ("etag", "\"1\""),
        ("last-modified", LONG_AGO),
        ("content-type", "text/plain"),
        ("cache-control", "s-maxage=60"),
        ("x-own", "yes"),
    ];
    Stage::new(|l| l.ttl(MINUTE), fields, "the body").await
}

#[tokio::test]
async fn they_are_answered_alike_on_a_hit_and_on_a_miss() {
    for method in ["GET", "HEAD"] {
        for hit in [false, true] {
            let stage = origin().await;
            for (n, (fields, status)) in CASES.iter().enumerate() {
                if method == "HEAD" && !hit {
                    continue; // a HEAD stores nothing, and what it is told is up to the handler
                }
                let uri = if hit { "/a".into() } else { format!("/{n}") };
                if hit {
                    stage.ask("GET", "/a", &[]).await;
                }
                let answer = stage.ask(method, &uri, fields).await;
                assert_eq!(answer.status, *status, "{method} {fields:?} hit: {hit}");
                assert_eq!(answer.is_hit(), hit);
                assert_eq!(stage.origin.was_asked(fields[0].0), None, "it was stripped");
                let whole = answer.status == StatusCode::OK;
                assert_eq!(answer.text().is_empty(), !whole || method == "HEAD");
                if answer.status == StatusCode::NOT_MODIFIED {
                    assert_eq!(answer.header("content-length"), None);
                    assert_eq!(answer.header("content-type"), None);
                    assert_eq!(answer.header("etag"), Some("\"1\""));
                    assert_eq!(answer.header("cache-control"), Some("s-maxage=60"));
                }
                // whatever was asked for, the whole was stored
                let again = stage.ask("GET", &uri, &[]).await;
                assert!(again.is_hit());
                assert_eq!(again.text(), "the body");
                assert_eq!(again.header("x-own"), Some("yes"));
            }
        }
    }
}

#[tokio::test]
async fn a_route_without_ttl_leaves_them_to_the_handler() {
    let stage = Stage::saying(
        |l| l,
        |request| match request.headers.get("if-none-match") {
            Some(_) => says(304, &[("etag", "\"1\"")], ""),
            None => says(
                200,
                &[("etag", "\"1\""), ("cache-control", "max-age=60")],
                "one",
            ),
        },
    )
    .await;
    let fields = &[("if-none-match", "\"1\"")];
    let answer = stage.get(fields).await;
    assert_eq!(answer.status, 304);
    assert_eq!(
        answer.cache_status(),
        "fwd=uri-miss; fwd-status=304; detail=status"
    );
    assert_eq!(stage.origin.was_asked("if-none-match").unwrap(), "\"1\"");
    stage.get(&[]).await;
    let answer = stage.get(fields).await;
    assert_eq!(answer.status, 304);
    assert!(answer.is_hit());
    assert_eq!(answer.header("age"), Some("0"));
}

#[tokio::test]
async fn the_cache_makes_a_tag_where_the_handler_gives_none() {
    let stage = Stage::new(with_ttl, &[], "the body").await;
    let first = stage.get(&[]).await;
    let tag = first.header("etag").unwrap().to_owned();
    assert!(tag.starts_with("W/\""));
    let second = stage.get(&[("if-none-match", &tag)]).await;
    assert_eq!(second.status, 304);

    // it says nothing to the handler
    stage.expire().await;
    let third = stage.get(&[("if-none-match", &tag)]).await;
    assert_eq!(third.status, 304);
    assert_eq!(third.cache_status(), "fwd=stale; fwd-status=200; stored");
    assert_eq!(stage.origin.was_asked("if-none-match"), None);
    assert_eq!(stage.origin.was_asked("if-modified-since"), None);

    // another instance makes the same one
    stage.cache.clear().await.unwrap();
    let other = engine(&stage.database).await;
    let app = stage.origin.router(with_ttl(other.layer()));
    assert_eq!(
        ask(&app, "GET", "/a", &[]).await.header("etag"),
        Some(&*tag)
    );
}

#[tokio::test]
async fn such_a_tag_can_be_strong_or_off() {
    let strong = Stage::new(|l| with_ttl(l).etag(GeneratedEtag::Strong), &[], "one").await;
    let tag = strong.get(&[]).await.header("etag").unwrap().to_owned();
    assert!(tag.starts_with('"'));
    assert_eq!(strong.get(&[("if-match", &tag)]).await.status, 200);
    let off = Stage::new(|l| with_ttl(l).etag(GeneratedEtag::Off), &[], "one").await;
    for _ in 0..2 {
        assert_eq!(off.get(&[]).await.header("etag"), None);
    }
    let own = Stage::new(with_ttl, &[("etag", "\"own\"")], "one").await;
    for _ in 0..2 {
        assert_eq!(own.get(&[]).await.header("etag"), Some("\"own\""));
    }
}
