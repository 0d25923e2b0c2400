//! The same, as a client sees it: hits and misses.

use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::routing::get;
use http::Request;
use test_support::http::{Answer, send};
use tower_pgcache::{Domain, PgCache, Tenant, Watch, domain};

use crate::stage::{MINUTE, Stage, builder, run};

const ITEM: Domain = domain!("item");
const PRICE: Domain = domain!("price");

fn app(cache: &PgCache) -> Router {
    let layer = || cache.layer().ttl(MINUTE);
    Router::new()
        .route(
            "/items/{id}",
            get(|Path(id): Path<String>| async move { id }).layer(layer().entity(ITEM, "id")),
        )
        .route(
            "/items",
            get(|| async { "all" }).layer(layer().domain(ITEM)),
        )
        .route(
            "/prices",
            get(|| async { "prices" }).layer(layer().domain(PRICE)),
        )
}

async fn ask(app: &Router, tenant: u32, path: &str) -> Answer {
    let request = Request::get(path)
        .header("x-tenant", tenant)
        .body(Body::empty())
        .unwrap();
    send(app, request).await
}

const PATHS: [&str; 4] = ["/items/1", "/items/2", "/items", "/prices"];

/// Stores everything for the tenants 1 and 2, runs the statement, and returns what is no hit any more.
async fn lost(stage: &Stage, cache: &PgCache, statement: &str) -> Vec<String> {
    let app = app(cache);
    for tenant in [1, 2] {
        for path in PATHS {
            ask(&app, tenant, path).await;
        }
    }
    cache.settled().await;
    for tenant in [1, 2] {
        for path in PATHS {
            let answer = ask(&app, tenant, path).await;
            assert!(
                answer.is_hit(),
                "{tenant}{path}, before {statement}: {answer:?}"
            );
        }
    }
    run(&stage.sql, statement).await;
    let mut lost = Vec::new();
    for tenant in [1, 2] {
        for path in PATHS {
            if !ask(&app, tenant, path).await.is_hit() {
                lost.push(format!("{tenant}{path}"));
            }
        }
    }
    cache.settled().await;
    lost
}

#[tokio::test]
async fn what_is_a_miss_after_which_statement() {
    let stage = Stage::new(
        "CREATE TABLE item (id int PRIMARY KEY, tenant int, name text, price int);
         INSERT INTO item VALUES (1, 1, 'a', 10), (2, 2, 'b', 20), (3, 1, 'c', 30);
         CREATE TABLE part (id int PRIMARY KEY, item int REFERENCES item ON DELETE CASCADE, tenant int); INSERT INTO part VALUES (1, 3, 1)",
    )
    .await;
    let cache = builder(&stage.database)
        .tenant(Tenant::trusted_header("x-tenant"))
        .build()
        .unwrap();
    cache
        .watch(
            Watch::table("item")
                .tenant_column("tenant")
                .entity_column("id")
                .columns(["name"]),
        )
        .await
        .unwrap();
    cache
        .watch(
            Watch::table("part")
                .domain(PRICE)
                .tenant_column("tenant")
                .entity_column("id"),
        )
        .await
        .unwrap();
    let all_items = [
        "1/items/1",
        "1/items/2",
        "1/items",
        "2/items/1",
        "2/items/2",
        "2/items",
    ];
    for (statement, expected) in [
        (
            "UPDATE item SET name = 'x' WHERE id = 1",
            &["1/items/1", "1/items"] as &[&str],
        ),
        ("UPDATE item SET name = 'x' WHERE id = 1", &[]),
        ("UPDATE item SET price = 5", &[]),
        ("BEGIN; DELETE FROM item; ROLLBACK", &[]),
        (
            "BEGIN; SAVEPOINT s; DELETE FROM item; ROLLBACK TO s; COMMIT",
            &[],
        ),
        (
            "UPDATE item SET tenant = 2 WHERE id = 1",
            &["1/items/1", "1/items", "2/items/1", "2/items"],
        ),
        (
            "UPDATE item SET tenant = NULL WHERE id = 2",
            &["1/items/2", "1/items", "2/items/2", "2/items"],
        ),
        (
            "INSERT INTO item VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET name = 'y'",
            &["2/items/1", "2/items"],
        ),
        ("DELETE FROM item WHERE id = 3", &["1/items", "1/prices"]),
        (
            "SELECT pgcache.cascade('item', 'price')",
            &[
                "1/items/1",
                "1/items/2",
                "1/items",
                "1/prices",
                "2/items/1",
                "2/items/2",
                "2/items",
                "2/prices",
            ],
        ),
        (
            "UPDATE item SET name = 'z' WHERE id = 1",
            &["2/items/1", "2/items", "2/prices"],
        ),
        (
            "INSERT INTO item SELECT i, 1 FROM generate_series(10, 1100) i",
            &["1/items/1", "1/items/2", "1/items", "1/prices"],
        ),
        ("SELECT pgcache.uncascade('item', 'price')", &[]),
        (
            "TRUNCATE item CASCADE",
            &[
                all_items[0],
                all_items[1],
                all_items[2],
                "1/prices",
                all_items[3],
                all_items[4],
                all_items[5],
                "2/prices",
            ],
        ),
        ("SELECT pgcache.unwatch('item')", &all_items),
        ("INSERT INTO item VALUES (1, 1)", &[]),
    ] {
        assert_eq!(
            lost(&stage, &cache, statement).await,
            expected,
            "{statement}"
        );
    }
}
