//! Parts: a 206 that is stored, serves ranges within it, and is completed (`shared_cache` only).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use http::{Request, Response, StatusCode};
use test_support::Database;
use test_support::http::{Answer, send};
use tower_pgcache::{Domain, PgCache, PgCacheBuilder, PgCacheLayer, Policy, domain};

const DATA: &str = "0123456789";
const FILE: Domain = domain!("file");

/// An origin that serves ranges of a file, with what it was asked.
struct Stage {
    app: Router,
    cache: PgCache,
    asked: Arc<Mutex<Vec<String>>>,
    etag: Arc<Mutex<&'static str>>,
    obeys_if_range: Arc<AtomicBool>,
}

async fn stage() -> Stage {
    stage_with(Policy::shared_cache()).await
}

async fn stage_with(policy: Policy) -> Stage {
    stage_of(policy, |builder| builder, |layer, _| layer).await
}

async fn stage_of(
    policy: Policy,
    settings: impl FnOnce(PgCacheBuilder) -> PgCacheBuilder,
    route: impl FnOnce(PgCacheLayer, &Database) -> PgCacheLayer,
) -> Stage {
    let database = test_support::database().await;
    let builder = PgCache::builder(database.pool(4))
        .lookup_deadline(std::time::Duration::from_secs(60))
        .policy(policy);
    let cache = settings(builder).build().unwrap();
    cache.ready().await.unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let etag = Arc::new(Mutex::new(r#""a""#));
    let obeys_if_range = Arc::new(AtomicBool::new(true));
    let origin = {
        let (asked, etag) = (asked.clone(), etag.clone());
        let obeys_if_range = obeys_if_range.clone();
        move |request: Request<Body>| {
            let field = |name: &str| {
                request
                    .headers()
                    .get(name)
                    .map_or("", |v| v.to_str().unwrap())
                    .to_owned()
            };
            let (range, etag) = (field("range"), *etag.lock().unwrap());
            asked.lock().unwrap().push(range.clone());
            let holds = field("if-range").is_empty()
                || field("if-range") == etag
                || !obeys_if_range.load(Ordering::Relaxed);
            let response = Response::builder()
                .header("etag", etag)
                .header("cache-control", "max-age=60");
            let response = match range
                .strip_prefix("bytes=")
                .and_then(|r| r.split_once('-'))
                .filter(|_| holds)
            {
                Some((first, last)) => {
                    let (first, last) = (
                        first.parse::<usize>().unwrap(),
                        last.parse::<usize>().unwrap_or(9),
                    );
                    response
                        .status(StatusCode::PARTIAL_CONTENT)
                        .header("content-range", format!("bytes {first}-{last}/10"))
                        .body(Body::from(&DATA[first..=last]))
                }
                None => response.body(Body::from(DATA)),
            };
            std::future::ready(response.unwrap())
        }
    };
    let app = Router::new()
        .route("/file", get(origin))
        .layer(route(cache.layer().domain(FILE), &database));
    Stage {
        app,
        cache,
        asked,
        etag,
        obeys_if_range,
    }
}

impl Stage {
    async fn ask(&self, fields: &[(&str, &str)]) -> Answer {
        let mut request = Request::get("/file");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let answer = send(&self.app, request.body(Body::empty()).unwrap()).await;
        self.cache.settled().await;
        answer
    }

    /// The ranges that the origin was asked for since the last time.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

#[tokio::test]
async fn a_stored_part_answers_ranges_within_it_and_no_others() {
    let stage = stage().await;
    assert!(stage.ask(&[("range", "bytes=2-6")]).await.is_stored());
    let within = stage.ask(&[("range", "bytes=3-4")]).await;
    assert!(within.is_hit());
    assert_eq!(
        (within.status, within.text()),
        (StatusCode::PARTIAL_CONTENT, "34")
    );
    assert_eq!(within.header("content-range"), Some("bytes 3-4/10"));
    assert_eq!(within.header("content-length"), Some("2"));
    assert!(
        stage
            .ask(&[("range", "bytes=3-4"), ("if-range", r#""a""#)])
            .await
            .is_hit()
    );
    assert_eq!(stage.asked(), ["bytes=2-6"]);
    assert_eq!(stage.ask(&[("range", "bytes=6-7")]).await.text(), "67");
    assert_eq!(
        stage
            .ask(&[("range", "bytes=6-7"), ("if-range", r#""b""#)])
            .await
            .text(),
        DATA
    );
    assert_eq!(stage.asked(), ["bytes=6-7", "bytes=6-7"]);
    // now the whole is there
    assert!(stage.ask(&[("range", "bytes=0-8")]).await.is_hit());
    assert!(stage.ask(&[]).await.is_hit());
}

#[tokio::test]
async fn a_beginning_is_completed_with_what_is_missing() {
    let stage = stage().await;
    stage.ask(&[("range", "bytes=0-3")]).await;
    let whole = stage.ask(&[]).await;
    assert_eq!((whole.status, whole.text()), (StatusCode::OK, DATA));
    assert_eq!(whole.header("content-range"), None);
    assert_eq!(stage.asked(), ["bytes=0-3", "bytes=4-"]);
    let again = stage.ask(&[]).await;
    assert_eq!((again.is_hit(), again.text()), (true, DATA));
}

#[tokio::test]
async fn a_beginning_of_what_has_changed_is_replaced() {
    let stage = stage().await;
    stage.ask(&[("range", "bytes=0-3")]).await;
    *stage.etag.lock().unwrap() = r#""b""#;
    let whole = stage.ask(&[]).await;
    assert_eq!((whole.text(), whole.header("etag")), (DATA, Some(r#""b""#)));
    assert_eq!(
        stage.asked(),
        ["bytes=0-3", "bytes=4-"],
        "If-Range did not hold"
    );
}

#[tokio::test]
async fn a_commit_invalidates_a_part() {
    let stage = stage().await;
    stage.ask(&[("range", "bytes=0-3")]).await;
    stage.cache.invalidate([FILE]).await.unwrap();
    assert!(!stage.ask(&[("range", "bytes=0-3")]).await.is_hit());
    stage.cache.invalidate([FILE]).await.unwrap();
    stage.asked();
    assert_eq!(stage.ask(&[]).await.text(), DATA);
    assert_eq!(
        stage.asked(),
        [""],
        "a beginning that was invalidated is not completed"
    );
}

#[tokio::test]
async fn a_beginning_of_what_is_too_long_to_be_stored_is_not_completed() {
    let stage = stage_with(Policy::shared_cache().max_body(8)).await;
    assert!(stage.ask(&[("range", "bytes=0-3")]).await.is_stored());
    for _ in 0..2 {
        let whole = stage.ask(&[]).await;
        assert_eq!((whole.status, whole.text()), (StatusCode::OK, DATA));
    }
    assert_eq!(stage.asked(), ["bytes=0-3", "", ""]);
    assert!(stage.ask(&[("range", "bytes=0-3")]).await.is_hit());
}

#[tokio::test]
async fn an_origin_that_sends_what_does_not_fit_spoils_one_answer_at_most() {
    let from_replica =
        |layer: PgCacheLayer, database: &Database| layer.snapshot_from(database.pool(2));
    // that is room for the rest, and not for the whole
    let small = |builder: PgCacheBuilder| builder.fill_memory(8);
    let policy = Policy::shared_cache;
    for stage in [stage().await, stage_of(policy(), small, from_replica).await] {
        stage.ask(&[("range", "bytes=0-3")]).await;
        *stage.etag.lock().unwrap() = r#""b""#;
        stage.obeys_if_range.store(false, Ordering::Relaxed);
        assert_eq!(stage.ask(&[]).await.status, StatusCode::BAD_GATEWAY);
        let whole = stage.ask(&[]).await;
        assert_eq!((whole.status, whole.text()), (StatusCode::OK, DATA));
        assert_eq!(stage.asked(), ["bytes=0-3", "bytes=4-", ""]);
    }
}

#[tokio::test]
async fn an_origin_that_has_become_too_short_for_the_rest_spoils_one_answer_at_most() {
    let stage = stage().await;
    let shorter = Arc::new(AtomicBool::new(false));
    let handler = {
        let shorter = shorter.clone();
        move |request: Request<Body>| {
            let is_range = request.headers().contains_key("range");
            let response = Response::builder().header("cache-control", "max-age=60");
            let response = match (shorter.load(Ordering::Relaxed), is_range) {
                (false, _) => response
                    .status(StatusCode::PARTIAL_CONTENT)
                    .header("etag", r#""a""#)
                    .header("content-range", "bytes 0-3/10")
                    .body(Body::from("0123")),
                (true, true) => response
                    .status(StatusCode::RANGE_NOT_SATISFIABLE)
                    .header("content-range", "bytes */2")
                    .body(Body::empty()),
                (true, false) => response.body(Body::from("01")),
            };
            std::future::ready(response.unwrap())
        }
    };
    let app = Router::new()
        .route("/short", get(handler))
        .layer(stage.cache.layer().domain(FILE));
    let ask = async |range: Option<&str>| {
        let mut request = Request::get("/short");
        if let Some(range) = range {
            request = request.header("range", range);
        }
        let answer = send(&app, request.body(Body::empty()).unwrap()).await;
        stage.cache.settled().await;
        answer
    };
    assert!(ask(Some("bytes=0-3")).await.is_stored());
    shorter.store(true, Ordering::Relaxed);
    assert_eq!(ask(None).await.status, StatusCode::BAD_GATEWAY);
    let whole = ask(None).await;
    assert_eq!((whole.status, whole.text()), (StatusCode::OK, "01"));
}

/// An instance of the next release, which has a second layer, finds what one of the last release has stored.
#[tokio::test]
async fn a_layer_within_does_not_take_the_completion_for_what_the_client_wants() {
    let stage = stage().await;
    assert!(stage.ask(&[("range", "bytes=0-3")]).await.is_stored());
    let app = stage.app.clone().layer(stage.cache.layer().domain(FILE));
    let request = Request::get("/file").body(Body::empty()).unwrap();
    let whole = send(&app, request).await;
    assert_eq!((whole.status, whole.text()), (StatusCode::OK, DATA));
}
