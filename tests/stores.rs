//! Many answers are stored by one statement: each with what is its own.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::future::join_all;
use test_support::Database;
use test_support::http::{Answer, get as fetch, send};
use tokio::time::timeout;
use tokio_postgres::Client;
use tower_pgcache::{CacheScope, Domain, PgCache, PgCacheBuilder, domain, test};

const MINUTE: Duration = Duration::from_secs(60);
/// Nothing here takes long; what takes as long as this hangs.
const HANG: Duration = Duration::from_secs(30);

const ITEM: Domain = domain!("item");

/// How many of them, and among how many entities.
const ANSWERS: u64 = 150;
const ENTITIES: u64 = 7;

/// Counts the statements that insert entries.
const SPY: &str = "
    CREATE SEQUENCE statements;
    CREATE FUNCTION counted() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM nextval('public.statements');
        RETURN NULL;
    END $$;
    CREATE TRIGGER counted AFTER INSERT ON pgcache.entry FOR EACH STATEMENT EXECUTE FUNCTION public.counted()";

fn cache(database: &Database) -> PgCacheBuilder<PgCache> {
    PgCache::builder(database.pool(4))
        .lookup_deadline(HANG)
        .store_deadline(HANG)
        .memory(0)
        .cleanup_interval(Duration::ZERO)
}

/// On which entities the answer `n` depends: none, one or several.
fn entities(n: u64) -> impl Iterator<Item = u64> {
    (0..n % 4).map(move |i| (n + i) % ENTITIES)
}

/// Answers that differ in length, fields and dependencies, and some that vary.
async fn item(scope: CacheScope, Path(n): Path<u64>, headers: HeaderMap, calls: u64) -> Response {
    entities(n).for_each(|entity| scope.depends_on(ITEM.entity(entity)));
    let text = format!("{n} {calls} ").repeat(usize::try_from(n).unwrap() + 1);
    let mut response = text.into_response();
    if n % 10 == 0 {
        let languages = headers.get_all("accept-language").iter().count();
        let vary = if languages == 0 {
            "accept"
        } else {
            "accept-language"
        };
        response.headers_mut().insert("vary", vary.parse().unwrap());
    }
    if n % 3 == 0 {
        let etag = format!("\"{n}\"");
        response.headers_mut().insert("etag", etag.parse().unwrap());
    }
    response
}

/// Every row takes a while, so that the statements that store many of them meet.
const SLOW: &str = "
    CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_sleep(0.001);
        RETURN NEW;
    END $$;
    CREATE TRIGGER slow BEFORE INSERT ON pgcache.entry FOR EACH ROW EXECUTE FUNCTION public.slow()";

struct Stage {
    app: Router,
    cache: PgCache,
    admin: Client,
}

impl Stage {
    async fn new() -> Self {
        let database = test_support::database().await;
        let cache = cache(&database).build().unwrap();
        cache.ready().await.unwrap();
        let calls = Arc::new(AtomicU64::new(0));
        let handler = move |scope, path, headers| {
            item(scope, path, headers, calls.fetch_add(1, Ordering::SeqCst))
        };
        let app = Router::new()
            .route("/{n}", get(handler))
            .layer(cache.layer().ttl(MINUTE));
        let admin = database.connect().await;
        admin.batch_execute(SPY).await.unwrap();
        Self { app, cache, admin }
    }

    async fn ask_for_all(&self) -> Vec<Answer> {
        let paths = (0..ANSWERS).map(|n| format!("/{n}"));
        let answers = paths.map(|path| async move { fetch(&self.app, &path).await });
        let answers = join_all(answers).await;
        self.cache.settled().await;
        answers
    }

    /// How many statements there were that stored something.
    async fn statements(&self) -> i64 {
        let sql = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM statements";
        self.admin.query_one(sql, &[]).await.unwrap().get(0)
    }
}

#[tokio::test]
async fn each_of_many_has_its_own_body_fields_and_dependencies() {
    let stage = Stage::new().await;
    let mut stored = stage.ask_for_all().await;
    // as many as there are changes between answers and what leads to variants, and a few for the others
    let statements = stage.statements().await;
    assert!((1..60).contains(&statements), "{statements}");
    for changed in 0..ENTITIES {
        let again = stage.ask_for_all().await;
        for (n, (now, before)) in again.iter().zip(&stored).enumerate() {
            assert!(now.is_hit(), "{n}: {}", now.cache_status());
            assert_eq!(now.body, before.body);
            for field in ["etag", "vary", "content-type"] {
                assert_eq!(now.headers.get(field), before.headers.get(field), "{n}");
            }
        }
        stage
            .cache
            .invalidate([ITEM.entity(changed)])
            .await
            .unwrap();
        let after = stage.ask_for_all().await;
        for (n, now) in (0..).zip(&after) {
            let depends = entities(n).any(|entity| entity == changed);
            assert_eq!(now.is_hit(), !depends, "{n}: {}", now.cache_status());
        }
        stored = after;
    }
}

/// Several instances that store the same answers at once, in whatever order they were asked for, do not block each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn instances_that_store_the_same_at_once_do_not_deadlock() {
    let database = test_support::database().await;
    let mut caches = Vec::new();
    let mut apps = Vec::new();
    for _ in 0..3 {
        let cache = cache(&database).lease_wait(Duration::ZERO).build().unwrap();
        cache.ready().await.unwrap();
        let handler = |scope, path, headers| item(scope, path, headers, 0);
        let layer = cache.layer().ttl(MINUTE);
        apps.push(Router::new().route("/{n}", get(handler)).layer(layer));
        caches.push(cache);
    }
    let mut admin = database.connect().await;
    admin.batch_execute(SLOW).await.unwrap();
    for round in 0..5_u64 {
        caches[0].clear().await.unwrap();
        // whoever writes has to wait, and all of them go on at once
        let lock = admin.transaction().await.unwrap();
        let sql = "LOCK TABLE pgcache.entry IN SHARE MODE";
        lock.batch_execute(sql).await.unwrap();
        let asked = apps.iter().zip(0_u64..).map(|(app, instance)| async move {
            for i in 0..30 {
                // in three orders; and the variants are not the same, so that markers lie between the entries
                let n = [i, 29 - i, i * 7 % 30][usize::try_from(instance).unwrap()];
                let request = http::Request::get(format!("/{n}"))
                    .header("accept-language", format!("{}", (round + instance) % 2))
                    .body(axum::body::Body::empty());
                assert_eq!(send(app, request.unwrap()).await.status, 200);
            }
        });
        join_all(asked).await;
        lock.rollback().await.unwrap();
        for cache in &caches {
            cache.settled().await;
        }
    }
    for cache in &caches {
        let stats = cache.stats();
        assert_eq!(stats.errors, 0, "{stats:?}");
        assert_eq!((stats.hits, stats.misses), (0, 5 * 30));
        assert!(stats.stored > 0);
    }
}

/// An instance whose answers count how often its handler was called, and depend on one entity each.
async fn counting(database: &Database, name: &'static str) -> (Router, PgCache) {
    let cache = cache(database).lease_wait(Duration::ZERO).build().unwrap();
    cache.ready().await.unwrap();
    let layer = cache.layer().ttl(MINUTE).domain(ITEM);
    (
        Router::new().fallback(move || ready(name)).layer(layer),
        cache,
    )
}

/// The statement that waits has a snapshot from before what others store meanwhile.
#[tokio::test]
async fn what_was_stored_while_a_batch_waited_is_not_replaced_by_an_older_answer() {
    let database = test_support::database().await;
    let (slow, slow_cache) = counting(&database, "older").await;
    let (fast, fast_cache) = counting(&database, "newer").await;
    let admin = database.connect().await;
    for path in ["/first", "/a", "/b"] {
        fetch(&slow, path).await;
    }
    slow_cache.settled().await;
    let sql = "SELECT path FROM pgcache.entry WHERE path <> '/first' ORDER BY key";
    let rows = admin.query(sql, &[]).await.unwrap();
    let [before, after]: [&str; 2] = [rows[0].get(0), rows[1].get(0)];

    // a batch with both of them, which has to wait for the one that comes first
    slow_cache.invalidate([ITEM]).await.unwrap();
    let mut table = database.connect().await;
    let table = table.transaction().await.unwrap();
    let sql = "LOCK TABLE pgcache.entry IN SHARE MODE";
    table.batch_execute(sql).await.unwrap();
    for path in ["/first", "/a", "/b"] {
        assert!(!fetch(&slow, path).await.is_hit());
    }
    let mut row = database.connect().await;
    let row = row.transaction().await.unwrap();
    let sql = "SELECT FROM pgcache.entry WHERE path = $1 FOR UPDATE";
    row.query_one(sql, &[&before]).await.unwrap();
    table.rollback().await.unwrap();
    let waits = "SELECT count(*) FROM pg_stat_activity
                  WHERE datname = current_database() AND wait_event_type = 'Lock' AND wait_event = 'transactionid'";
    let waiting =
        async { while admin.query_one(waits, &[]).await.unwrap().get::<_, i64>(0) == 0 {} };
    timeout(HANG, waiting).await.expect("a batch that waits");

    fast_cache.invalidate([ITEM]).await.unwrap();
    assert_eq!(fetch(&fast, after).await.text(), "newer");
    fast_cache.settled().await;
    row.rollback().await.unwrap();
    slow_cache.settled().await;
    for app in [&fast, &slow] {
        let answer = fetch(app, after).await;
        assert!(answer.is_hit(), "{}", answer.cache_status());
        assert_eq!(answer.text(), "newer");
    }
}

/// What a 304 is about is found by its key, whatever joins somebody has forbidden for his own queries.
#[tokio::test]
async fn confirmations_do_not_read_the_whole_table() {
    const STORED: i64 = 300;
    const CONFIRMED: i64 = 10;
    let database = test_support::database().await;
    let admin = database.connect().await;
    let version = "SELECT current_setting('server_version_num')::integer";
    let version: i32 = admin.query_one(version, &[]).await.unwrap().get(0);
    if version < 150_000 {
        return; // its statistics come when they like
    }
    let setting = "DO $$ BEGIN
        EXECUTE format('ALTER DATABASE %I SET enable_nestloop = off', current_database());
    END $$";
    admin.batch_execute(setting).await.unwrap();
    let read = async |confirmed: i64| -> i64 {
        let cache = cache(&database).build().unwrap();
        cache.ready().await.unwrap();
        let handler = |headers: HeaderMap| async move {
            let fields = [("etag", "\"1\"")];
            if headers.contains_key("if-none-match") {
                (StatusCode::NOT_MODIFIED, fields, "")
            } else {
                (StatusCode::OK, fields, "x")
            }
        };
        let layer = cache.layer().ttl(MINUTE);
        let app = Router::new().fallback(get(handler)).layer(layer);
        for n in 0..STORED {
            fetch(&app, &format!("/{n}")).await;
        }
        cache.settled().await;
        for n in 0..confirmed {
            let path = format!("/{n}");
            test::expire(&cache, &path.parse().unwrap()).await.unwrap();
            let answer = fetch(&app, &path).await;
            assert!(answer.cache_status().contains("fwd-status=304; stored"));
        }
        cache.close().await;
        drop((app, cache));
        // a server process tells what it has read before it is gone
        let others = "SELECT count(*) FROM pg_stat_activity
                       WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'";
        let ended =
            async { while admin.query_one(others, &[]).await.unwrap().get::<_, i64>(0) > 0 {} };
        timeout(HANG, ended)
            .await
            .expect("the cache keeps a connection");
        let rows = "SELECT seq_tup_read FROM pg_stat_user_tables WHERE schemaname = 'pgcache' AND relname = 'entry'";
        admin.query_one(rows, &[]).await.unwrap().get(0)
    };
    // to expire them reads the table, and so may whoever counts what is stored
    let without = read(0).await;
    let with = read(CONFIRMED).await - without;
    assert!(
        with < CONFIRMED * STORED * 3 / 2,
        "{with} rows beside {without}"
    );
}
