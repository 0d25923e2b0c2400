//! What the horizon cuts off, and what it must not.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use test_support::Database;
use test_support::http::get as fetch;
use tokio::sync::Semaphore;
use tokio_postgres::Client;
use tower_pgcache::{Domain, PgCache, domain};

use crate::database_with_schema;

const MINUTE: Duration = Duration::from_secs(60);
const PRODUCT: Domain = domain!("product");

/// An entry without dependencies.
async fn enter(sql: &Client, key: &str, snapshot: &str) {
    sql.execute(
        "INSERT INTO pgcache.entry
         SELECT convert_to($1, 'UTF8'), id, $2::text::pg_snapshot, '{}', now(), 'infinity', 'infinity', false, NULL, NULL, '', '', NULL, NULL, '{}', '', '', ''
           FROM pgcache.epoch",
        &[&key, &snapshot],
    )
    .await
    .unwrap();
}

async fn is_valid(sql: &Client, key: &str) -> bool {
    let query =
        "SELECT usable AND unchanged FROM pgcache.entry_state WHERE key = convert_to($1, 'UTF8')";
    sql.query_one(query, &[&key]).await.unwrap().get(0)
}

async fn change(sql: &Client, entity: &str) {
    let call = "SELECT pgcache.invalidate('product', NULL, $1)";
    sql.execute(call, &[&entity]).await.unwrap();
}

async fn snapshot(sql: &Client) -> String {
    let row = sql.query_one("SELECT pg_current_snapshot()::text", &[]);
    row.await.unwrap().get(0)
}

async fn number(sql: &Client, query: &str) -> i64 {
    sql.query_one(query, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn clear_makes_every_earlier_snapshot_unusable_and_no_later_one() {
    let database = database_with_schema().await;
    let sql = database.connect().await;
    for round in 0..3 {
        // nothing else takes a transaction id between the two
        let before = snapshot(&sql).await;
        let cleared = sql.query_one("SELECT pgcache.clear()", &[]).await;
        cleared.unwrap();
        enter(&sql, &format!("before {round}"), &before).await;
        enter(&sql, &format!("after {round}"), &snapshot(&sql).await).await;
        assert!(!is_valid(&sql, &format!("before {round}")).await);
        assert!(is_valid(&sql, &format!("after {round}")).await);
        if round > 0 {
            assert!(!is_valid(&sql, &format!("after {}", round - 1)).await);
        }
    }
}

#[tokio::test]
async fn clear_takes_effect_with_its_commit_for_snapshots_from_while_it_was_open() {
    let database = database_with_schema().await;
    let (sql, mut other) = (database.connect().await, database.connect().await);
    for commits in [false, true] {
        let clearing = other.transaction().await.unwrap();
        clearing
            .execute("SELECT pgcache.clear()", &[])
            .await
            .unwrap();
        // somebody ends later and with a higher xid: this snapshot has the open one below its xmax
        sql.execute("SELECT pg_current_xact_id()", &[])
            .await
            .unwrap();
        let key = format!("while open {commits}");
        enter(&sql, &key, &snapshot(&sql).await).await;
        assert!(is_valid(&sql, &key).await, "not committed yet");
        if commits {
            clearing.commit().await.unwrap();
        } else {
            clearing.rollback().await.unwrap();
        }
        assert_eq!(is_valid(&sql, &key).await, !commits);
    }
}

#[tokio::test]
async fn open_transactions_do_not_keep_new_snapshots_from_being_usable() {
    let database = database_with_schema().await;
    let sql = database.connect().await;
    let mut open = Vec::new();
    for step in ["SELECT pgcache.clear()", "SELECT pgcache.prune(2)"] {
        // one that began before, and one with a higher xid than a transaction that has ended
        for _ in 0..2 {
            let client = database.connect().await;
            client
                .batch_execute("BEGIN; SELECT pg_current_xact_id()")
                .await
                .unwrap();
            open.push(client);
            for entity in ["1", "2", "3"] {
                change(&sql, entity).await;
            }
        }
        sql.batch_execute(step).await.unwrap();
        enter(&sql, step, &snapshot(&sql).await).await;
        assert!(is_valid(&sql, step).await, "{step}");
    }
    assert!(!is_valid(&sql, "SELECT pgcache.clear()").await, "pruned");
}

/// A handler that says when it began, and goes on when it is told to.
fn held(database: &Database) -> (PgCache, Router, Arc<Semaphore>, Arc<Semaphore>) {
    let cache = PgCache::builder(database.pool(4))
        .lookup_deadline(Duration::from_secs(10))
        .build()
        .unwrap();
    let (began, go) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (tell, wait) = (began.clone(), go.clone());
    let handler = get(async move || {
        tell.add_permits(1);
        wait.acquire().await.unwrap().forget();
        "answer"
    });
    let layer = cache.layer().ttl(MINUTE).domain(PRODUCT);
    (
        cache,
        Router::new().route("/", handler.layer(layer)),
        began,
        go,
    )
}

#[tokio::test]
async fn a_fill_from_before_the_horizon_is_not_stored() {
    for step in [
        "SELECT pgcache.clear()",
        "SELECT pgcache.invalidate('a', NULL, '1'); SELECT pgcache.invalidate('a', NULL, '2'); SELECT pgcache.prune(1)",
    ] {
        let database = test_support::database().await;
        let (cache, app, began, go) = held(&database);
        let sql = database.connect().await;

        let filling = tokio::spawn({
            let app = app.clone();
            async move { fetch(&app, "/").await }
        });
        began.acquire().await.unwrap().forget();
        for statement in step.split("; ") {
            sql.batch_execute(statement).await.unwrap();
        }
        go.add_permits(1);
        assert_eq!(filling.await.unwrap().text(), "answer");
        cache.settled().await;
        assert_eq!(cache.stats().stored, 0, "{step}");
        assert_eq!(
            number(&sql, "SELECT count(*) FROM pgcache.entry").await,
            0,
            "{step}"
        );

        go.add_permits(1);
        assert!(!fetch(&app, "/").await.is_hit(), "{step}");
        cache.settled().await;
        assert!(fetch(&app, "/").await.is_hit(), "{step}");
    }
}

/// Its own changes from after the fold must not count as folded, although its snapshot says that it sees them.
#[tokio::test]
async fn a_transaction_that_folds_and_changes_afterwards_loses_nothing() {
    for fold in ["SELECT pgcache.fold()", "SELECT pgcache.prune(1000)"] {
        let database = database_with_schema().await;
        let (sql, other) = (database.connect().await, database.connect().await);
        other
            .batch_execute("BEGIN; SELECT pgcache.invalidate('early')")
            .await
            .unwrap();
        enter(&sql, "answer", &snapshot(&sql).await).await;
        sql.batch_execute(
            "UPDATE pgcache.entry SET probes = ARRAY[(pgcache.invalidation_keys('d', 'late', NULL, NULL))[4]]",
        )
        .await
        .unwrap();
        other.batch_execute(fold).await.unwrap();
        other
            .batch_execute("SELECT pgcache.invalidate('late'); COMMIT")
            .await
            .unwrap();
        assert!(!is_valid(&sql, "answer").await, "{fold}");
        for again in 0..4 {
            sql.batch_execute("SELECT pgcache.prune(1000)")
                .await
                .unwrap();
            assert!(!is_valid(&sql, "answer").await, "{fold}, {again}");
        }
    }
}

#[tokio::test]
async fn rows_of_the_log_are_forgotten_after_two_runs() {
    const LOG: &str = "SELECT count(*) FROM pgcache.invalidation";
    let database = database_with_schema().await;
    let sql = database.connect().await;
    for entity in ["1", "2", "3"] {
        change(&sql, entity).await;
    }
    assert_eq!(number(&sql, LOG).await, 3);
    // folds
    assert_eq!(number(&sql, "SELECT pgcache.prune()").await, 0);
    assert_eq!(number(&sql, LOG).await, 3);
    sql.execute("SELECT pgcache.invalidate('product', 'a')", &[])
        .await
        .unwrap();
    // forgets what the first run had folded
    assert_eq!(number(&sql, "SELECT pgcache.prune()").await, 3);
    assert_eq!(number(&sql, LOG).await, 1);
    assert_eq!(number(&sql, "SELECT pgcache.prune()").await, 1);
    assert_eq!(number(&sql, LOG).await, 0);
    assert_eq!(number(&sql, "SELECT pgcache.prune()").await, 0);
}

#[tokio::test]
async fn prune_keeps_its_bound_even_if_one_transaction_changed_more() {
    let database = database_with_schema().await;
    let sql = database.connect().await;
    enter(&sql, "answer", &snapshot(&sql).await).await;
    sql.batch_execute(
        "SELECT pgcache.invalidate('product-' || n) FROM generate_series(1, 100) AS n",
    )
    .await
    .unwrap();
    assert!(number(&sql, "SELECT pgcache.prune(40)").await > 0);
    assert!(number(&sql, "SELECT count(*) FROM pgcache.changed").await <= 40);
    assert!(
        !is_valid(&sql, "answer").await,
        "from before what was forgotten"
    );
    enter(&sql, "later", &snapshot(&sql).await).await;
    assert!(is_valid(&sql, "later").await);
}

/// No unique index makes two scopes into one, or the summaries of the second would be missing.
#[tokio::test]
async fn two_scopes_of_one_transaction_are_both_recorded_whatever_their_hashes() {
    let database = database_with_schema().await;
    let sql = database.connect().await;
    sql.batch_execute(
        "BEGIN;
         INSERT INTO pgcache.invalidation (xid, keys, kind, name)
         VALUES (pg_current_xact_id(), ARRAY[(pgcache.invalidation_keys('d', 'b', 't', 'e'))[1], 1, 2, 3], 'd', 'a');
         SELECT pgcache.invalidate('b', 't', 'e');
         SELECT pgcache.invalidate('b', 't', 'e');
         COMMIT",
    )
    .await
    .unwrap();
    assert_eq!(
        number(&sql, "SELECT count(*) FROM pgcache.invalidation").await,
        2
    );
}

/// Makes the one entry depend on the whole domain.
async fn depend_on_product(sql: &Client) {
    let update = "UPDATE pgcache.entry SET probes = ARRAY[(pgcache.invalidation_keys('d', 'product', NULL, NULL))[4]]";
    sql.batch_execute(update).await.unwrap();
}

#[tokio::test]
async fn a_fold_keeps_what_a_conservative_snapshot_may_not_see() {
    let database = database_with_schema().await;
    let sql = database.connect().await;
    let (lower, open) = (database.connect().await, database.connect().await);
    lower
        .batch_execute("BEGIN; SELECT pgcache.invalidate('product')")
        .await
        .unwrap();
    open.batch_execute("BEGIN; SELECT pg_current_xact_id()")
        .await
        .unwrap();
    change(&sql, "higher").await;
    sql.batch_execute("SELECT pgcache.fold()").await.unwrap();
    lower.batch_execute("COMMIT").await.unwrap();
    sql.batch_execute("SELECT pgcache.fold()").await.unwrap();
    // as a replica gives it: sees the lower one, which was folded last, and not the higher one
    let row = sql.query_one(
        "SELECT format('%1$s:%1$s:', pg_snapshot_xmin(pg_current_snapshot()))",
        &[],
    );
    let conservative: String = row.await.unwrap().get(0);
    enter(&sql, "answer", &conservative).await;
    depend_on_product(&sql).await;
    assert!(!is_valid(&sql, "answer").await);
}

#[tokio::test]
async fn a_fold_of_more_transactions_than_it_can_name_forgets_none() {
    let database = database_with_schema().await;
    let (sql, oldest) = (database.connect().await, database.connect().await);
    oldest
        .batch_execute("BEGIN; SELECT pgcache.invalidate('product')")
        .await
        .unwrap();
    for entity in 0..70 {
        change(&sql, &entity.to_string()).await;
    }
    // sees all but the oldest
    enter(&sql, "answer", &snapshot(&sql).await).await;
    depend_on_product(&sql).await;
    assert!(is_valid(&sql, "answer").await);
    oldest.batch_execute("COMMIT").await.unwrap();
    sql.batch_execute("SELECT pgcache.fold()").await.unwrap();
    assert!(!is_valid(&sql, "answer").await);
}

/// Many entities of one domain cost the other domains, and what is stored later, nothing.
#[tokio::test]
async fn a_domain_with_too_many_entities_is_coarsened_and_nothing_else() {
    let database = database_with_schema().await;
    let sql = database.connect().await;
    let depend = |key: &'static str, domain: &'static str, entity: &'static str| {
        let sql = &sql;
        async move {
            enter(sql, key, &snapshot(sql).await).await;
            sql.execute(
                "UPDATE pgcache.entry SET probes = ARRAY[
                     pgcache.name_hash('d', $2) # pgcache.tenant_hash('t') # pgcache.entity_hash('d', $3),
                     pgcache.coarse_key('d', $2)]
                  WHERE key = convert_to($1, 'UTF8')",
                &[&key, &domain, &entity],
            )
            .await
            .unwrap();
        }
    };
    depend("other", "price", "1").await;
    depend("bystander", "product", "none of them").await;
    sql.batch_execute("SELECT pgcache.invalidate('price', 't', '2')")
        .await
        .unwrap();
    let open = database.connect().await;
    for entity in 0..100 {
        if entity == 50 {
            // stays open until the end, and must not keep what is stored from being valid
            open.batch_execute("BEGIN; SELECT pg_current_xact_id()")
                .await
                .unwrap();
        }
        sql.execute(
            "SELECT pgcache.invalidate('product', 't', $1)",
            &[&entity.to_string()],
        )
        .await
        .unwrap();
    }
    assert!(is_valid(&sql, "bystander").await);
    assert!(number(&sql, "SELECT pgcache.prune(80)").await > 0);
    assert!(number(&sql, "SELECT count(*) FROM pgcache.changed").await <= 60);
    assert!(is_valid(&sql, "other").await, "of another domain");
    assert!(!is_valid(&sql, "bystander").await, "who knows");
    depend("later", "product", "99").await;
    assert!(is_valid(&sql, "later").await);
    sql.batch_execute("SELECT pgcache.invalidate('product', 't', '5'); SELECT pgcache.prune(80)")
        .await
        .unwrap();
    assert!(is_valid(&sql, "later").await, "not among the changes since");
    sql.batch_execute("SELECT pgcache.invalidate('product', 't', '99'); SELECT pgcache.prune(80)")
        .await
        .unwrap();
    assert!(!is_valid(&sql, "later").await);
}
