//! Two layers of one engine around one handler: a client notices one cache.

use axum::Router;
use axum::response::Response;
use axum::routing::any;
use http::request::Parts;
use tower_pgcache::{PgCache, PgCacheLayer};

use super::stage::{ITEM, MINUTE, Origin, ask, engine, says};
use test_support::http::Answer;
use tower_pgcache::test;

struct Nested {
    cache: PgCache,
    origin: Origin,
    app: Router,
    _database: test_support::Database,
}

impl Nested {
    async fn new(inner: impl FnOnce(PgCacheLayer) -> PgCacheLayer) -> Self {
        let database = test_support::database().await;
        let cache = engine(&database).await;
        let origin = Origin::saying(tagged);
        let handler = {
            let origin = origin.clone();
            any(move |request| origin.answer(request)).layer(inner(cache.layer().ttl(MINUTE)))
        };
        let app = Router::new()
            .route("/a", handler)
            .layer(cache.layer().ttl(MINUTE));
        Self {
            cache,
            origin,
            app,
            _database: database,
        }
    }

    async fn get(&self, fields: &[(&str, &str)]) -> Answer {
        let answer = ask(&self.app, "GET", "/a", fields).await;
        self.cache.settled().await;
        answer
    }
}

fn tagged(request: &Parts) -> Response {
    match request.headers.get("if-none-match") {
        Some(tag) if tag == "\"1\"" => says(304, &[("etag", "\"1\"")], ""),
        _ => says(200, &[("etag", "\"1\"")], "0123456789"),
    }
}

#[tokio::test]
async fn a_revalidation_is_answered_with_the_whole() {
    let nested = Nested::new(|l| l).await;
    nested.get(&[]).await;
    assert!(nested.get(&[]).await.is_hit());
    test::expire(&nested.cache, &"/a".parse().unwrap())
        .await
        .unwrap();
    let answer = nested.get(&[]).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (200, "0123456789"));
    assert_eq!(answer.cache_status(), "fwd=stale; fwd-status=304; stored");
    assert_eq!(nested.origin.was_asked("if-none-match").unwrap(), "\"1\"");
    assert!(nested.get(&[]).await.is_hit());
}

/// With another key, so that the outer layer never finds anything.
#[tokio::test]
async fn the_inner_layer_answers_preconditions_and_ranges() {
    let nested = Nested::new(|l| l.key_header("x-inner")).await;
    for hit in [false, true] {
        if hit {
            nested.get(&[]).await;
        }
        let answer = nested.get(&[("if-none-match", "\"1\"")]).await;
        assert_eq!(answer.status, 304, "hit: {hit}");
        assert_eq!(nested.origin.was_asked("if-none-match"), None);
        let answer = nested.get(&[("range", "bytes=2-4")]).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (206, "234"));
    }
}

/// What the outer layer found is for another selection than the one that the inner layer has to answer.
#[tokio::test]
async fn a_layer_between_may_change_what_selects_a_variant() {
    let database = test_support::database().await;
    let cache = engine(&database).await;
    let origin = Origin::saying(|request| match request.headers.get("if-none-match") {
        Some(_) => says(304, &[], ""),
        None => {
            let value = request.headers["x-a"].to_str().unwrap().to_owned();
            says(200, &[("vary", "x-a"), ("etag", "\"1\"")], value)
        }
    });
    let app = origin
        .router(cache.layer().ttl(MINUTE))
        .layer(axum::middleware::map_request(
            |mut request: axum::extract::Request| async move {
                let value: u64 = request.headers()["x-a"].to_str().unwrap().parse().unwrap();
                request.headers_mut().insert("x-a", (value + 1).into());
                request
            },
        ))
        .layer(cache.layer().ttl(MINUTE));
    for sent in ["1", "2"] {
        let answer = ask(&app, "GET", "/a", &[("x-a", sent)]).await;
        cache.settled().await;
        test::expire(&cache, &"/a".parse().unwrap()).await.unwrap();
        assert_eq!(
            answer.text().parse::<u64>().unwrap(),
            sent.parse::<u64>().unwrap() + 1
        );
    }
}

/// With the databases that they need.
async fn two_engines() -> (PgCache, PgCache, [test_support::Database; 2]) {
    let databases = [
        test_support::database().await,
        test_support::database().await,
    ];
    let (one, other) = (engine(&databases[0]).await, engine(&databases[1]).await);
    (one, other, databases)
}

/// What a layer of another engine asks for itself is not replaced by what the client wanted to know.
#[tokio::test]
async fn a_layer_of_another_engine_between_gets_an_answer_to_its_own_question() {
    let (outer, between, _databases) = two_engines().await;
    let origin = Origin::saying(|_| says(200, &[("etag", "\"old\"")], "old"));
    let inner = origin.router(outer.layer().bypass());
    let middle = inner.layer(between.layer().ttl(MINUTE).domain(ITEM));
    ask(&middle, "GET", "/a", &[]).await;
    between.settled().await;
    between.invalidate([ITEM]).await.unwrap();
    origin.now_says(|request| match request.headers.get("if-none-match") {
        Some(tag) if tag == "\"new\"" => says(304, &[("etag", "\"new\"")], ""),
        _ => says(200, &[("etag", "\"new\"")], "new"),
    });
    let app = middle.layer(outer.layer().ttl(MINUTE));
    let answer = ask(&app, "GET", "/a", &[("if-none-match", "\"new\"")]).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (200, "new"));
}

/// A layer of another engine that only passes the request on changes nothing.
#[tokio::test]
async fn a_layer_of_another_engine_between_that_asks_nothing_is_not_in_the_way() {
    let (outer, between, _databases) = two_engines().await;
    let origin = Origin::saying(tagged);
    let alone = origin.router(outer.layer().ttl(MINUTE));
    assert!(ask(&alone, "GET", "/a", &[]).await.is_stored());
    outer.settled().await;
    test::expire(&outer, &"/a".parse().unwrap()).await.unwrap();
    let app = origin
        .router(outer.layer().bypass())
        .layer(between.layer().bypass())
        .layer(outer.layer().ttl(MINUTE));
    let answer = ask(&app, "GET", "/a", &[]).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (200, "0123456789"));
}
