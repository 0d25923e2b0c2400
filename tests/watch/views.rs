//! The views for people, and `refresh()`.

use axum::Router;
use axum::routing::get;
use serde_json::Value;
use test_support::http::get as fetch;
use tower_pgcache::{Domain, domain};

use crate::stage::{ITEMS, MINUTE, Stage, refusal, run, text};

const ITEM: Domain = domain!("item");

#[tokio::test]
async fn versions_count_transactions_through_folding_and_pruning() {
    const VERSIONS: &str = "SELECT string_agg(coalesce(tenant, '*') || ' ' || version, ', ' ORDER BY tenant) FROM pgcache.domain_versions WHERE domain = 'item'";
    let stage = Stage::new(ITEMS).await;
    run(
        &stage.sql,
        "DELETE FROM pgcache.invalidation; UPDATE item SET price = 0 WHERE id < 4",
    )
    .await;
    run(&stage.sql, "UPDATE item SET price = 1 WHERE id = 1; UPDATE item SET price = 1 WHERE id = 2; SELECT pgcache.invalidate('item', '1')").await;
    assert_eq!(text(&stage.sql, VERSIONS).await, "1 2, 2 1");
    let mut expected = 2;
    for _ in 0..2 {
        run(&stage.sql, "UPDATE item SET price = price + 1 WHERE id = 1").await;
        expected += 1;
        for housekeeping in ["fold()", "fold()", "prune()", "prune()", "prune()"] {
            run(&stage.sql, &format!("SELECT pgcache.{housekeeping}")).await;
            assert_eq!(
                text(&stage.sql, VERSIONS).await,
                format!("1 {expected}, 2 1"),
                "{housekeeping}"
            );
        }
        assert_eq!(
            text(&stage.sql, "SELECT count(*) FROM pgcache.invalidation").await,
            "0"
        );
    }
    assert_eq!(text(&stage.sql, "SELECT bool_and(last_modified BETWEEN now() - interval '1 hour' AND clock_timestamp()) FROM pgcache.domain_versions").await, "t");
}

#[tokio::test]
async fn entries_and_what_is_counted_over_them() {
    let stage = Stage::new(ITEMS).await;
    let cache = stage.cache();
    let layer = cache.layer().ttl(MINUTE).entity(ITEM, "id");
    let app = Router::new().route("/items/{id}", get(|| async { "body" }).layer(layer));
    for id in 1..4 {
        fetch(&app, &format!("/items/{id}")).await;
    }
    cache.settled().await;
    run(&stage.sql, "DELETE FROM item WHERE id = 2").await;
    let entries = "SELECT string_agg(path || ' ' || valid || ' ' || fresh || ' ' || (bytes > 4) || ' ' || (age < '1 hour') || ' ' || (fresh_for > '1 s'), ', ' ORDER BY path) FROM pgcache.entries";
    assert_eq!(
        text(&stage.sql, entries).await,
        "/items/1 true true true true true, /items/2 false true true true true, /items/3 true true true true true"
    );
    assert!(
        text(
            &stage.sql,
            "SELECT scopes::text || route FROM pgcache.entries LIMIT 1"
        )
        .await
        .contains("item")
    );
    assert_eq!(
        text(
            &stage.sql,
            "SELECT route || entries || fresh || (bytes > 12) FROM pgcache.entries_by_route"
        )
        .await,
        "/items/{id}33true"
    );
    assert_eq!(
        text(
            &stage.sql,
            "SELECT sum(entries) FROM pgcache.expiring_by_hour"
        )
        .await,
        "3"
    );
    assert_eq!(text(&stage.sql, "SELECT entries || ' ' || expired || ' ' || watched_tables || ' ' || usable || (entry_bytes > 0) FROM pgcache.stats").await, "3 0 1 truetrue");
}

/// How often the plan looked into the table of changes, for the query.
async fn judged(stage: &Stage, query: &str) -> u64 {
    fn loops(node: &Value) -> u64 {
        let own = if node["Relation Name"] == "changed" {
            node["Actual Loops"].as_u64().unwrap()
        } else {
            0
        };
        own + node["Plans"]
            .as_array()
            .map_or(0, |plans| plans.iter().map(loops).sum())
    }
    let plan = crate::stage::texts(
        &stage.sql,
        &format!("EXPLAIN (ANALYZE, FORMAT JSON) {query}"),
    )
    .await
    .concat();
    loops(&serde_json::from_str::<Value>(&plan).unwrap()[0]["Plan"])
}

#[tokio::test]
async fn validity_is_worked_out_only_for_the_entries_that_are_asked_for() {
    let stage = Stage::new(
        "INSERT INTO pgcache.entry (key, epoch, snapshot, probes, born_at, expires_at, keep_until, revalidatable, authority, path, route,
                tenant, scopes, checksum, head, body)
         SELECT int8send(i), p.id, pg_current_snapshot(), ARRAY[i], now() - i * interval '1 s', now() + i * interval '1 s', now() + interval '1 day',
                false, 'h', '/' || i, '/r' || i % 1000, NULL, '{}', '', '', ''
           FROM generate_series(1, 100000) i, pgcache.epoch p; ANALYZE pgcache.entry;
         -- those that have seen all changes need no work at all
         SELECT pgcache.invalidate('later')",
    )
    .await;
    for query in [
        "SELECT * FROM pgcache.entries LIMIT 50",
        "SELECT * FROM pgcache.entries WHERE route = '/r7'",
        "SELECT * FROM pgcache.entries WHERE age > interval '99900 s'",
        "SELECT * FROM pgcache.entries ORDER BY fresh_for LIMIT 50",
        "SELECT * FROM pgcache.entries WHERE valid LIMIT 50",
        "SELECT path, valid FROM pgcache.entries WHERE path = '/5'",
    ] {
        let judged = judged(&stage, query).await;
        assert!((1..=400).contains(&judged), "{query}: {judged}");
    }
    assert_eq!(
        judged(&stage, "SELECT path, bytes FROM pgcache.entries").await,
        0
    );
    assert!(
        judged(
            &stage,
            "SELECT count(*) FILTER (WHERE valid) FROM (SELECT * FROM pgcache.entries LIMIT 1000) e"
        )
        .await
            >= 1000,
        "is counted"
    );
}

#[tokio::test]
async fn a_materialized_view_is_refreshed_and_its_domain_invalidated() {
    let stage = Stage::new(&format!("{ITEMS}; CREATE MATERIALIZED VIEW \"mv_Total\" AS SELECT 1 AS one, sum(price) AS total FROM item;
        CREATE UNIQUE INDEX ON \"mv_Total\" (one); UPDATE item SET price = 0")).await;
    stage
        .expect("SELECT pgcache.refresh('\"mv_Total\"')", &["total */*"])
        .await;
    assert_eq!(
        text(&stage.sql, "SELECT total FROM \"mv_Total\"").await,
        "0"
    );
    run(&stage.sql, "UPDATE item SET price = 1").await;
    stage
        .expect(
            "SELECT pgcache.refresh('\"mv_Total\"', true, 'sums')",
            &["sums */*"],
        )
        .await;
    assert_eq!(
        text(&stage.sql, "SELECT total FROM \"mv_Total\"").await,
        "4"
    );
    run(&stage.sql, "DELETE FROM pgcache.invalidation").await;
    stage
        .cache()
        .refresh_materialized_view("\"mv_Total\"", true, Some(&ITEM), MINUTE)
        .await
        .unwrap();
    assert_eq!(stage.log().await, ["item */*"]);
    stage
        .expect(
            "BEGIN; SELECT pgcache.refresh('\"mv_Total\"'); ROLLBACK",
            &[],
        )
        .await;
    let (message, _) = refusal(&stage.sql, "SELECT pgcache.refresh('item')").await;
    assert!(message.contains("is not a materialized view"), "{message}");
}
