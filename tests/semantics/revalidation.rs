//! What has expired and has a validator: the handler is asked whether it still holds.

use axum::response::Response;
use http::request::Parts;

use super::stage::{HOUR, LONG_AGO, MINUTE, Stage, is_in_memory, says, with_ttl};

/// `"1"` as long as it is asked about it, then this answer.
fn not_modified(
    fields: super::stage::Fields<'static>,
) -> impl Fn(&Parts) -> Response + Send + Sync + 'static {
    move |request| {
        let asked = request.headers.contains_key("if-none-match")
            || request.headers.contains_key("if-modified-since");
        let status = if asked { 304 } else { 500 };
        says(status, fields, "")
    }
}

const ROW: &str = "SELECT md5(body) || ' ' || (SELECT string_agg(ctid::text || xmin::text, ' ') \
                   FROM pg_temp.toast) FROM pgcache.entry";

#[tokio::test]
async fn a_304_freshens_the_head_and_leaves_the_body_where_it_is() {
    if is_in_memory() {
        return; // it changes the table, or counts on it alone
    }
    let body: &'static str = "x".repeat(100_000).leak();
    let fields = &[("etag", "\"1\""), ("x-own", "1"), ("x-kept", "1")];
    let stage = Stage::new(with_ttl, fields, body).await;
    stage.get(&[]).await;
    let sql = stage.sql().await;
    let toast: String = sql
        .query_one(
            "SELECT c.reltoastrelid::regclass::text FROM pg_class c \
             WHERE c.oid = 'pgcache.entry'::regclass",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    let chunks = format!("CREATE TEMP VIEW toast AS SELECT ctid, xmin FROM {toast}");
    sql.batch_execute(&chunks).await.unwrap();
    let row = async || -> String { sql.query_one(ROW, &[]).await.unwrap().get(0) };
    let before = row().await;
    stage
        .origin
        .now_says(not_modified(&[("etag", "\"1\""), ("x-own", "2")]));

    let aged = "UPDATE pgcache.entry SET born_at = born_at - interval '1 hour'";
    sql.batch_execute(aged).await.unwrap();
    assert_eq!(stage.get(&[]).await.header("age"), Some("3600"));
    stage.expire().await;
    let answer = stage.get(&[]).await;
    assert_eq!(answer.cache_status(), "fwd=stale; fwd-status=304; stored");
    assert_eq!((answer.status.as_u16(), answer.text()), (200, body));
    for answer in [answer, stage.get(&[]).await] {
        assert_eq!(answer.header("x-own"), Some("2"));
        assert_eq!(answer.header("x-kept"), Some("1"));
    }
    let again = stage.get(&[]).await;
    assert!(again.is_hit());
    assert_eq!(again.header("age"), Some("0"));
    assert_eq!(again.text(), body);
    assert_eq!(row().await, before, "not a byte of the body was written");
    assert_eq!(stage.cache.stats().stored, 2);
}

#[tokio::test]
async fn the_handler_is_asked_with_its_own_validators_alone() {
    let fields = &[("etag", "\"1\""), ("last-modified", LONG_AGO)];
    let stage = Stage::new(with_ttl, fields, "one").await;
    stage.get(&[]).await;
    stage.expire().await;
    stage.origin.now_says(not_modified(&[("etag", "\"1\"")]));
    let answer = stage
        .get(&[("if-none-match", "\"0\""), ("range", "bytes=1-1")])
        .await;
    assert_eq!((answer.status.as_u16(), answer.text()), (206, "n"));
    let asked = |field| stage.origin.was_asked(field);
    assert_eq!(asked("if-none-match").unwrap(), "\"1\"");
    assert_eq!(asked("if-modified-since").unwrap(), LONG_AGO);
    assert_eq!(asked("range"), None);
    stage.expire().await;
    let answer = stage.get(&[("if-none-match", "W/\"1\"")]).await;
    assert_eq!(answer.status, 304);
    assert_eq!(answer.cache_status(), "fwd=stale; fwd-status=304; stored");
}

#[tokio::test]
async fn a_head_revalidates_too() {
    let stage = Stage::new(with_ttl, &[("etag", "\"1\"")], "one").await;
    stage.get(&[]).await;
    stage.expire().await;
    stage.origin.now_says(not_modified(&[]));
    let head = stage.ask("HEAD", "/a", &[]).await;
    assert_eq!(head.cache_status(), "fwd=stale; fwd-status=304; stored");
    assert_eq!(
        (head.text(), head.header("content-length")),
        ("", Some("3"))
    );
    let answer = stage.get(&[]).await;
    assert!(answer.is_hit());
    assert_eq!(answer.text(), "one");
}

#[tokio::test]
async fn a_304_about_another_answer_freshens_nothing() {
    let stage = Stage::new(with_ttl, &[("etag", "\"1\"")], "one").await;
    stage.get(&[]).await;
    stage.expire().await;
    stage.origin.now_says(not_modified(&[("etag", "\"2\"")]));
    for _ in 0..2 {
        assert_eq!(stage.get(&[]).await.text(), "one");
    }
    assert_eq!(stage.origin.calls(), 3);
    stage
        .origin
        .now_says(|_| says(200, &[("etag", "\"2\"")], "two"));
    assert_eq!(stage.get(&[]).await.text(), "two");
    assert!(stage.get(&[]).await.is_hit());
}

#[tokio::test]
async fn a_304_that_forbids_storing_answers_this_request_alone() {
    for (fields, detail) in [
        (&[("cache-control", "no-store")][..], "no-store"),
        (&[("cache-control", "private")], "private"),
        (&[("set-cookie", "a=b")], "set-cookie"),
        (&[("vary", "*")], "vary"),
    ] {
        let stage = Stage::new(with_ttl, &[("etag", "\"1\"")], "one").await;
        stage.get(&[]).await;
        stage.expire().await;
        stage.origin.now_says(not_modified(fields));
        for calls in [2, 3] {
            let answer = stage.get(&[]).await;
            assert_eq!(answer.text(), "one");
            let expected = format!("fwd=stale; fwd-status=304; detail={detail}");
            assert_eq!(answer.cache_status(), expected);
            assert_eq!(stage.origin.calls(), calls);
        }
    }
}

#[tokio::test]
async fn a_200_replaces_it() {
    let stage = Stage::new(with_ttl, &[("etag", "\"1\"")], "one").await;
    stage.get(&[]).await;
    stage.expire().await;
    stage
        .origin
        .now_says(|_| says(200, &[("etag", "\"2\"")], "two"));
    let answer = stage.get(&[("if-none-match", "\"1\"")]).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (200, "two"));
    let answer = stage.get(&[("if-none-match", "\"2\"")]).await;
    assert_eq!(answer.status, 304);
    assert!(answer.is_hit());
}

#[tokio::test]
async fn what_must_not_be_reused_unasked_is_revalidated_each_time() {
    let stage = Stage::new(
        |l| l.store_no_cache(true).stale_while_revalidate(HOUR),
        &[("etag", "\"1\""), ("cache-control", "no-cache")],
        "one",
    )
    .await;
    stage.get(&[]).await;
    stage.origin.now_says(not_modified(&[]));
    for _ in 0..2 {
        let answer = stage.get(&[]).await;
        assert_eq!(answer.cache_status(), "fwd=stale; fwd-status=304; stored");
        assert_eq!(answer.text(), "one");
    }
}

/// A tag that the cache made is kept from the handler, also beside a date of its own.
#[tokio::test]
async fn a_generated_tag_is_never_sent() {
    let stage = Stage::new(|l| l.ttl(MINUTE), &[("last-modified", LONG_AGO)], "one").await;
    let tag = stage.get(&[]).await.header("etag").unwrap().to_owned();
    stage.expire().await;
    stage.origin.now_says(not_modified(&[]));
    let answer = stage.get(&[("if-none-match", &tag)]).await;
    assert_eq!(answer.status, 304);
    assert_eq!(stage.origin.was_asked("if-none-match"), None);
    assert_eq!(
        stage.origin.was_asked("if-modified-since").unwrap(),
        LONG_AGO
    );
    assert_eq!(stage.get(&[]).await.header("etag"), Some(&*tag));
}

/// A handler that answers HEAD with 200 and never with 304.
fn head_with(
    fields: super::stage::Fields<'static>,
) -> impl Fn(&Parts) -> Response + Send + Sync + 'static {
    move |request| {
        says(
            200,
            fields,
            if request.method == "HEAD" { "" } else { "new" },
        )
    }
}

#[tokio::test]
async fn a_head_with_the_same_validator_freshens_what_a_get_stored() {
    let stage = Stage::new(with_ttl, &[("etag", "\"1\""), ("x-own", "1")], "old").await;
    stage.get(&[]).await;
    stage.expire().await;
    stage.origin.now_says(head_with(&[
        ("etag", "\"1\""),
        ("x-own", "2"),
        ("content-length", "3"),
    ]));
    let head = stage.ask("HEAD", "/a", &[]).await;
    assert_eq!(head.cache_status(), "fwd=stale; fwd-status=200; stored");
    let get = stage.get(&[]).await;
    assert_eq!(
        (get.is_hit(), get.text(), get.header("x-own")),
        (true, "old", Some("2"))
    );
}

#[tokio::test]
async fn a_head_that_tells_of_another_answer_freshens_nothing() {
    let others: [super::stage::Fields<'static>; 3] = [
        &[("etag", "\"2\"")],
        &[("etag", "\"1\""), ("content-length", "4")],
        &[],
    ];
    for fields in others {
        let stage = Stage::new(with_ttl, &[("etag", "\"1\"")], "old").await;
        stage.get(&[]).await;
        stage.expire().await;
        stage.origin.now_says(head_with(fields));
        assert_eq!(
            stage.ask("HEAD", "/a", &[]).await.cache_status(),
            "fwd=stale; fwd-status=200; detail=head"
        );
        assert!(!stage.get(&[]).await.is_hit());
    }
}
