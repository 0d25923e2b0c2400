//! Creation, versions and names of the schema; what a crash, a copy and a dump do to a cache; server defaults.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use futures_util::future::join_all;
use test_support::http::get as fetch;
use test_support::{Database, Server};
use tokio::sync::Semaphore;
use tokio_postgres::Client;
use tower_pgcache::bb8::Pool;
use tower_pgcache::bb8_postgres::PostgresConnectionManager;
use tower_pgcache::tokio_postgres::NoTls;
use tower_pgcache::{Domain, ErrorKind, PgCache, PgCacheBuilder, domain};

const MINUTE: Duration = Duration::from_secs(60);
const PRODUCT: Domain = domain!("product");

/// Deadlines that a busy machine does not reach.
fn patient(pool: Pool<PostgresConnectionManager<NoTls>>) -> PgCacheBuilder {
    PgCache::builder(pool)
        .lookup_deadline(MINUTE)
        .store_deadline(MINUTE)
}

fn on(database: &Database) -> PgCache {
    patient(database.pool(4)).build().unwrap()
}

fn app(cache: &PgCache) -> Router {
    let layer = cache.layer().ttl(MINUTE).domain(PRODUCT);
    Router::new().route("/{page}", get(|| async { "answer" }).layer(layer))
}

/// Asks twice; true if the second answer comes from the cache.
async fn works(cache: &PgCache, path: &str) -> bool {
    let app = app(cache);
    fetch(&app, path).await;
    cache.settled().await;
    fetch(&app, path).await.is_hit()
}

async fn is_hit(cache: &PgCache, path: &str) -> bool {
    fetch(&app(cache), path).await.is_hit()
}

async fn text(sql: &Client, query: &str) -> String {
    let row = sql.query_one(query, &[]).await.unwrap();
    row.get::<_, Option<String>>(0).unwrap_or_default()
}

async fn epoch(sql: &Client) -> String {
    text(sql, "SELECT id::text FROM pgcache.epoch").await
}

async fn start() -> Server {
    let server = tokio::task::spawn_blocking(Server::start);
    server.await.unwrap().unwrap()
}

#[tokio::test]
async fn fifty_instances_at_once_make_one_schema() {
    let database = test_support::database().await;
    let caches: Vec<PgCache> = (0..50)
        .map(|i| patient(database.pool(1 + i % 2)).build().unwrap())
        .collect();
    join_all(caches.iter().map(async |cache| {
        let app = app(cache);
        let (answer, ready) = tokio::join!(fetch(&app, "/a"), cache.ready());
        ready.unwrap();
        assert_eq!(answer.text(), "answer");
        assert!(
            !answer.cache_status().contains("detail=store"),
            "{answer:?}"
        );
        cache.settled().await;
    }))
    .await;
    join_all(
        caches
            .iter()
            .map(async |cache| assert!(is_hit(cache, "/a").await)),
    )
    .await;
    let sql = database.connect().await;
    let counts = "SELECT (SELECT count(*) FROM pgcache.migration) || ' ' || (SELECT count(*) FROM pgcache.epoch)";
    assert_eq!(text(&sql, counts).await, "1 1");
}

#[tokio::test]
async fn without_auto_migrate_the_owner_makes_the_schema_and_grants_are_enough() {
    // roles belong to a server, and have to get in
    let server = start().await;
    let database = server.database().await;
    let owner = database.connect().await;
    let role = format!("{}_app", database.name());
    owner
        .batch_execute(&format!("CREATE ROLE {role} LOGIN"))
        .await
        .unwrap();
    let mut config = database.config();
    config.user(&role);
    let pool = Pool::builder()
        .max_size(4)
        .build_unchecked(PostgresConnectionManager::new(config, NoTls));
    let cache = patient(pool).auto_migrate(false).build().unwrap();

    let error = cache.ready().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Schema);
    assert!(error.to_string().contains("migrate()"), "{error}");
    let answer = fetch(&app(&cache), "/a").await;
    assert_eq!(answer.text(), "answer");
    assert_eq!(
        answer.cache_status(),
        "fwd=bypass; fwd-status=200; detail=store"
    );

    on(&database).migrate().await.unwrap();
    owner
        .batch_execute(&format!(
            "GRANT USAGE ON SCHEMA pgcache TO {role};
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA pgcache TO {role};
             GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgcache TO {role}"
        ))
        .await
        .unwrap();
    cache.ready().await.unwrap();
    assert!(works(&cache, "/a").await);
    cache.cleanup().await.unwrap();
    cache.clear().await.unwrap();
    assert!(!is_hit(&cache, "/a").await);
    cache.close().await;
}

#[tokio::test]
async fn a_role_that_owns_an_empty_schema_needs_no_right_to_create_one() {
    // roles belong to a server, and have to get in
    let server = start().await;
    let database = server.database().await;
    let role = format!("{}_owner", database.name());
    let sql = database.connect().await;
    sql.batch_execute(&format!(
        "CREATE ROLE {role} LOGIN; CREATE SCHEMA pgcache AUTHORIZATION {role}"
    ))
    .await
    .unwrap();
    let mut config = database.config();
    config.user(&role);
    let pool = Pool::builder()
        .max_size(2)
        .build_unchecked(PostgresConnectionManager::new(config, NoTls));
    let may =
        format!("SELECT has_database_privilege('{role}', current_database(), 'CREATE')::text");
    assert_eq!(text(&sql, &may).await, "false");
    assert!(works(&patient(pool).build().unwrap(), "/a").await);
}

/// Everything that a migration could have changed.
const CATALOG: &str = "
    SELECT string_agg(line, ';' ORDER BY line)
      FROM (SELECT format('%s %s %s', c.relname, c.relkind, c.xmin) FROM pg_class c
             WHERE c.relnamespace = 'pgcache'::regnamespace
            UNION ALL
            SELECT format('%s %s', p.proname, p.xmin) FROM pg_proc p WHERE p.pronamespace = 'pgcache'::regnamespace
            UNION ALL
            SELECT format('%s %s', m.version, m.xmin) FROM pgcache.migration m
            UNION ALL
            SELECT format('%s %s', e.id, e.xmin) FROM pgcache.epoch e) AS t (line)";

#[tokio::test]
async fn a_schema_of_another_version_is_left_as_it_is() {
    for (change, word) in [
        ("INSERT INTO pgcache.migration VALUES (1000, 'x')", "newer"),
        ("UPDATE pgcache.migration SET version = -1", "unknown"),
        ("DELETE FROM pgcache.migration", "unknown"),
    ] {
        let database = test_support::database().await;
        on(&database).ready().await.unwrap();
        let sql = database.connect().await;
        sql.batch_execute(change).await.unwrap();
        let before = text(&sql, CATALOG).await;

        let cache = on(&database);
        for error in [cache.ready().await, cache.migrate().await] {
            let error = error.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Schema, "{change}: {error}");
            assert!(error.to_string().contains(word), "{change}: {error}");
        }
        let answer = fetch(&app(&cache), "/a").await;
        assert_eq!(
            answer.cache_status(),
            "fwd=bypass; fwd-status=200; detail=store"
        );
        cache.settled().await;
        assert_eq!(text(&sql, CATALOG).await, before, "{change}");
    }
}

#[tokio::test]
async fn schemas_side_by_side_share_nothing() {
    let database = test_support::database().await;
    // reserved words among them
    let caches: Vec<PgCache> = ["pgcache", "other_name", "user", "order", "_1"]
        .iter()
        .map(|name| patient(database.pool(2)).schema(*name).build().unwrap())
        .collect();
    join_all(
        caches
            .iter()
            .map(async |cache| cache.ready().await.unwrap()),
    )
    .await;
    for cache in &caches {
        assert!(!is_hit(cache, "/a").await);
        cache.settled().await;
        assert!(is_hit(cache, "/a").await);
    }
    caches[2].clear().await.unwrap();
    caches[3].invalidate([PRODUCT]).await.unwrap();
    let sql = database.connect().await;
    sql.batch_execute("SELECT other_name.invalidate('product')")
        .await
        .unwrap();
    let mut hits = Vec::new();
    for cache in &caches {
        hits.push(is_hit(cache, "/a").await);
    }
    assert_eq!(hits, [true, false, false, false, true]);

    let long = "x".repeat(64);
    for bad in [
        "", "1a", "Pgcache", "a-b", "a b", "a\"b", "a.b", "pg_cache", "ä", &long,
    ] {
        let error = PgCache::builder(database.pool(1))
            .schema(bad)
            .build()
            .unwrap_err();
        assert!(error.to_string().contains("schema("), "{error}");
    }
}

/// The persistence of every table.
async fn persistence(sql: &Client) -> String {
    text(
        sql,
        "SELECT string_agg(relname || ' ' || relpersistence::text, ', ' ORDER BY relname) FROM pg_class
          WHERE relnamespace = 'pgcache'::regnamespace AND relkind = 'r'",
    )
    .await
}

/// An answer whose handler began before, and goes on after.
struct Held {
    began: Arc<Semaphore>,
    go: Arc<Semaphore>,
    answer: tokio::task::JoinHandle<test_support::http::Answer>,
}

async fn hold(cache: &PgCache) -> Held {
    let (began, go) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (tell, wait) = (began.clone(), go.clone());
    let handler = get(async move || {
        tell.add_permits(1);
        wait.acquire().await.unwrap().forget();
        "old answer"
    });
    let app = Router::new().route("/held", handler.layer(cache.layer().ttl(MINUTE)));
    let answer = tokio::spawn(async move { fetch(&app, "/held").await });
    began.acquire().await.unwrap().forget();
    Held { began, go, answer }
}

impl Held {
    async fn finish(self, cache: &PgCache) {
        assert_eq!(self.began.available_permits(), 0);
        self.go.add_permits(1);
        assert_eq!(self.answer.await.unwrap().text(), "old answer");
        cache.settled().await;
        assert!(
            !is_hit(cache, "/held").await,
            "a fill from before the crash was stored"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_empties_the_cache_and_it_works_again_by_itself() {
    let mut server = start().await;
    let database = server.database().await;
    let cache = on(&database);
    assert!(works(&cache, "/a").await);
    let sql = database.connect().await;
    assert_eq!(
        persistence(&sql).await,
        "cascade_closure p, cascade_rule p, change_count u, changed u, entry u, epoch u, housekeeping u, incarnation u, invalidation u, lease u, migration p, room u, walk u, watched p"
    );
    let before = epoch(&sql).await;
    let held = hold(&cache).await;
    server.kill9().unwrap();
    server.launch().unwrap();

    // one request finds the epoch missing, the next one renews it
    let app = app(&cache);
    let mut answers = Vec::new();
    for _ in 0..10 {
        let answer = fetch(&app, "/a").await;
        cache.settled().await;
        answers.push(answer.cache_status().to_owned());
        if answer.is_hit() {
            break;
        }
    }
    assert!(
        answers.len() > 1 && answers.last().unwrap().starts_with("hit"),
        "{answers:?}"
    );
    assert_ne!(epoch(&database.connect().await).await, before);
    held.finish(&cache).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_durable_cache_survives_a_crash_and_fills_that_ran_do_not() {
    let mut server = start().await;
    let database = server.database().await;
    let cache = patient(database.pool(4)).durable(true).build().unwrap();
    assert!(works(&cache, "/a").await && works(&cache, "/b").await);
    let sql = database.connect().await;
    assert_eq!(
        persistence(&sql).await,
        "cascade_closure p, cascade_rule p, change_count p, changed p, entry p, epoch p, housekeeping u, incarnation u, invalidation p, lease u, migration p, room p, walk p, watched p"
    );
    let before = epoch(&sql).await;
    let held = hold(&cache).await;
    sql.batch_execute("SELECT pgcache.invalidate('price')")
        .await
        .unwrap();
    server.kill9().unwrap();
    server.launch().unwrap();

    cache.ready().await.unwrap();
    assert!(is_hit(&cache, "/a").await);
    let sql = database.connect().await;
    assert_eq!(epoch(&sql).await, before);
    sql.batch_execute("SELECT pgcache.invalidate('product')")
        .await
        .unwrap();
    assert!(!is_hit(&cache, "/b").await);
    held.finish(&cache).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_the_database_begins_with_an_empty_cache() {
    let server = start().await;
    let database = server.database().await;
    assert!(works(&on(&database), "/a").await);
    let mut config = database.config();
    config.dbname("postgres");
    let (admin, connection) = config.connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    // nobody may be connected to the template; CREATE DATABASE waits for those who are leaving
    admin
        .execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1",
            &[&database.name()],
        )
        .await
        .unwrap();
    admin
        .batch_execute(&format!(
            "CREATE DATABASE copy TEMPLATE {}",
            database.name()
        ))
        .await
        .unwrap();
    config.dbname("copy");
    let pool = Pool::builder().build_unchecked(PostgresConnectionManager::new(config, NoTls));
    let copy = patient(pool).build().unwrap();
    assert!(works(&on(&database), "/b").await);
    assert!(!is_hit(&copy, "/a").await);
    copy.settled().await;
    assert!(is_hit(&copy, "/a").await);
    assert!(is_hit(&on(&database), "/a").await, "the original goes on");
}

/// Through pipes, as one does.
fn restore(from: &Server, source: &str, into: &Server, target: &str) {
    let dump = from.command("pg_dump").arg(source).output().unwrap();
    assert!(dump.status.success(), "{dump:?}");
    let mut psql: Command = into.command("psql");
    let mut psql = psql
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", target])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    psql.stdin.take().unwrap().write_all(&dump.stdout).unwrap();
    assert!(psql.wait().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_dump_begins_with_an_empty_cache() {
    let (server, elsewhere) = (start().await, start().await);
    let database = server.database().await;
    if dump_is_older_than_the_server(&server, &database).await {
        return; // it refuses
    }
    let cache = patient(database.pool(4)).durable(true).build().unwrap();
    assert!(works(&cache, "/a").await);
    let sql = database.connect().await;
    sql.batch_execute("CREATE TABLE product (id int PRIMARY KEY)")
        .await
        .unwrap();
    cache.watch("product").await.unwrap();
    cache.invalidate([domain!("price")]).await.unwrap();
    cache.cleanup().await.unwrap();
    for target in [&server, &elsewhere] {
        let restored = target.database().await;
        restore(&server, database.name(), target, restored.name());
        let sql = restored.connect().await;
        let count = text(&sql, "SELECT count(*)::text FROM pgcache.entry").await;
        assert_eq!(count, "1", "the dump has the entry");
        let cache = on(&restored);
        assert!(!is_hit(&cache, "/a").await);
        cache.settled().await;
        assert!(is_hit(&cache, "/a").await);
        assert_eq!(watched(&sql).await, "enabled");
        assert!(notices_changes(&sql).await, "the triggers came with it");
    }
    // into the same database: only the tables are others
    let dump = server
        .command("pg_dump")
        .args(["-n", "pgcache", database.name()])
        .output();
    sql.batch_execute("DROP SCHEMA pgcache CASCADE")
        .await
        .unwrap();
    let dump = String::from_utf8(dump.unwrap().stdout).unwrap();
    let mut psql = server.command("psql");
    let mut psql = psql
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database.name()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    psql.stdin
        .take()
        .unwrap()
        .write_all(dump.as_bytes())
        .unwrap();
    assert!(psql.wait().unwrap().success());
    let cache = on(&database);
    assert!(!is_hit(&cache, "/a").await);
    // the triggers are part of the table, which was not restored
    assert_eq!(watched(&sql).await, "missing");
    cache.watch("product").await.unwrap();
    assert_eq!(watched(&sql).await, "enabled");
    assert!(notices_changes(&sql).await);
}

async fn watched(sql: &Client) -> String {
    text(sql, "SELECT triggers FROM pgcache.watched_tables").await
}

/// Whether writing to the watched table invalidates.
async fn notices_changes(sql: &Client) -> bool {
    let changes = "SELECT count(*)::text FROM pgcache.recent_invalidations WHERE name = 'product'";
    let before = text(sql, changes).await;
    let write = "INSERT INTO product SELECT coalesce(max(id), 0) + 1 FROM product";
    sql.batch_execute(write).await.unwrap();
    text(sql, changes).await != before
}

async fn dump_is_older_than_the_server(server: &Server, database: &Database) -> bool {
    let version = server.command("pg_dump").arg("--version").output().unwrap();
    let version = String::from_utf8(version.stdout).unwrap();
    let digits = version.trim_start_matches(|c: char| !c.is_ascii_digit());
    let dump: u32 = digits.split('.').next().unwrap().parse().unwrap();
    let sql = database.connect().await;
    let number = text(&sql, "SHOW server_version_num").await;
    dump < number.parse::<u32>().unwrap() / 10_000
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_was_prepared_before_a_crash_holds_the_cache_up_until_it_is_decided() {
    for end in ["COMMIT", "ROLLBACK"] {
        let mut server = start().await;
        let database = server.database().await;
        let cache = on(&database);
        assert!(works(&cache, "/a").await);
        let sql = database.connect().await;
        sql.batch_execute("BEGIN; SELECT pgcache.invalidate('product'); PREPARE TRANSACTION 'p'")
            .await
            .unwrap();
        assert!(is_hit(&cache, "/a").await);
        server.kill9().unwrap();
        server.launch().unwrap();

        for _ in 0..3 {
            let error = cache.ready().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable);
            assert!(error.to_string().contains("pg_prepared_xacts"), "{error}");
            let answer = fetch(&app(&cache), "/a").await;
            assert_eq!(
                answer.cache_status(),
                "fwd=bypass; fwd-status=200; detail=store"
            );
        }
        let sql = database.connect().await;
        sql.batch_execute(&format!("{end} PREPARED 'p'"))
            .await
            .unwrap();
        cache.ready().await.unwrap();
        assert!(!is_hit(&cache, "/a").await, "computed before {end}");
        cache.settled().await;
        assert!(is_hit(&cache, "/a").await);
    }
}

#[tokio::test]
async fn server_defaults_change_nothing() {
    for setting in [
        "default_transaction_isolation = 'serializable'",
        "default_transaction_isolation = 'repeatable read'",
        "default_transaction_read_only = on",
    ] {
        let database = test_support::database().await;
        let sql = database.connect().await;
        sql.batch_execute(&format!("ALTER DATABASE {} SET {setting}", database.name()))
            .await
            .unwrap();
        let cache = on(&database);
        // while a serializable transaction is open, the server remembers what such transactions read
        sql.batch_execute(
            "BEGIN ISOLATION LEVEL SERIALIZABLE READ WRITE; SELECT count(*) FROM pg_class",
        )
        .await
        .unwrap();
        assert!(works(&cache, "/a").await, "{setting}");
        for _ in 0..4 {
            assert!(is_hit(&cache, "/a").await, "{setting}");
        }
        cache.invalidate([PRODUCT]).await.unwrap();
        assert!(!is_hit(&cache, "/a").await, "{setting}");
        cache.cleanup().await.unwrap();
        cache.clear().await.unwrap();
        let observer = database.connect().await;
        let read = text(
            &observer,
            "SELECT string_agg(DISTINCT relation::regclass::text, ', ') FROM pg_locks
              WHERE mode = 'SIReadLock' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                AND relation IN (SELECT oid FROM pg_class
                                  WHERE relnamespace = 'pgcache'::regnamespace AND relname !~ '^migration')",
        );
        assert_eq!(
            read.await,
            "",
            "{setting}: lookups that can make serializable writers fail"
        );
    }
}
