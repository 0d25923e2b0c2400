//! A change of one domain that is a change of others.

use axum::Router;
use axum::body::Body;
use axum::routing::post;
use http::Request;
use test_support::http::send;
use tower_pgcache::{Domain, domain};

use crate::stage::{Stage, refusal, run, somebody_waits, text};

const TABLES: &str = "
    CREATE TABLE contract (id int PRIMARY KEY, tenant int, customer int, v int);
    INSERT INTO contract VALUES (1, 1, 10, 0), (2, 1, 20, 0), (3, 2, 30, 0);
    SELECT pgcache.watch('contract', tenant_column => 'tenant', entity_column => 'id')";

#[tokio::test]
async fn transitive_with_diamonds_and_circles() {
    let stage = Stage::new(TABLES).await;
    let one = "UPDATE contract SET v = v + 1 WHERE id = 1";
    run(&stage.sql, "SELECT pgcache.cascade('contract', 'price'), pgcache.cascade('price', 'offer'), pgcache.cascade('contract', 'list'),
                            pgcache.cascade('list', 'offer')").await;
    let all: &[&str] = &["contract 1/1", "list 1/*", "offer 1/*", "price 1/*"];
    stage.expect(one, all).await;
    assert_eq!(
        text(&stage.sql, "SELECT count(*) FROM pgcache.invalidation").await,
        "4",
        "a diamond once"
    );
    stage
        .expect("SELECT pgcache.invalidate('contract', '1', '1')", all)
        .await;
    stage
        .expect(
            "SELECT pgcache.invalidate('price', '7', '1')",
            &["offer 7/*", "price 7/1"],
        )
        .await;
    stage
        .expect(
            "SELECT pgcache.invalidate('list')",
            &["list */*", "offer */*"],
        )
        .await;
    stage
        .expect(
            "UPDATE contract SET tenant = 3 - tenant",
            &[
                "contract 1/1",
                "contract 1/2",
                "contract 1/3",
                "contract 2/1",
                "contract 2/2",
                "contract 2/3",
                "list 1/*",
                "list 2/*",
                "offer 1/*",
                "offer 2/*",
                "price 1/*",
                "price 2/*",
            ],
        )
        .await;
    // a circle: what is reached by way of others is concerned as a whole, the source too
    stage
        .expect(
            "SELECT pgcache.cascade('offer', 'contract')",
            &["contract */*", "list */*", "offer */*", "price */*"],
        )
        .await;
    let circle = ["contract 2/*", "list 2/*", "offer 2/*", "price 2/*"];
    stage.expect(one, &circle).await;
    let called = stage
        .changes("SELECT pgcache.invalidate('contract', '2', '1')")
        .await;
    assert_eq!(
        called,
        [
            "contract 2/*",
            "contract 2/1",
            "list 2/*",
            "offer 2/*",
            "price 2/*"
        ]
    );
    assert_eq!(
        text(&stage.sql, "SELECT pgcache.uncascade('offer', 'contract')").await,
        "t"
    );
    assert_eq!(
        text(&stage.sql, "SELECT pgcache.uncascade('offer', 'contract')").await,
        "f"
    );
    stage
        .expect(one, &["contract 2/1", "list 2/*", "offer 2/*", "price 2/*"])
        .await;
    assert_eq!(
        text(
            &stage.sql,
            "SELECT string_agg(source || '>' || target || rule, ',' ORDER BY 1) FROM
        (SELECT source, target, rule FROM pgcache.cascades ORDER BY source, target) c"
        )
        .await,
        "contract>listtrue,contract>offerfalse,contract>pricetrue,list>offertrue,price>offertrue"
    );
    run(
        &stage.sql,
        "SELECT pgcache.uncascade(source, target) FROM pgcache.cascades WHERE rule",
    )
    .await;
    stage.expect(one, &["contract 2/1"]).await;
}

#[tokio::test]
async fn the_entity_that_a_column_names() {
    let stage = Stage::new(TABLES).await;
    run(&stage.sql, "SELECT pgcache.cascade('contract', 'customer', 'customer'), pgcache.cascade('customer', 'letter')").await;
    for (statement, changes) in [
        (
            "UPDATE contract SET v = 1 WHERE id = 1",
            &["contract 1/1", "customer 1/10", "letter 1/*"] as &[&str],
        ),
        (
            "UPDATE contract SET customer = 11 WHERE id = 1",
            &[
                "contract 1/1",
                "customer 1/10",
                "customer 1/11",
                "letter 1/*",
            ],
        ),
        (
            "UPDATE contract SET customer = NULL WHERE id = 1",
            &[
                "contract 1/1",
                "customer 1/*",
                "customer 1/11",
                "letter 1/*",
            ],
        ),
        (
            "UPDATE contract SET v = 2 WHERE id > 1",
            &[
                "contract 1/2",
                "contract 2/3",
                "customer 1/20",
                "customer 2/30",
                "letter 1/*",
                "letter 2/*",
            ],
        ),
        (
            "INSERT INTO contract VALUES (4, 1, 20)",
            &["contract 1/4", "customer 1/20", "letter 1/*"],
        ),
        (
            "DELETE FROM contract WHERE id = 4",
            &["contract 1/4", "customer 1/20", "letter 1/*"],
        ),
        (
            "SELECT pgcache.invalidate('contract', '1', '1')",
            &["contract 1/1", "customer 1/*", "letter 1/*"],
        ),
        (
            "TRUNCATE contract",
            &["contract */*", "customer */*", "letter */*"],
        ),
    ] {
        stage.expect(statement, changes).await;
    }
    // the column counts though it is not among those that are watched
    run(&stage.sql, "INSERT INTO contract VALUES (1, 1, 10, 0);
        SELECT pgcache.watch('contract', tenant_column => 'tenant', entity_column => 'id', columns => '{id}')").await;
    stage.expect("UPDATE contract SET v = 9", &[]).await;
    stage
        .expect(
            "UPDATE contract SET customer = 12",
            &[
                "contract 1/1",
                "customer 1/10",
                "customer 1/12",
                "letter 1/*",
            ],
        )
        .await;
    // by another way the whole domain is reached
    run(
        &stage.sql,
        "SELECT pgcache.cascade('contract', 'book'), pgcache.cascade('book', 'customer')",
    )
    .await;
    stage
        .expect(
            "UPDATE contract SET customer = 13",
            &["book 1/*", "contract 1/1", "customer 1/*", "letter 1/*"],
        )
        .await;
}

#[tokio::test]
async fn a_column_that_is_missing_or_not_plain_concerns_the_whole_domain() {
    let stage = Stage::new(TABLES).await;
    run(&stage.sql, "ALTER TABLE contract ADD at timestamptz; SELECT pgcache.cascade('contract', 'a', 'nowhere'), pgcache.cascade('contract', 'b', 'at')").await;
    stage
        .expect(
            "UPDATE contract SET v = 1 WHERE id = 1",
            &["a 1/*", "b 1/*", "contract 1/1"],
        )
        .await;
    run(&stage.sql, "ALTER TABLE contract ADD nowhere int; SELECT pgcache.watch('contract', tenant_column => 'tenant', entity_column => 'id')").await;
    stage
        .expect(
            "UPDATE contract SET nowhere = 2 WHERE id = 1",
            &["a 1/*", "a 1/2", "b 1/*", "contract 1/1"],
        )
        .await;
}

#[tokio::test]
async fn refused() {
    let stage = Stage::new("").await;
    for (call, message) in [
        ("pgcache.cascade('a', 'a')", "'a' cannot be its own target"),
        ("pgcache.cascade('A', 'b')", "'A' is not a domain name"),
        ("pgcache.cascade('a', NULL)", "NULL is not a domain name"),
    ] {
        let (got, _) = refusal(&stage.sql, &format!("SELECT {call}")).await;
        assert!(got.contains(message), "{got}");
    }
}

#[tokio::test]
async fn who_changed_the_source_before_is_waited_for() {
    let stage = Stage::new(TABLES).await;
    let writer = stage.database.connect().await;
    run(&writer, "BEGIN; UPDATE contract SET v = 7 WHERE id = 1").await;
    let mut cascade = Box::pin(
        stage
            .sql
            .batch_execute("SELECT pgcache.cascade('contract', 'price')"),
    );
    let observer = stage.database.connect().await;
    tokio::select! {
        done = &mut cascade => panic!("did not wait: {done:?}"),
        () = somebody_waits(&observer, "pgcache.invalidation") => {}
    }
    let snapshot = text(&observer, "SELECT pg_current_snapshot()").await;
    run(&writer, "COMMIT").await;
    cascade.await.unwrap();
    let unseen = format!(
        "SELECT count(*) FROM pgcache.invalidation WHERE name = 'price' AND NOT pg_visible_in_snapshot(xid, '{snapshot}')"
    );
    assert_eq!(text(&observer, &unseen).await, "1");
    // nothing new: nobody is waited for
    run(&writer, "BEGIN; UPDATE contract SET v = 8 WHERE id = 1").await;
    run(&stage.sql, "SELECT pgcache.cascade('contract', 'price')").await;
}

const CONTRACT: Domain = domain!("contract");
const PRICE: Domain = domain!("price");
const CUSTOMER: Domain = domain!("customer");

#[tokio::test]
async fn from_rust_and_for_mutating_routes() {
    let stage = Stage::new(TABLES).await;
    let cache = stage.cache();
    cache.cascade(&CONTRACT, &PRICE).await.unwrap();
    cache
        .cascade_via(&CONTRACT, &CUSTOMER, "customer")
        .await
        .unwrap();
    stage
        .expect(
            "UPDATE contract SET v = 1 WHERE id = 1",
            &["contract 1/1", "customer 1/10", "price 1/*"],
        )
        .await;
    let layer = cache.layer().invalidates(CONTRACT);
    let app = Router::new().route("/", post(|| async { "done" }).layer(layer));
    run(&stage.sql, "DELETE FROM pgcache.invalidation").await;
    send(&app, Request::post("/").body(Body::empty()).unwrap()).await;
    let log = stage.log().await;
    for change in ["contract */*", "customer */*", "price */*"] {
        assert!(log.iter().any(|entry| entry == change), "{log:?}");
    }
    assert!(cache.uncascade(&CONTRACT, &PRICE).await.unwrap());
    assert!(!cache.uncascade(&CONTRACT, &PRICE).await.unwrap());
}
