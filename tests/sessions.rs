//! What a session keeps, and for how long a connection is kept: both are a matter of speed, and nobody else's business.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use bb8::Pool;
use bb8_postgres::PostgresConnectionManager;
use test_support::http::get as fetch;
use test_support::{Database, until};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::{Client, NoTls};
use tower_pgcache::{Domain, PgCache, domain};

const HANG: Duration = Duration::from_secs(30);
const MINUTE: Duration = Duration::from_secs(60);
const ITEM: Domain = domain!("item");

struct Stage {
    pool: Pool<PostgresConnectionManager<NoTls>>,
    cache: PgCache,
    app: Router,
    calls: Arc<AtomicU64>,
    sql: Client,
    looks_up: bool,
}

impl Stage {
    async fn new(database: &Database, connections: u32, memory: usize) -> Self {
        let pool = database.pool(connections);
        let builder = PgCache::builder(pool.clone()).lookup_deadline(HANG);
        let cache = builder
            .memory(memory)
            .cleanup_interval(Duration::ZERO)
            .build()
            .unwrap();
        cache.ready().await.unwrap();
        let calls = Arc::new(AtomicU64::new(0));
        let counted = calls.clone();
        let handler = move || async move { counted.fetch_add(1, Ordering::SeqCst).to_string() };
        let app = Router::new()
            .route("/{id}", get(handler))
            .layer(cache.layer().ttl(MINUTE).entity(ITEM, "id"));
        let sql = database.connect().await;
        Self {
            pool,
            cache,
            app,
            calls,
            sql,
            looks_up: memory == 0,
        }
    }

    async fn get(&self, path: &str) -> test_support::http::Answer {
        let answer = fetch(&self.app, path).await;
        assert_eq!(answer.status, 200);
        self.cache.settled().await;
        answer
    }

    /// Clients that ask for `/busy` until they are ended, and get hits unless something else is to happen.
    async fn traffic(&self, all_hits: bool) -> Traffic {
        self.get("/busy").await;
        let goes_on = Arc::new(AtomicBool::new(true));
        let client = || {
            let (app, goes_on) = (self.app.clone(), goes_on.clone());
            tokio::spawn(async move {
                while goes_on.load(Ordering::Relaxed) {
                    let answer = fetch(&app, "/busy").await;
                    assert!(answer.is_hit() || !all_hits, "{}", answer.cache_status());
                }
            })
        };
        let clients = (0..3).map(|_| client()).collect();
        Traffic { goes_on, clients }
    }

    /// Until there were so many more.
    async fn hits(&self, more: u64) {
        let enough = self.cache.stats().hits + more;
        let seen = async {
            while self.cache.stats().hits < enough {
                tokio::task::yield_now().await;
            }
        };
        timeout(HANG, seen).await.expect("hits");
    }

    /// Until a statement was begun from now on that a session keeps: a lookup where nothing is in memory, else a read of the
    /// feed. (What is run to prepare one is in a transaction of several.)
    async fn something_is_kept(&self) {
        let kept = "SELECT EXISTS (SELECT FROM pg_stat_activity
                                    WHERE datname = current_database() AND query_start > $1
                                      AND (xact_start IS NULL OR xact_start = query_start)
                                      AND query LIKE CASE WHEN $2 THEN '-- %.lookup in one statement%'
                                                          ELSE '-- %.feed for a session%' END)";
        let now = "SELECT clock_timestamp()";
        let now: std::time::SystemTime = self.sql.query_one(now, &[]).await.unwrap().get(0);
        let seen = async {
            while !self
                .sql
                .query_one(kept, &[&now, &self.looks_up])
                .await
                .unwrap()
                .get::<_, bool>(0)
            {
                tokio::task::yield_now().await;
            }
        };
        timeout(HANG, seen).await.expect("nothing is kept");
    }
}

/// Clients under way.
struct Traffic {
    goes_on: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
}

impl Traffic {
    async fn end(mut self) {
        self.goes_on.store(false, Ordering::Relaxed);
        for client in std::mem::take(&mut self.clients) {
            client.await.unwrap();
        }
    }
}

/// A test that fails ends, too.
impl Drop for Traffic {
    fn drop(&mut self) {
        self.goes_on.store(false, Ordering::Relaxed);
    }
}

/// That reads the feed, and that looks entries up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_is_kept_tells_of_every_change() {
    for memory in [1 << 20, 0] {
        every_change_is_seen(memory).await;
    }
}

async fn every_change_is_seen(memory: usize) {
    let database = test_support::database().await;
    let stage = Stage::new(&database, 1, memory).await;
    let traffic = stage.traffic(true).await;
    stage.something_is_kept().await;
    stage.get("/1").await;
    for round in 0..100 {
        assert!(stage.get("/1").await.is_hit());
        let calls = stage.calls.load(Ordering::SeqCst);
        stage
            .sql
            .execute("SELECT pgcache.invalidate('item', NULL, '1')", &[])
            .await
            .unwrap();
        let answer = stage.get("/1").await;
        assert!(!answer.is_hit(), "round {round}");
        assert_eq!(answer.text(), calls.to_string());
    }
    stage.something_is_kept().await;
    traffic.end().await;
}

/// Nothing has changed, and what was stored before is not to be used any more: there is no need to search for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_is_kept_knows_what_was_cleared() {
    for memory in [1 << 20, 0] {
        let database = test_support::database().await;
        let stage = Stage::new(&database, 1, memory).await;
        let traffic = stage.traffic(false).await;
        for round in 0..20 {
            stage.get("/1").await;
            assert!(stage.get("/1").await.is_hit());
            stage.something_is_kept().await;
            stage
                .sql
                .execute("SELECT pgcache.clear()", &[])
                .await
                .unwrap();
            assert!(!stage.get("/1").await.is_hit(), "round {round}");
        }
        traffic.end().await;
    }
}

/// A statement that a session keeps is parsed with the session's search path: an operator of the application's that takes just
/// these types comes before one of Postgres' that takes any.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_application_calls_by_the_same_names_is_not_called() {
    const NAMES: &str = "
        CREATE FUNCTION public.none(bigint[], bigint[]) RETURNS boolean LANGUAGE sql AS 'SELECT false';
        CREATE OPERATOR public.&& (LEFTARG = bigint[], RIGHTARG = bigint[], FUNCTION = public.none);
        CREATE FUNCTION public.unnest(xid8[]) RETURNS SETOF xid8 LANGUAGE sql AS 'SELECT NULL::xid8 WHERE false';
        CREATE FUNCTION public.unnest(text[]) RETURNS SETOF text LANGUAGE sql AS 'SELECT NULL::text WHERE false';
        CREATE FUNCTION public.none(oid, regclass) RETURNS boolean LANGUAGE sql AS 'SELECT false';
        CREATE OPERATOR public.= (LEFTARG = oid, RIGHTARG = regclass, FUNCTION = public.none)";
    for is_folded in [false, true] {
        let database = test_support::database().await;
        let sql = database.connect().await;
        sql.batch_execute(NAMES).await.unwrap();
        let stage = Stage::new(&database, 1, 0).await;
        let traffic = stage.traffic(true).await;
        for round in 0..10 {
            stage.get("/1").await;
            assert!(stage.get("/1").await.is_hit());
            stage.something_is_kept().await;
            let change = "SELECT pgcache.invalidate('item', NULL, '1')";
            sql.execute(change, &[]).await.unwrap();
            if is_folded {
                sql.execute("SELECT pgcache.fold()", &[]).await.unwrap();
            }
            assert!(!stage.get("/1").await.is_hit(), "round {round}");
        }
        traffic.end().await;
    }
}

/// Where a schema of the application's comes before that of Postgres, all that has a name is another thing: from the beginning,
/// or from the moment on in which a session is told so, whatever its settings are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_before_the_names_of_postgres_is_not_called() {
    const NAMES: &str = "
        CREATE SCHEMA app;
        CREATE FUNCTION app.always(xid8, xid8) RETURNS boolean LANGUAGE sql AS 'SELECT true';
        CREATE OPERATOR app.> (LEFTARG = xid8, RIGHTARG = xid8, FUNCTION = app.always);
        CREATE OPERATOR app.>= (LEFTARG = xid8, RIGHTARG = xid8, FUNCTION = app.always);
        DO $$ BEGIN
            EXECUTE format('ALTER DATABASE %I SET enable_seqscan = off', current_database());
        END $$";
    const FIRST: &str = "
        DO $$ BEGIN
            EXECUTE format('ALTER DATABASE %I SET search_path = app, pg_catalog', current_database());
        END $$";
    for (memory, is_first) in [(0, true), (0, false), (1 << 20, true), (1 << 20, false)] {
        let database = test_support::database().await;
        let sql = database.connect().await;
        sql.batch_execute(NAMES).await.unwrap();
        if is_first {
            sql.batch_execute(FIRST).await.unwrap();
        }
        let stage = Stage::new(&database, 1, memory).await;
        let traffic = stage.traffic(true).await;
        if is_first {
            stage.hits(300).await;
        }
        for round in 0..10 {
            stage.get("/1").await;
            assert!(stage.get("/1").await.is_hit());
            if !is_first {
                stage.something_is_kept().await;
                let connection = stage.pool.get().await.unwrap();
                let told = "SET search_path = app, pg_catalog";
                connection.batch_execute(told).await.unwrap();
            }
            let change = "SELECT pgcache.invalidate('item', NULL, '1')";
            sql.execute(change, &[]).await.unwrap();
            assert!(!stage.get("/1").await.is_hit(), "round {round}");
            if !is_first {
                let connection = stage.pool.get().await.unwrap();
                let told = "RESET search_path";
                connection.batch_execute(told).await.unwrap();
            }
        }
        traffic.end().await;
    }
}

/// Whatever the application does with a session that it has borrowed, between the cache's statements or for good.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_may_forget_everything() {
    for memory in [1 << 20, 0] {
        everything_is_forgotten(memory).await;
    }
}

async fn everything_is_forgotten(memory: usize) {
    let database = test_support::database().await;
    let stage = Stage::new(&database, 3, memory).await;
    let traffic = stage.traffic(true).await;
    for round in 0..12 {
        stage.something_is_kept().await;
        let forgets = ["DISCARD ALL", "DEALLOCATE ALL", "SET search_path = ''"][round % 3];
        // with all in hand that are to be had, there is none of them that was not discarded
        let mut all = vec![stage.pool.get().await.unwrap()];
        for _ in 0..2 {
            let another = timeout(Duration::from_millis(20), stage.pool.get()).await;
            all.extend(another.map(Result::unwrap));
        }
        for connection in all {
            connection.batch_execute(forgets).await.unwrap();
        }
        assert!(stage.get("/busy").await.is_hit());
    }
    traffic.end().await;
    assert_eq!(stage.calls.load(Ordering::SeqCst), 1);
}

/// Postgres makes another plan whenever a table was analyzed, for what it is by then: here, one to read all of it each time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_statement_uses_the_indexes_whatever_postgres_plans() {
    for memory in [1 << 20, 0] {
        the_indexes_are_used(memory).await;
    }
}

async fn the_indexes_are_used(memory: usize) {
    let database = test_support::database().await;
    let stage = Stage::new(&database, 2, memory).await;
    let traffic = stage.traffic(true).await;
    for _ in 0..4 {
        stage.something_is_kept().await;
        let analyze = "SELECT pgcache.invalidate('item', NULL, '1');
                       ANALYZE pgcache.entry, pgcache.epoch, pgcache.invalidation, pgcache.changed";
        stage.sql.batch_execute(analyze).await.unwrap();
        assert!(stage.get("/busy").await.is_hit());
    }
    stage.something_is_kept().await;
    traffic.end().await;
    assert_eq!(stage.calls.load(Ordering::SeqCst), 1);
    // a server process tells what it has read when it ends
    let Stage {
        pool, cache, sql, ..
    } = stage;
    cache.close().await;
    drop((pool, cache, stage.app));
    let scans = "SELECT sum(seq_tup_read)::bigint, sum(idx_scan)::bigint FROM pg_stat_user_tables
                  WHERE schemaname = 'pgcache' AND relname IN ('entry', 'invalidation', 'changed')";
    let told = async {
        loop {
            let row = sql.query_one(scans, &[]).await.unwrap();
            let (one_by_one, by_index): (i64, i64) = (row.get(0), row.get(1));
            assert_eq!(one_by_one, 0, "beside {by_index} scans by index");
            if by_index > 100 {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(HANG, told).await.expect("nothing was read");
}

/// The only connection is the handlers' too, under constant traffic and after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_is_given_to_whoever_waits_for_it() {
    let database = test_support::database().await;
    for memory in [0, 1 << 20] {
        let stage = Stage::new(&database, 1, memory).await;
        let traffic = stage.traffic(true).await;
        for _ in 0..20 {
            let connection = timeout(HANG, stage.pool.get()).await;
            let connection = connection.expect("the cache keeps it").unwrap();
            connection.batch_execute("SELECT 1").await.unwrap();
        }
        traffic.end().await;
        let connection = timeout(HANG, stage.pool.get()).await;
        drop(connection.expect("the cache keeps it").unwrap());
        let given_back = async {
            while stage.pool.state().idle_connections == 0 {
                tokio::task::yield_now().await;
            }
        };
        timeout(HANG, given_back).await.expect("the cache keeps it");
    }
}

/// As for every session when the server's configuration is read again. Lookups that run as SERIALIZABLE make others' writes fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_default_isolation_that_changes_is_noticed_before_long() {
    let database = test_support::database().await;
    let stage = Stage::new(&database, 1, 0).await;
    let traffic = stage.traffic(true).await;
    stage.something_is_kept().await;
    traffic.end().await;
    let set = "SET default_transaction_isolation = 'serializable'";
    let session = stage.pool.get().await.unwrap();
    session.batch_execute(set).await.unwrap();
    drop(session);
    let observer = database.connect().await;
    let is_noticed = async || {
        // while a serializable transaction is open, the server remembers what such transactions read
        let begin = "BEGIN ISOLATION LEVEL SERIALIZABLE READ WRITE; SELECT count(*) FROM pg_class";
        stage.sql.batch_execute(begin).await.unwrap();
        for _ in 0..20 {
            assert!(stage.get("/busy").await.is_hit());
        }
        let read = "SELECT count(*) FROM pg_locks WHERE mode = 'SIReadLock' AND relation = 'pgcache.entry'::regclass";
        let read: i64 = observer.query_one(read, &[]).await.unwrap().get(0);
        stage.sql.batch_execute("ROLLBACK").await.unwrap();
        read == 0
    };
    until(HANG, "lookups are READ COMMITTED", is_noticed).await;
}
