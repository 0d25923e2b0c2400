//! Holes that were found on paper, one by one.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::routing::get;
use http::HeaderValue;
use test_support::Database;
use test_support::http::send;
use tower::Layer;
use tower_pgcache::{PgCache, Tenant};

const MINUTE: Duration = Duration::from_secs(60);

/// Answers with its path and all its fields.
async fn echo(request: Request) -> String {
    format!("{} {:?}", request.uri(), request.headers())
}

async fn text(app: &Router, uri: &str, fields: &[(&str, &str)]) -> String {
    let mut request = Request::get(uri);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    send(app, request.body(Body::empty()).unwrap())
        .await
        .text()
        .to_owned()
}

async fn cache() -> (Database, PgCache) {
    let database = test_support::database().await;
    let cache = PgCache::builder(database.pool(4))
        .ttl(MINUTE)
        .lookup_deadline(MINUTE)
        .build()
        .unwrap();
    cache.ready().await.unwrap();
    (database, cache)
}

/// Asks for the one, and then for the other, which must not have the same answer.
async fn assert_apart(
    cache: &PgCache,
    app: &Router,
    one: (&str, &[(&str, &str)]),
    other: (&str, &[(&str, &str)]),
) {
    let first = text(app, one.0, one.1).await;
    cache.settled().await;
    assert_ne!(
        first,
        text(app, other.0, other.1).await,
        "{other:?} got the answer to {one:?}"
    );
}

#[tokio::test]
async fn an_outer_layer_does_not_serve_what_the_inner_one_keeps_apart() {
    let (_database, cache) = cache().await;
    let inner = cache.layer().key_header("x-user");
    let outer = cache.layer().key_header("x-theme");
    let app = Router::new()
        .route("/", get(echo).layer(inner))
        .layer(outer);
    assert_apart(
        &cache,
        &app,
        ("/", &[("x-user", "ann")]),
        ("/", &[("x-theme", "ann")]),
    )
    .await;

    let inner = cache.layer().untouched_query();
    let outer = cache.layer().ignore_query(["user"]);
    let app = Router::new()
        .route("/q", get(echo).layer(inner))
        .layer(outer);
    assert_apart(&cache, &app, ("/q", &[]), ("/q?user=ann", &[])).await;

    let inner = cache
        .layer()
        .bypass_if(|head| head.headers().contains_key("x-preview"));
    let app = Router::new()
        .route("/p", get(echo).layer(inner))
        .layer(cache.layer());
    assert_apart(&cache, &app, ("/p", &[]), ("/p", &[("x-preview", "1")])).await;
}

/// Both layers have the same settings, and see different requests.
#[tokio::test]
async fn an_outer_layer_does_not_answer_somebody_whom_only_the_inner_one_knows() {
    #[derive(Clone)]
    struct Claims;
    let (_database, cache) = cache().await;
    let layer = || {
        let layer = cache.layer().shared_by_everyone();
        layer.authenticated_by::<Claims>()
    };
    let auth = axum::middleware::map_request(|mut request: Request| async move {
        if request.headers().contains_key("x-certificate") {
            request.extensions_mut().insert(Claims);
        }
        request
    });
    let app = Router::new().route("/", get(echo).layer(layer()));
    let app = app.layer(auth).layer(layer());
    assert_apart(&cache, &app, ("/", &[]), ("/", &[("x-certificate", "ann")])).await;
}

/// The field can be trusted behind the layer that checks it, and only there.
#[tokio::test]
async fn an_outer_layer_does_not_serve_what_was_stored_behind_a_gate() {
    let database = test_support::database().await;
    let cache = PgCache::builder(database.pool(4))
        .ttl(MINUTE)
        .lookup_deadline(MINUTE)
        .tenant(Tenant::trusted_header("x-tenant"))
        .build()
        .unwrap();
    cache.ready().await.unwrap();
    let gate = axum::middleware::map_request(|mut request: Request| async move {
        request.headers_mut().remove("x-tenant");
        if let Some(tenant) = request.headers().get("x-certificate").cloned() {
            request.headers_mut().insert("x-tenant", tenant);
        }
        request
    });
    let app = Router::new().route("/", get(echo).layer(cache.layer()));
    let app = app.layer(gate).layer(cache.layer());
    let acme = ("/", &[("x-certificate", "acme")][..]);
    assert_apart(&cache, &app, acme, ("/", &[("x-tenant", "acme")])).await;
}

#[tokio::test]
async fn a_uri_that_was_rewritten_by_another_field_is_told_apart() {
    let (_database, cache) = cache().await;
    let rewrite = axum::middleware::map_request(|mut request: Request| async move {
        let language = request.headers().get("accept-language").cloned();
        let language = language.unwrap_or(HeaderValue::from_static("en"));
        *request.uri_mut() = format!("/{}", language.to_str().unwrap()).parse().unwrap();
        request
    });
    let languages = Router::new()
        .fallback(|request: Request| async move { request.uri().to_string() })
        .layer(cache.layer());
    let app = Router::new().fallback_service(rewrite.layer(languages));
    assert_apart(
        &cache,
        &app,
        ("/", &[]),
        ("/", &[("accept-language", "de")]),
    )
    .await;
}

#[tokio::test]
async fn names_count_as_handlers_may_decode_them() {
    let (_database, cache) = cache().await;
    let layer = cache
        .layer()
        .only_query(["page"])
        .session_cookies(["sid"])
        .key_cookie("theme");
    let app = Router::new().route("/", get(echo)).layer(layer);
    assert_apart(&cache, &app, ("/?%70age=2", &[]), ("/", &[])).await;
    assert_apart(
        &cache,
        &app,
        ("/?page=3", &[("cookie", "%73id=ann")]),
        ("/?page=3", &[]),
    )
    .await;
    assert_apart(
        &cache,
        &app,
        ("/?page=4", &[("cookie", "them%65=dark")]),
        ("/?page=4", &[]),
    )
    .await;
}

#[tokio::test]
async fn a_host_that_contradicts_the_uri_is_nobodys() {
    let (_database, cache) = cache().await;
    let app = Router::new().route("/", get(echo)).layer(cache.layer());
    let uri = "http://victim.example/";
    assert_apart(&cache, &app, (uri, &[("host", "evil.example")]), (uri, &[])).await;
    assert_apart(
        &cache,
        &app,
        ("http://u:P@a.example/", &[]),
        ("http://u:p@a.example/", &[]),
    )
    .await;
}

#[tokio::test]
async fn what_a_route_adds_to_the_key_does_not_replace_what_the_engine_names() {
    let database = test_support::database().await;
    let cache = PgCache::builder(database.pool(4))
        .ttl(MINUTE)
        .lookup_deadline(MINUTE)
        .key_header("x-role")
        .build()
        .unwrap();
    cache.ready().await.unwrap();
    let app = Router::new()
        .route("/", get(echo))
        .layer(cache.layer().key_header("x-theme"));
    assert_apart(&cache, &app, ("/", &[("x-role", "admin")]), ("/", &[])).await;
}
