//! `Vary`: each selection has an answer of its own, and all go together.

use axum::response::Response;
use http::request::Parts;
use test_support::http::Answer;

use super::stage::{Fields, MINUTE, Stage, ask, engine, is_in_memory, says, with_ttl};

/// The answer varies with, and is, what the request says in these fields.
fn by(fields: &'static str) -> impl Fn(&Parts) -> Response + Send + Sync + 'static {
    move |request| {
        let values: Vec<String> = fields
            .split(", ")
            .map(|name| {
                format!(
                    "{:?}",
                    request.headers.get_all(name).iter().collect::<Vec<_>>()
                )
            })
            .collect();
        says(200, &[("vary", fields)], values.join(" "))
    }
}

async fn is_hit(stage: &Stage, fields: Fields<'_>) -> bool {
    stage.get(fields).await.is_hit()
}

#[tokio::test]
async fn variants_live_side_by_side() {
    let stage = Stage::saying(with_ttl, by("accept-language")).await;
    let languages: [Fields<'_>; 3] = [
        &[("accept-language", "de")],
        &[("accept-language", "en")],
        &[],
    ];
    let mut answers: Vec<Answer> = Vec::new();
    for language in languages {
        answers.push(stage.get(language).await);
    }
    for (language, first) in languages.iter().zip(&answers) {
        let again = stage.get(language).await;
        assert!(again.is_hit());
        assert_eq!(again.body, first.body);
        let head = stage.ask("HEAD", "/a", language).await;
        assert!(head.is_hit());
        assert_eq!(
            head.header("content-length"),
            Some(&*first.body.len().to_string())
        );
    }
    assert_eq!(stage.origin.calls(), 3);

    // an instance whose memory is cold
    let other = engine(&stage.database).await;
    let app = stage.origin.router(with_ttl(other.layer()));
    let again = ask(&app, "GET", "/a", languages[1]).await;
    assert!(again.is_hit());
    assert_eq!(again.body, answers[1].body);
}

#[tokio::test]
async fn equal_meanings_share_an_answer() {
    let stage = Stage::saying(with_ttl, by("accept-encoding, x-flag")).await;
    stage
        .get(&[("accept-encoding", "gzip, br"), ("x-flag", "A, b")])
        .await;
    for same in [
        &[("accept-encoding", "br ,GZIP"), ("x-flag", "A,b")][..],
        &[
            ("accept-encoding", "br"),
            ("accept-encoding", "gzip"),
            ("x-flag", "A"),
            ("x-flag", "b"),
        ],
    ] {
        assert!(is_hit(&stage, same).await, "{same:?}");
    }
    for other in [
        &[("accept-encoding", "gzip"), ("x-flag", "A, b")][..],
        &[("accept-encoding", "gzip, br"), ("x-flag", "b, A")],
        &[("accept-encoding", "gzip, br"), ("x-flag", "a, b")],
        &[("accept-encoding", "gzip, br")],
        &[("accept-encoding", "gzip, br"), ("x-flag", "")],
    ] {
        assert!(!is_hit(&stage, other).await, "{other:?}");
    }
}

#[tokio::test]
async fn an_answer_that_varies_with_everything_is_not_stored() {
    let stage = Stage::new(with_ttl, &[("vary", "accept, *")], "one").await;
    for _ in 0..2 {
        let status = stage.get(&[]).await;
        assert_eq!(
            status.cache_status(),
            "fwd=uri-miss; fwd-status=200; detail=vary"
        );
    }
}

#[tokio::test]
async fn answers_may_vary_in_another_way_than_before() {
    let a1: Fields<'_> = &[("x-a", "1"), ("x-b", "1")];
    let a2: Fields<'_> = &[("x-a", "1"), ("x-b", "2")];
    let stage = Stage::saying(with_ttl, by("x-a")).await;
    stage.get(a1).await;
    assert!(is_hit(&stage, a2).await);
    stage.commit().await;
    stage.origin.now_says(by("x-a, x-b"));
    stage.get(a1).await;
    assert!(is_hit(&stage, a1).await);
    assert!(!is_hit(&stage, a2).await);
    // not at all
    stage.commit().await;
    stage.origin.now_says(|_| says(200, &[], "all"));
    stage.get(a1).await;
    assert!(is_hit(&stage, a2).await);
    assert_eq!(stage.get(&[("x-a", "9")]).await.text(), "all");
    // and again
    stage.commit().await;
    stage.origin.now_says(by("x-a"));
    stage.get(a1).await;
    assert!(is_hit(&stage, a2).await);
    assert!(!is_hit(&stage, &[("x-a", "9")]).await);
}

/// What a 304 says of `Vary` counts for the stored answer: it was everybody's, and is so no more.
#[tokio::test]
async fn a_304_may_say_that_an_answer_varies() {
    let stage = Stage::new(with_ttl, &[("etag", "\"1\"")], "one").await;
    stage.get(&[("x-a", "1")]).await;
    assert!(is_hit(&stage, &[("x-a", "2")]).await);
    stage.expire().await;
    stage.origin.now_says(|request| {
        let fields = &[("etag", "\"1\""), ("vary", "x-a")];
        match request.headers.get("x-a") {
            Some(value) if value == "1" => says(304, fields, ""),
            _ => says(200, &[("vary", "x-a")], "two"),
        }
    });
    assert_eq!(stage.get(&[("x-a", "1")]).await.text(), "one");
    assert!(is_hit(&stage, &[("x-a", "1")]).await);
    assert_eq!(stage.get(&[("x-a", "2")]).await.text(), "two");
    assert_eq!(stage.get(&[("x-a", "1")]).await.text(), "one");
}

/// A freshened variant is found for as long as it is fresh.
#[tokio::test]
async fn a_variant_that_is_freshened_stays_reachable() {
    let stage = Stage::new(with_ttl, &[("etag", "\"1\""), ("vary", "x-a")], "one").await;
    stage.get(&[("x-a", "1")]).await;
    stage
        .origin
        .now_says(|_| says(304, &[("etag", "\"1\"")], ""));
    stage.expire().await;
    let shorten = "UPDATE pgcache.entry SET keep_until = clock_timestamp() + '30 s'";
    stage.sql().await.batch_execute(shorten).await.unwrap();
    stage.get(&[("x-a", "1")]).await;
    assert_eq!(
        stage.count("keep_until > clock_timestamp() + '31 s'").await,
        2
    );
    assert!(is_hit(&stage, &[("x-a", "1")]).await);
}

#[tokio::test]
async fn the_latest_32_variants_stay() {
    if is_in_memory() {
        return; // it changes the table, or counts on it alone
    }
    let stage = Stage::saying(with_ttl, by("x-a")).await;
    for n in 0..33 {
        stage.get(&[("x-a", &n.to_string())]).await;
    }
    assert_eq!(stage.count("vary IS NULL").await, 32);
    assert_eq!(stage.count("vary IS NOT NULL").await, 1);
    assert!(is_hit(&stage, &[("x-a", "32")]).await);
    assert!(is_hit(&stage, &[("x-a", "1")]).await);
    assert!(!is_hit(&stage, &[("x-a", "0")]).await);
    assert_eq!(stage.count("vary IS NULL").await, 32);
}

#[tokio::test]
async fn what_invalidates_one_variant_invalidates_all() {
    let stage = Stage::saying(|l| l.ttl(MINUTE).domain(super::stage::ITEM), by("x-a")).await;
    let both: [Fields<'_>; 2] = [&[("x-a", "1")], &[("x-a", "2")]];
    let uri = "http://example.org/a".parse().unwrap();
    for how in ["commit", "purge", "unsafe request", "clear"] {
        for fields in both {
            let fields = [fields, &[("host", "example.org")]].concat();
            stage.get(&fields).await;
            assert!(is_hit(&stage, &fields).await);
        }
        match how {
            "commit" => stage.commit().await,
            "purge" => stage.cache.purge_uri(&uri).await.unwrap(),
            "clear" => stage.cache.clear().await.unwrap(),
            _ => drop(stage.ask("PUT", "/a", &[("host", "example.org")]).await),
        }
        for fields in both {
            let fields = [fields, &[("host", "example.org")]].concat();
            assert!(!is_hit(&stage, &fields).await, "{how}");
        }
    }
}
