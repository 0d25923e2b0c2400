//! What handlers say.

use axum::routing::{get, post};
use axum::{Extension, Router};
use http::Request;
use tower::ServiceExt;
use tower_pgcache::PgCache;

use crate::stage::{ITEM, PRICE, Stage, app, ask, obey};

#[tokio::test]
async fn dependencies_may_be_named_by_the_handler() {
    let stage = Stage::new().await;
    let app = app(stage.layer());
    for (uri, said) in [("/1", "x-do-depend"), ("/2", "x-answer-depends")] {
        assert!(stage.twice(&app, uri, &[(said, "")]).await.is_hit());
        stage.cache.invalidate([ITEM]).await.unwrap();
        assert!(ask(&app, "GET", uri, &[]).await.is_hit());
        stage.cache.invalidate([PRICE]).await.unwrap();
        assert!(!ask(&app, "GET", uri, &[]).await.is_hit(), "{said}");
    }
}

#[tokio::test]
async fn changes_may_be_named_by_the_handler_whatever_the_method_and_the_status() {
    let stage = Stage::new().await;
    let app = app(stage
        .layer()
        .domain(PRICE)
        .bypass_if(|head| head.headers().contains_key("x-bypass")));
    for said in ["x-do-invalidate", "x-answer-invalidates"] {
        for (method, more) in [
            ("GET", ("x-none", "")),
            ("GET", ("x-bypass", "")),
            ("GET", ("x-do-status", "404")),
            ("POST", ("x-do-status", "409")),
            ("OPTIONS", ("x-none", "")),
        ] {
            // a GET has to miss, or its handler does not run
            let change = (
                method,
                "/change?unstored",
                &[(said, ""), more, ("x-do-no-store", "")][..],
            );
            assert!(stage.ends(&app, ("/1", &[]), change).await, "{change:?}");
        }
    }
}

#[tokio::test]
async fn a_handler_that_panics_after_its_change_has_changed_something() {
    let stage = Stage::new().await;
    let app = app(stage.layer().domain(PRICE).invalidates(ITEM));
    assert!(stage.twice(&app, "/1", &[]).await.is_hit());
    for method in ["GET", "POST"] {
        let request = Request::builder()
            .method(method)
            .uri("/2")
            .header("x-do-invalidate", "")
            .header("x-do-panic", "");
        let request = request.body(axum::body::Body::empty()).unwrap();
        assert!(
            tokio::spawn(app.clone().oneshot(request))
                .await
                .unwrap_err()
                .is_panic()
        );
        stage.cache.settled().await;
        assert!(!ask(&app, "GET", "/1", &[]).await.is_hit(), "{method}");
        assert!(stage.twice(&app, "/1", &[]).await.is_hit());
    }
}

#[tokio::test]
async fn without_a_layer_nothing_happens() {
    let app = Router::new().route("/", get(obey));
    let everything = [
        "x-do-depend",
        "x-do-invalidate",
        "x-do-no-store",
        "x-answer-depends",
        "x-answer-invalidates",
        "x-answer-no-store",
    ];
    let answer = ask(&app, "GET", "/", &everything.map(|name| (name, ""))).await;
    assert!(answer.text().starts_with("call ") && answer.header("cache-status").is_none());
}

#[tokio::test]
async fn handlers_find_the_engine_in_the_extensions() {
    let stage = Stage::new().await;
    let purge = |Extension(cache): Extension<PgCache>| async move {
        cache.invalidate([ITEM]).await.unwrap();
    };
    let app = Router::new()
        .route("/1", get(obey))
        .route("/purge", post(purge))
        .layer(stage.layer().domain(ITEM));
    assert!(stage.ends(&app, ("/1", &[]), ("POST", "/purge", &[])).await);
}
