//! Answers in memory: fast, and never older than what the database says.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use test_support::Database;
use test_support::http::{Answer, get as fetch};
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};
use tower_pgcache::{Domain, PgCache, PgCacheBuilder, domain};

const HANG: Duration = Duration::from_secs(30);
const MINUTE: Duration = Duration::from_secs(60);
const ITEM: Domain = domain!("item");

/// An instance: its own pool, engine and router, on a database that others share.
struct Instance {
    cache: PgCache,
    app: Router,
    calls: Arc<AtomicU64>,
}

impl Instance {
    async fn new(
        database: &Database,
        configure: impl FnOnce(PgCacheBuilder<PgCache>) -> PgCacheBuilder<PgCache>,
    ) -> Self {
        let builder = PgCache::builder(database.pool(4))
            .lookup_deadline(HANG)
            .cleanup_interval(Duration::ZERO);
        let cache = configure(builder).build().unwrap();
        cache.ready().await.unwrap();
        let calls = Arc::new(AtomicU64::new(0));
        let counted = calls.clone();
        let handler = move || async move { counted.fetch_add(1, Ordering::SeqCst).to_string() };
        let app = Router::new()
            .route("/{id}", get(handler))
            .layer(cache.layer().ttl(MINUTE).entity(ITEM, "id"));
        Self { cache, app, calls }
    }

    async fn get(&self, path: &str) -> Answer {
        let answer = fetch(&self.app, path).await;
        assert_eq!(answer.status, 200);
        self.cache.settled().await;
        answer
    }

    async fn warm(&self, path: &str) {
        self.get(path).await;
        assert!(self.get(path).await.is_hit());
    }
}

async fn changes(sql: &Client, entity: &str) {
    sql.execute("SELECT pgcache.invalidate('item', NULL, $1)", &[&entity])
        .await
        .unwrap();
}

/// Behind everybody's back: whoever still serves it has it in memory.
async fn empty_the_table(sql: &Client) {
    sql.batch_execute("DELETE FROM pgcache.entry")
        .await
        .unwrap();
}

#[tokio::test]
async fn hits_need_no_row_in_the_database() {
    let database = test_support::database().await;
    let sql = database.connect().await;
    let one = Instance::new(&database, |b| b).await;
    one.warm("/1").await;
    empty_the_table(&sql).await;
    assert!(one.get("/1").await.is_hit());

    let without = Instance::new(&database, |b| b.memory(0)).await;
    without.warm("/1").await;
    empty_the_table(&sql).await;
    assert!(!without.get("/1").await.is_hit());
}

#[tokio::test]
async fn what_another_instance_stored_is_kept_in_memory_too() {
    let database = test_support::database().await;
    let sql = database.connect().await;
    let (one, other) = (
        Instance::new(&database, |b| b).await,
        Instance::new(&database, |b| b).await,
    );
    one.warm("/1").await;
    assert!(other.get("/1").await.is_hit());
    empty_the_table(&sql).await;
    assert!(other.get("/1").await.is_hit());
    assert_eq!(other.calls.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_request_after_a_commit_gets_nothing_from_before_it() {
    let database = test_support::database().await;
    let sql = database.connect().await;
    let (one, other) = (
        Instance::new(&database, |b| b).await,
        Instance::new(&database, |b| b).await,
    );
    for instance in [&one, &other] {
        instance.warm("/1").await;
        instance.warm("/2").await;
    }
    for round in 0..20 {
        changes(&sql, "1").await;
        for instance in [&one, &other] {
            let before = instance.calls.load(Ordering::SeqCst);
            let answer = instance.get("/1").await;
            let again = instance.get("/1").await;
            assert!(again.is_hit(), "round {round}");
            assert_eq!(answer.text(), again.text());
            assert!(instance.calls.load(Ordering::SeqCst) <= before + 1);
            assert!(instance.get("/2").await.is_hit(), "of another entity");
        }
        let calls = one.calls.load(Ordering::SeqCst) + other.calls.load(Ordering::SeqCst);
        // the first one filled, the other one found it
        assert!(calls <= 2 * 2 + round + 1, "{calls} calls in round {round}");
    }
}

#[tokio::test]
async fn an_open_transaction_changes_nothing_until_it_commits() {
    let database = test_support::database().await;
    let sql = database.connect().await;
    let one = Instance::new(&database, |b| b).await;
    one.warm("/1").await;
    sql.batch_execute("BEGIN; SELECT pgcache.invalidate('item')")
        .await
        .unwrap();
    assert!(one.get("/1").await.is_hit());
    sql.batch_execute("ROLLBACK").await.unwrap();
    assert!(one.get("/1").await.is_hit());
    sql.batch_execute("BEGIN; SELECT pgcache.invalidate('item')")
        .await
        .unwrap();
    // others commit in the meantime, with higher ids
    let other = database.connect().await;
    changes(&other, "2").await;
    assert!(one.get("/1").await.is_hit());
    sql.batch_execute("COMMIT").await.unwrap();
    assert!(!one.get("/1").await.is_hit());
}

#[tokio::test]
async fn bounded_hits_ask_nobody_and_own_changes_are_seen_at_once() {
    let database = test_support::database().await;
    let sql = database.connect().await;
    let one = Instance::new(&database, |b| b.max_staleness(HANG)).await;
    one.warm("/1").await;
    one.warm("/2").await;
    changes(&sql, "1").await;
    assert!(
        one.get("/1").await.is_hit(),
        "not old enough to be looked at"
    );
    one.cache.invalidate([ITEM.entity(2)]).await.unwrap();
    assert!(!one.get("/2").await.is_hit(), "it did that itself");
}

#[tokio::test]
async fn a_clear_a_new_epoch_and_a_new_schema_empty_every_memory() {
    let database = test_support::database().await;
    let sql = database.connect().await;
    let (one, other) = (
        Instance::new(&database, |b| b).await,
        Instance::new(&database, |b| b).await,
    );
    let foreign = "UPDATE pgcache.epoch SET database = 1; SELECT pgcache.renew_epoch()";
    for end in ["SELECT pgcache.clear()", foreign] {
        one.warm("/1").await;
        other.warm("/1").await;
        sql.batch_execute(end).await.unwrap();
        assert!(!one.get("/1").await.is_hit(), "{end}");
        empty_the_table(&sql).await;
        assert!(!other.get("/1").await.is_hit(), "{end}");
    }
    one.warm("/1").await;
    one.cache.clear().await.unwrap();
    assert!(!one.get("/1").await.is_hit());
    one.warm("/1").await;
    // who reads while it is dropped takes locks in another order
    while let Err(error) = sql.batch_execute("DROP SCHEMA pgcache CASCADE").await {
        assert_eq!(error.code(), Some(&SqlState::T_R_DEADLOCK_DETECTED));
    }
    assert!(!one.get("/1").await.is_hit());
}

/// More changes at once than a read of the feed returns.
#[tokio::test]
async fn a_gap_in_the_feed_costs_hits_and_nothing_else() {
    let database = test_support::database().await;
    let sql = database.connect().await;
    let one = Instance::new(&database, |b| b).await;
    one.warm("/1").await;
    one.warm("/x").await;
    sql.batch_execute(
        "SELECT pgcache.invalidate('item', NULL, n::text) FROM generate_series(1, 10100) AS n",
    )
    .await
    .unwrap();
    assert!(!one.get("/1").await.is_hit());
    assert!(one.get("/x").await.is_hit(), "the database knows");
    empty_the_table(&sql).await;
    assert!(one.get("/x").await.is_hit(), "and so does memory again");
}

#[tokio::test]
async fn memory_is_bounded_by_bytes() {
    let database = test_support::database().await;
    let sql = database.connect().await;
    let one = Instance::new(&database, |b| b.memory(100_000)).await;
    for n in 0..1000 {
        one.get(&format!("/{n}")).await;
    }
    empty_the_table(&sql).await;
    let mut hits = 0;
    for n in 0..1000 {
        hits += u64::from(fetch(&one.app, &format!("/{n}")).await.is_hit());
    }
    assert!(
        (20..300).contains(&hits),
        "{hits} answers of about 500 bytes in 100,000"
    );
}

#[tokio::test]
async fn ages_go_on_in_memory() {
    let database = test_support::database().await;
    let sql = database.connect().await;
    let one = Instance::new(&database, |b| b).await;
    one.get("/1").await;
    sql.batch_execute("UPDATE pgcache.entry SET born_at = born_at - interval '30 s'")
        .await
        .unwrap();
    let other = Instance::new(&database, |b| b).await;
    for _ in 0..2 {
        assert_eq!(other.get("/1").await.header("age"), Some("30"));
    }
}

/// In bounded mode nobody has to ask; but who listens hears of it.
#[tokio::test]
async fn commits_that_are_heard_of_are_seen_before_the_bound() {
    let database = test_support::database().await;
    let sql = database.connect().await;
    let one = Instance::new(&database, |b| {
        b.max_staleness(10 * HANG).listen(database.config(), NoTls)
    })
    .await;
    one.warm("/1").await;
    let listening = async {
        while !one.cache.capabilities().await.unwrap().listening {
            tokio::task::yield_now().await;
        }
    };
    timeout(HANG, listening).await.expect("it listens");
    one.warm("/1").await;
    changes(&sql, "1").await;
    let heard = async {
        while one.get("/1").await.is_hit() {
            tokio::task::yield_now().await;
        }
    };
    timeout(HANG, heard).await.expect("the change is heard of");
}
