//! Switching off, helpers for tests, and what is said about mistakes.

use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use http::Request;
use tower::ServiceExt;
use tower_pgcache::{PgCache, PgCacheLayer, Route, assert_hit, assert_miss, test};

use crate::stage::{ITEM, Log, MINUTE, Stage, app, ask, obey, with_auth};

#[tokio::test]
async fn a_cache_that_is_disabled_passes_everything_through() {
    let cache = PgCache::disabled();
    let app = app(cache.layer().ttl(MINUTE).domain(ITEM).invalidates(ITEM));
    for method in ["GET", "GET", "POST"] {
        let answer = ask(&app, method, "/1", &[]).await;
        assert!(answer.text().starts_with("call ") && !answer.is_hit());
    }
    assert_eq!(
        ask(&app, "GET", "/1", &[]).await.cache_status(),
        "fwd=bypass; fwd-status=200; detail=disabled"
    );
    cache.ready().await.unwrap();
    cache.invalidate([ITEM]).await.unwrap();
    cache.settled().await;
    cache.close().await;
}

#[tokio::test]
async fn an_instance_that_is_switched_off_still_invalidates() {
    let stage = Stage::new().await;
    let one = app(stage.layer().domain(ITEM).invalidates(ITEM));
    assert!(stage.twice(&one, "/1", &[]).await.is_hit());
    stage.cache.set_enabled(false);
    assert!(
        ask(&one, "GET", "/1", &[])
            .await
            .cache_status()
            .ends_with("detail=disabled")
    );
    ask(&one, "POST", "/2", &[]).await;
    stage.cache.set_enabled(true);
    assert!(!ask(&one, "GET", "/1", &[]).await.is_hit());
}

#[tokio::test]
async fn helpers_for_the_tests_of_applications() {
    let database = test_support::database().await;
    let cache = PgCache::ephemeral(&database.url()).await.unwrap();
    let app = Router::new()
        .route("/a", get(obey))
        .layer(cache.layer().ttl(MINUTE));
    let request = || {
        Request::get("/a?b=1&a=2")
            .body(axum::body::Body::empty())
            .unwrap()
    };
    let response = || app.clone().oneshot(request());
    assert_miss!(response().await.unwrap());
    cache.settled().await;
    assert_hit!(response().await.unwrap());
    test::expire(&cache, &"/a?a=2&b=1".parse().unwrap())
        .await
        .unwrap();
    assert_miss!(response().await.unwrap());
    cache.close().await;
    let schemas = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE '%pgcache%'";
    let left: i64 = database
        .connect()
        .await
        .query_one(schemas, &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_tenant_that_is_missing_is_explained_once() {
    let stage = Stage::with_tenants().await;
    let (log, _guard) = Log::start();
    // the wrong way round: the cache runs before the tenant is known
    let app = with_auth(Router::new().route("/{id}", get(obey))).layer(stage.layer());
    for uri in ["/1", "/2", "/1"] {
        let answer = ask(&app, "GET", uri, &[("x-tenant", "acme")]).await;
        assert!(answer.cache_status().ends_with("detail=no-tenant"));
    }
    assert_eq!(log.lines_with("the layer added last runs first"), 1);
    assert_eq!(log.lines_with("no-tenant"), 1);
}

#[tokio::test]
async fn what_is_not_stored_is_explained_once_for_each_route_and_reason() {
    let stage = Stage::new().await;
    let (log, _guard) = Log::start();
    let app = Router::new()
        .route("/a/{id}", get(obey))
        .route("/b", get(obey))
        .layer(stage.layer());
    for _ in 0..3 {
        for uri in ["/a/1", "/a/2", "/b"] {
            ask(&app, "GET", uri, &[("x-say-set-cookie", "a=b")]).await;
        }
        ask(&app, "GET", "/b", &[("x-say-vary", "*")]).await;
    }
    assert_eq!(log.lines_with("set cookies in answers of their own"), 2);
    assert_eq!(log.lines_with("no two requests have the same answer"), 1);
}

#[tokio::test]
async fn a_layer_gives_so_many_explanations_and_no_more() {
    let stage = Stage::new().await;
    let (log, _guard) = Log::start();
    let routes = (0..300).fold(Router::new(), |app, n| {
        app.route(&format!("/{n}"), get(obey))
    });
    let app = routes.layer(stage.layer());
    for n in 0..300 {
        let cookie = [("x-say-set-cookie", "a=b")];
        ask(&app, "GET", &format!("/{n}"), &cookie).await;
    }
    assert_eq!(log.lines_with("set cookies in answers of their own"), 256);
}

#[tokio::test]
async fn what_never_came_to_use_is_listed() {
    let stage = Stage::new().await;
    let app = Router::new()
        .route("/a", get(obey))
        .route("/b", get(obey))
        .layer(stage.layer());
    let unused = || stage.cache.stats().unused_layers;
    assert_eq!(unused().len(), 1, "{:?}", unused());
    assert!(unused()[0].contains("stage.rs"), "{:?}", unused());
    ask(&app, "GET", "/a", &[]).await;
    assert_eq!(unused(), [""; 0]);

    let layer = PgCacheLayer::builder(stage.database.pool(2))
        .route(Route::get("/a").ttl(MINUTE))
        .route(Route::post("/b/{id}").invalidates(ITEM))
        .build()
        .unwrap();
    let cache = Arc::new(layer.cache().clone());
    let app = Router::new().route("/a", get(obey)).layer(layer);
    ask(&app, "HEAD", "/a", &[]).await;
    assert_eq!(cache.stats().unmatched_routes, ["POST /b/{id}"]);
}

#[tokio::test]
async fn what_is_set_on_a_layer_with_a_table_counts_for_its_rows() {
    let stage = Stage::new().await;
    let layer = PgCacheLayer::builder(stage.database.pool(2))
        .route(Route::get("/listed").ttl(MINUTE))
        .build()
        .unwrap()
        .credential_headers(["x-session"])
        .key_header("x-variant");
    let app = Router::new()
        .route("/listed", get(obey))
        .layer(layer.clone());
    let mut expected = ["stored", "hit", "stored", "detail=credentials"].into_iter();
    for fields in [&[][..], &[], &[("x-variant", "b")], &[("x-session", "1")]] {
        let answer = ask(&app, "GET", "/listed", fields).await;
        layer.cache().settled().await;
        let expected = expected.next().unwrap();
        assert!(
            answer.cache_status().contains(expected),
            "{expected}: {}",
            answer.cache_status()
        );
    }
    assert!(layer.cache().stats().unmatched_routes.is_empty());
}
