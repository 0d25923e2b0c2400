//! Many lookups go in one statement: what they share, and what they must not.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use bb8::Pool;
use bb8_postgres::PostgresConnectionManager;
use test_support::http::{Answer, get as fetch};
use test_support::{Database, copies_of_an_entry};
use tokio::task::{JoinHandle, yield_now};
use tokio::time::timeout;
use tokio_postgres::{Client, NoTls};
use tower_pgcache::{Domain, PgCache, domain};

const MINUTE: Duration = Duration::from_secs(60);
/// Nothing here takes long; what takes as long as this hangs.
const HANG: Duration = Duration::from_secs(30);

const THINGS: Domain = domain!("things");

/// Counts what is looked up, stops the statements that ask for a key in `slow` while somebody holds the lock, and
/// refuses those that ask for a key in `bad`. Statements that sessions keep would not be seen, so nothing can be kept.
const SPY: &str = "
    CREATE SEQUENCE statements; CREATE SEQUENCE keys;
    CREATE TABLE slow (key bytea); CREATE TABLE bad (key bytea);
    CREATE FUNCTION spy(keys bytea[]) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM nextval('public.statements');
        PERFORM nextval('public.keys') FROM unnest(keys);
        PERFORM pg_advisory_xact_lock_shared(1) FROM public.slow WHERE key = ANY (keys);
        IF EXISTS (SELECT FROM public.bad WHERE key = ANY (keys)) THEN
            RAISE 'damaged' USING ERRCODE = 'data_corrupted';
        END IF;
    END $$;
    DROP FUNCTION pgcache.is_planned_well;
    ALTER FUNCTION pgcache.lookup RENAME TO real_lookup;
    DO $do$ BEGIN
        EXECUTE format(
            'CREATE FUNCTION pgcache.lookup(keys bytea[], invalid_too boolean) RETURNS %s
             LANGUAGE plpgsql STABLE AS $f$ BEGIN
                 PERFORM public.spy($1);
                 RETURN QUERY SELECT * FROM pgcache.real_lookup($1, $2);
             END $f$',
            pg_get_function_result('pgcache.real_lookup'::regproc));
    END $do$";

struct Stage {
    app: Router,
    cache: PgCache,
    admin: Client,
    database: Database,
}

impl Stage {
    /// With so many answers stored, at `/0`, `/1`, …
    async fn with(stored: usize, connections: usize) -> Self {
        let database = test_support::database().await;
        let pool = database.pool(4);
        let cache = PgCache::builder(pool.clone())
            .lookup_deadline(HANG)
            .memory(0)
            .lease_wait(Duration::ZERO)
            .lookup_connections(connections)
            .cleanup_interval(Duration::ZERO)
            .build()
            .unwrap();
        let app = app(&cache);
        for n in 0..stored {
            fetch(&app, &format!("/{n}")).await;
        }
        cache.settled().await;
        // with it, a session forgets what it kept
        let given_back = async {
            while pool.state().idle_connections < pool.state().connections {
                yield_now().await;
            }
        };
        timeout(HANG, given_back)
            .await
            .expect("a connection is kept");
        let admin = database.connect().await;
        admin.batch_execute(SPY).await.unwrap();
        Self {
            app,
            cache,
            admin,
            database,
        }
    }

    async fn mark(&self, table: &str, path: &str) {
        let sql = format!("INSERT INTO {table} SELECT key FROM pgcache.entry WHERE path = $1");
        assert_eq!(self.admin.execute(&sql, &[&path]).await.unwrap(), 1);
    }

    /// How many statements there were, and how many keys in them, since this was called last.
    async fn asked(&self) -> (i64, i64) {
        let sql = "SELECT CASE WHEN s.is_called THEN s.last_value ELSE 0 END,
                          CASE WHEN k.is_called THEN k.last_value ELSE 0 END FROM statements s, keys k";
        let row = self.admin.query_one(sql, &[]).await.unwrap();
        let reset = "SELECT setval('statements', 1, false), setval('keys', 1, false)";
        self.admin.batch_execute(reset).await.unwrap();
        (row.get(0), row.get(1))
    }

    fn request(&self, path: &str) -> JoinHandle<Answer> {
        let (app, path) = (self.app.clone(), path.to_owned());
        tokio::spawn(async move { fetch(&app, &path).await })
    }

    /// Requests whose lookups are made when this returns: nothing else runs in between on this one thread.
    async fn requests(&self, paths: impl IntoIterator<Item = String>) -> Vec<JoinHandle<Answer>> {
        let all = paths.into_iter().map(|path| self.request(&path)).collect();
        for _ in 0..100 {
            yield_now().await;
        }
        all
    }

    /// From now on, who asks for a slow key stops.
    async fn stop_slow_ones(&self) -> Client {
        let holder = self.database.connect().await;
        let sql = "SELECT pg_advisory_lock(1)";
        holder.batch_execute(sql).await.unwrap();
        holder
    }

    async fn stopped(&self, statements: i64) {
        let sql = "SELECT count(*) FROM pg_locks
                    WHERE locktype = 'advisory' AND NOT granted
                      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        let stopped = async {
            while self
                .admin
                .query_one(sql, &[])
                .await
                .unwrap()
                .get::<_, i64>(0)
                < statements
            {}
        };
        timeout(HANG, stopped).await.expect("statements that wait");
    }
}

fn app(cache: &PgCache) -> Router {
    Router::new()
        .fallback(|| ready("x"))
        .layer(cache.layer().ttl(MINUTE).domain(THINGS))
}

async fn go_on(holder: Client) {
    let sql = "SELECT pg_advisory_unlock(1)";
    holder.batch_execute(sql).await.unwrap();
}

async fn answer(request: JoinHandle<Answer>) -> Answer {
    let answer = timeout(HANG, request).await.expect("an answer in time");
    answer.expect("an answer")
}

#[tokio::test]
async fn what_comes_while_a_statement_is_under_way_shares_the_next_one() {
    let stage = Stage::with(40, 1).await;
    stage.mark("slow", "/0").await;
    let holder = stage.stop_slow_ones().await;
    let first = stage.request("/0");
    stage.stopped(1).await;
    // each path twice, and some that are not stored
    let paths = (1..60).chain(1..60).map(|n| format!("/{}", n % 50));
    let others = stage.requests(paths).await;
    assert_eq!(stage.asked().await, (1, 1));
    go_on(holder).await;
    assert!(answer(first).await.is_hit());
    for (request, n) in others.into_iter().zip((1..60).chain(1..60)) {
        let answer = answer(request).await;
        assert_eq!(
            answer.is_hit(),
            n % 50 < 40,
            "{n}: {}",
            answer.cache_status()
        );
    }
    // 118 lookups, at most 64 in a statement; each of the two asks for 50 keys, for each once
    assert_eq!(stage.asked().await, (2, 100));
}

#[tokio::test]
async fn a_statement_answers_nobody_who_came_after_it_was_sent() {
    for connections in [1, 2] {
        let stage = Stage::with(1, connections).await;
        stage.mark("slow", "/0").await;
        let holder = stage.stop_slow_ones().await;
        let before = stage.request("/0");
        stage.stopped(1).await;
        stage.cache.invalidate([THINGS]).await.unwrap();
        let after = stage.requests(["/0".to_owned()]).await;
        go_on(holder).await;
        // it came before the change
        assert!(answer(before).await.is_hit());
        for request in after {
            let answer = answer(request).await;
            assert!(!answer.is_hit(), "{}", answer.cache_status());
        }
    }
}

#[tokio::test]
async fn one_that_takes_long_holds_up_nobody_else() {
    let stage = Stage::with(20, 2).await;
    stage.mark("slow", "/0").await;
    let holder = stage.stop_slow_ones().await;
    let slow = stage.request("/0");
    stage.stopped(1).await;
    for _ in 0..3 {
        for request in stage.requests((1..20).map(|n| format!("/{n}"))).await {
            assert!(answer(request).await.is_hit());
        }
    }
    assert!(!slow.is_finished());
    go_on(holder).await;
    assert!(answer(slow).await.is_hit());
}

#[tokio::test]
async fn one_that_fails_fails_nobody_else() {
    let stage = Stage::with(20, 1).await;
    stage.mark("slow", "/0").await;
    stage.mark("bad", "/7").await;
    for _ in 0..8 {
        let holder = stage.stop_slow_ones().await;
        let first = stage.request("/0");
        stage.stopped(1).await;
        let others = stage.requests((1..20).map(|n| format!("/{n}"))).await;
        go_on(holder).await;
        assert!(answer(first).await.is_hit());
        for (request, n) in others.into_iter().zip(1..) {
            let answer = answer(request).await;
            assert_eq!(answer.is_hit(), n != 7, "{n}: {}", answer.cache_status());
        }
    }
    assert_eq!(stage.cache.stats().errors, 8);
}

#[tokio::test]
async fn those_who_gave_up_are_not_asked_for() {
    let stage = Stage::with(20, 1).await;
    stage.mark("slow", "/0").await;
    let holder = stage.stop_slow_ones().await;
    let first = stage.request("/0");
    stage.stopped(1).await;
    for request in stage.requests((1..20).map(|n| format!("/{n}"))).await {
        request.abort();
        assert!(request.await.unwrap_err().is_cancelled());
    }
    let last = stage.requests(["/1".to_owned()]).await;
    stage.asked().await;
    go_on(holder).await;
    assert!(answer(first).await.is_hit());
    for request in last {
        assert!(answer(request).await.is_hit());
    }
    assert_eq!(stage.asked().await, (1, 1));
}

async fn with_one_connection() -> (Pool<PostgresConnectionManager<NoTls>>, PgCache) {
    let pool = test_support::database().await.pool(1);
    let cache = PgCache::builder(pool.clone())
        .lookup_deadline(HANG)
        .memory(0)
        .lease_wait(Duration::ZERO)
        .cleanup_interval(Duration::ZERO)
        .build()
        .unwrap();
    (pool, cache)
}

/// A pool of one connection, which the cache would never give back if it waited for the end of its work.
#[tokio::test]
async fn handlers_get_the_only_connection_between_lookups() {
    let (pool, cache) = with_one_connection().await;
    let handler = move || {
        let pool = pool.clone();
        async move {
            let connection = pool.get().await.unwrap();
            let row = connection.query_one("SELECT 'x'", &[]).await.unwrap();
            row.get::<_, String>(0)
        }
    };
    let app = Router::new()
        .fallback(get(handler))
        .layer(cache.layer().ttl(MINUTE).domain(THINGS));
    fetch(&app, "/hot").await;
    cache.settled().await;
    let stop = Arc::new(AtomicBool::new(false));
    let load: Vec<_> = (0..8)
        .map(|_| {
            let (app, stop) = (app.clone(), stop.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    assert!(fetch(&app, "/hot").await.is_hit());
                }
            })
        })
        .collect();
    for n in 0..20 {
        let answer = timeout(HANG, fetch(&app, &format!("/{n}"))).await;
        assert_eq!(answer.expect("an answer in time").text(), "x");
    }
    stop.store(true, Ordering::SeqCst);
    for client in load {
        client.await.unwrap();
    }
    timeout(HANG, cache.settled()).await.expect("settled");
}

/// Whoever waits for the only connection, or did until it was given up, does not keep the lookups from it.
#[tokio::test]
async fn lookups_get_their_turn_where_somebody_always_wants_the_only_connection() {
    let (pool, cache) = with_one_connection().await;
    let app = app(&cache);
    fetch(&app, "/hot").await;
    cache.settled().await;
    let hits = || async {
        for _ in 0..50 {
            let answer = timeout(HANG, fetch(&app, "/hot")).await;
            assert!(answer.expect("an answer in time").is_hit());
        }
    };
    let held = pool.get().await.unwrap();
    assert!(
        timeout(Duration::from_millis(20), pool.get())
            .await
            .is_err()
    );
    drop(held);
    hits().await;

    let stop = Arc::new(AtomicBool::new(false));
    let handlers: Vec<_> = (0..4)
        .map(|_| {
            let (pool, stop) = (pool.clone(), stop.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    let connection = pool.get().await.unwrap();
                    connection.batch_execute("SELECT 1").await.unwrap();
                    drop(connection);
                    // the pool gives it to whoever comes first
                    yield_now().await;
                }
            })
        })
        .collect();
    hits().await;
    stop.store(true, Ordering::SeqCst);
    for handler in handlers {
        handler.await.unwrap();
    }
}

#[test]
fn a_runtime_that_ends_in_the_middle_leaves_the_cache_usable() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let lasting = runtime();
    let database = lasting.block_on(test_support::database());
    let cache = tower_pgcache::PgCacheBuilder::<PgCache>::connecting(
        database.config(),
        tower_pgcache::tokio_postgres::NoTls,
    )
    .lookup_deadline(HANG)
    .memory(0)
    .lease_wait(Duration::ZERO)
    .lookup_connections(1)
    .build()
    .unwrap();
    let app = app(&cache);
    let ending = runtime();
    ending.block_on(async {
        fetch(&app, "/0").await;
        cache.settled().await;
        let requests: Vec<_> = (0..10)
            .map(|_| {
                let app = app.clone();
                tokio::spawn(async move { fetch(&app, "/0").await })
            })
            .collect();
        // they have asked, and nobody has answered yet
        yield_now().await;
        drop(requests);
    });
    drop(ending);
    lasting.block_on(async {
        let hit = async { while !fetch(&app, "/0").await.is_hit() {} };
        timeout(HANG, hit).await.expect("a hit");
    });
}

/// Whatever the statistics say: here, that the tables are empty.
#[tokio::test]
async fn lookups_read_by_index() {
    let database = test_support::database().await;
    let admin = database.connect().await;
    let version = "SELECT current_setting('server_version_num')::int";
    if admin
        .query_one(version, &[])
        .await
        .unwrap()
        .get::<_, i32>(0)
        < 150_000
    {
        return; // its statistics come when they like
    }
    let others_left = async || {
        let sql = "SELECT count(*) FROM pg_stat_activity
                    WHERE datname = current_database() AND pid <> pg_backend_pid()";
        while admin.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) > 0 {}
    };
    // a session reports what it read at its end, at the latest
    let scans = async || -> (i64, i64) {
        timeout(HANG, others_left())
            .await
            .expect("no other session");
        let sql = "SELECT sum(seq_scan)::bigint, sum(idx_scan)::bigint FROM pg_stat_user_tables
                    WHERE schemaname = 'pgcache' AND relname IN ('entry', 'changed', 'invalidation')";
        let row = admin.query_one(sql, &[]).await.unwrap();
        (row.get(0), row.get(1))
    };
    let cache = || {
        PgCache::builder(database.pool(4))
            .lookup_deadline(HANG)
            .memory(0)
            .lease_wait(Duration::ZERO)
            .cleanup_interval(Duration::ZERO)
            .build()
            .unwrap()
    };
    let first = cache();
    first.ready().await.unwrap();
    let empty = "ANALYZE pgcache.entry; ANALYZE pgcache.changed; ANALYZE pgcache.invalidation;
                 ALTER TABLE pgcache.entry SET (autovacuum_enabled = off);
                 ALTER TABLE pgcache.changed SET (autovacuum_enabled = off);
                 ALTER TABLE pgcache.invalidation SET (autovacuum_enabled = off)";
    admin.batch_execute(empty).await.unwrap();
    let service = app(&first);
    for n in 0..20 {
        fetch(&service, &format!("/{n}")).await;
    }
    first.settled().await;
    drop((service, first));
    let many = "INSERT INTO pgcache.changed SELECT n, ARRAY[3::text::xid8] FROM generate_series(1, 5000) n;
                INSERT INTO pgcache.invalidation (xid, keys, kind, name)
                SELECT n::text::xid8, ARRAY[n], 'd', 'other' FROM generate_series(3, 5000) n";
    timeout(HANG, others_left())
        .await
        .expect("no other session");
    copies_of_an_entry(&admin, 5000, "'path', e.path").await;
    admin.batch_execute(many).await.unwrap();
    admin
        .batch_execute("SELECT pg_stat_force_next_flush()")
        .await
        .unwrap();
    let before = scans().await;
    let second = cache();
    let service = app(&second);
    for _ in 0..10 {
        let all = (0..20).map(|n| {
            let service = service.clone();
            tokio::spawn(async move { fetch(&service, &format!("/{n}")).await })
        });
        for request in all.collect::<Vec<_>>() {
            assert!(answer(request).await.is_hit());
        }
    }
    drop((service, second));
    let after = scans().await;
    assert_eq!(after.0, before.0, "sequential scans");
    assert!(after.1 >= before.1 + 20, "{before:?} {after:?}");
}
