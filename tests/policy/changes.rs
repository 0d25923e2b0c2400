//! What makes a stored answer go away.

use axum::Router;
use axum::routing::any;

use crate::stage::{ITEM, PRICE, Stage, app, ask, obey, with_auth};

const ACME: &[(&str, &str)] = &[("x-tenant", "acme")];
const BOLT: &[(&str, &str)] = &[("x-tenant", "bolt")];

fn two_routes(stage: &Stage) -> Router {
    let items = any(obey).layer(stage.layer().domains([ITEM, PRICE]).invalidates(ITEM));
    let one = any(obey).layer(
        stage
            .layer()
            .entity(ITEM, "id")
            .invalidates(PRICE.entity(1)),
    );
    let total = any(obey).layer(stage.layer().domain(ITEM).all_tenants());
    with_auth(
        Router::new()
            .route("/items", items)
            .route("/item/{id}", one)
            .route("/total", total),
    )
}

#[tokio::test]
async fn a_mutating_route_invalidates_what_it_names_for_its_tenant() {
    let stage = Stage::with_tenants().await;
    let app = two_routes(&stage);
    for (stored, change, ends) in [
        (("/items", ACME), ("POST", "/items", ACME), true),
        (("/items", ACME), ("POST", "/items", BOLT), false),
        (("/item/1", ACME), ("POST", "/items", ACME), true),
        (("/items", ACME), ("PUT", "/item/2", ACME), true), // by the price
        (("/item/1", ACME), ("PUT", "/item/2", ACME), false),
        (("/total", BOLT), ("POST", "/items", ACME), true),
        (("/items", ACME), ("POST", "/items", &[]), true), // nobody knows whose it was
        (("/items", ACME), ("OPTIONS", "/items", ACME), false),
    ] {
        assert_eq!(
            stage.ends(&app, stored, change).await,
            ends,
            "{stored:?} after {change:?}"
        );
    }
}

#[tokio::test]
async fn an_entity_is_the_one_that_the_path_names() {
    let stage = Stage::with_tenants().await;
    let app = two_routes(&stage);
    for (id, tenant, ends) in [
        ("1", "acme", true),
        ("2", "acme", false),
        ("1", "bolt", false),
        ("a/b", "acme", false),
    ] {
        assert!(stage.twice(&app, "/item/1", ACME).await.is_hit());
        stage
            .cache
            .invalidate([ITEM.entity(id).tenant(tenant)])
            .await
            .unwrap();
        assert_eq!(
            !ask(&app, "GET", "/item/1", ACME).await.is_hit(),
            ends,
            "{id} {tenant}"
        );
    }
    assert!(stage.twice(&app, "/item/a%2Fb", ACME).await.is_hit());
    stage.cache.invalidate([ITEM.entity("a/b")]).await.unwrap();
    assert!(!ask(&app, "GET", "/item/a%2Fb", ACME).await.is_hit());
    assert!(stage.twice(&app, "/items", ACME).await.is_hit());
    stage.cache.purge_tenant("acme").await.unwrap();
    assert!(!ask(&app, "GET", "/items", ACME).await.is_hit());
}

#[tokio::test]
async fn the_status_decides_whether_anything_changed() {
    let stage = Stage::new().await;
    let layer = || stage.layer().domain(ITEM).invalidates(ITEM);
    let usual = app(layer());
    for (status, ends) in [
        ("200", true),
        ("303", true),
        ("404", false),
        ("409", false),
        ("500", true),
    ] {
        let change = ("POST", "/2", &[("x-do-status", status)][..]);
        assert_eq!(
            stage.ends(&usual, ("/1", &[]), change).await,
            ends,
            "{status}"
        );
    }
    let own = app(layer().invalidate_on(|status| status == 409));
    for (status, ends) in [("200", false), ("409", true)] {
        let change = ("POST", "/4", &[("x-do-status", status)][..]);
        assert_eq!(
            stage.ends(&own, ("/3", &[]), change).await,
            ends,
            "{status}"
        );
    }
}
