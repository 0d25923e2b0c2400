//! Whatever fails, requests are answered, and what a change concerns is not served afterwards.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::future::{Future, pending, ready};
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::routing::{MethodRouter, any, get};
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use http_body_util::BodyExt;
use test_support::http::{Answer, get as fetch, send};
use test_support::logs::{keep_logs, logged};
use test_support::{Database, Server, seal};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_pgcache::bb8::Pool;
use tower_pgcache::bb8_postgres::PostgresConnectionManager;
use tower_pgcache::tokio_postgres::{Client, Config, NoTls};
use tower_pgcache::{Domain, PgCache, PgCacheBuilder, Policy, Tenant, domain};

const MINUTE: Duration = Duration::from_secs(60);
/// Nothing here takes long; what takes as long as this hangs.
const HANG: Duration = Duration::from_secs(30);
/// What a request may cost while the database does not answer.
const SHORT: Duration = Duration::from_millis(50);

const THINGS: Domain = domain!("things");

type Connections = Pool<PostgresConnectionManager<NoTls>>;

fn pool_of(config: Config, size: u32) -> Connections {
    Pool::builder()
        .max_size(size)
        .build_unchecked(PostgresConnectionManager::new(config, NoTls))
}

/// A cache that has time to answer, so that what is stored is a hit on a slow machine too.
fn patient(pool: Connections) -> PgCacheBuilder {
    PgCache::builder(pool)
        .lookup_deadline(HANG)
        .change_deadline(HANG)
}

/// A value that anybody may read with GET and increment with POST, at every path.
#[derive(Debug, Clone, Default)]
struct Counter(Arc<AtomicU64>);

impl Counter {
    fn routes(&self) -> MethodRouter {
        let (read, written) = (self.0.clone(), self.0.clone());
        get(move || ready(read.load(Ordering::SeqCst).to_string())).post(move || {
            written.fetch_add(1, Ordering::SeqCst);
            ready("done")
        })
    }

    fn behind(&self, cache: &PgCache) -> Router {
        let layer = cache.layer().ttl(MINUTE).domain(THINGS).invalidates(THINGS);
        Router::new().fallback_service(self.routes().layer(layer))
    }
}

fn request(method: &str, path: &str) -> Request {
    let request = http::Request::builder().method(method).uri(path);
    request.body(Body::empty()).unwrap()
}

/// The answer, which has to come and to be a success.
async fn ask(app: &Router, method: &str, path: &str) -> Answer {
    let answer = timeout(HANG, send(app, request(method, path)));
    let answer = answer.await.expect("an answer in time");
    assert_eq!(answer.status, 200, "{method} {path}");
    answer
}

async fn settled(cache: &PgCache) {
    timeout(HANG, cache.settled()).await.expect("settled");
}

/// The cache works, or comes to.
async fn recovered(cache: &PgCache, app: &Router) {
    let work = async {
        while cache.ready().await.is_err() {
            tokio::task::yield_now().await;
        }
        while !fetch(app, "/recovered").await.is_hit() {
            cache.settled().await;
        }
    };
    timeout(HANG, work).await.expect("the cache works again");
}

/// Waits for something that nobody reports, and that is about to happen.
async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let work = async {
        while !done() {
            tokio::task::yield_now().await;
        }
    };
    timeout(HANG, work).await.expect(what);
}

/// Clients that never stop asking; each answer is checked.
struct Load {
    hits: mpsc::UnboundedReceiver<bool>,
    stop: Arc<AtomicBool>,
    clients: JoinSet<()>,
}

impl Load {
    fn on(app: &Router) -> Self {
        keep_logs();
        let (sender, hits) = mpsc::unbounded_channel();
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        for client in 0..6 {
            let (app, sender, stop) = (app.clone(), sender.clone(), stop.clone());
            clients.spawn(async move {
                for i in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let path = format!("/{}", (client + i) % 10);
                    // seldom: a change of everything that comes before the stores do leaves no hits
                    let method = if i % 400 == 399 { "POST" } else { "GET" };
                    let answer = ask(&app, method, &path).await;
                    let _ = sender.send(method == "GET" && answer.is_hit());
                    // as a client does that has to send its next request
                    tokio::task::yield_now().await;
                }
            });
        }
        Self {
            hits,
            stop,
            clients,
        }
    }

    /// So many answers came.
    async fn answers(&mut self, n: usize) {
        for _ in 0..n {
            let hit = timeout(HANG, self.hits.recv()).await;
            hit.expect("an answer in time").expect("no client failed");
        }
    }

    /// The answers come from the cache again.
    async fn hits(&mut self, n: usize) {
        let work = async {
            let mut seen = 0;
            while seen < n {
                seen += usize::from(self.hits.recv().await.expect("no client failed"));
            }
        };
        let seen = timeout(HANG, work).await;
        assert!(seen.is_ok(), "the cache does not come back: {}", logged());
    }

    async fn end(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        while let Some(outcome) = self.clients.join_next().await {
            outcome.expect("every request was answered");
        }
    }
}

// --- the pool ---

#[tokio::test]
async fn a_handler_that_takes_the_only_connection_is_no_deadlock() {
    let database = test_support::database().await;
    let pool = database.pool(1);
    let cache = PgCache::builder(pool.clone())
        .lookup_deadline(SHORT)
        .change_deadline(SHORT)
        .build()
        .unwrap();
    let (entered, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (in_handler, release) = (entered.clone(), go_on.clone());
    let handler_pool = pool.clone();
    let busy = move || {
        let (pool, entered, go_on) = (handler_pool.clone(), entered.clone(), go_on.clone());
        async move {
            let connection = pool.get().await.unwrap();
            entered.notify_one();
            go_on.notified().await;
            let row = connection.query_one("SELECT 'x'", &[]).await.unwrap();
            row.get::<_, String>(0)
        }
    };
    let quick = any(|| ready("quick"));
    let app = Router::new()
        .route("/busy/{n}", any(busy))
        .route("/quick/{n}", quick)
        .layer(cache.layer().ttl(MINUTE));

    for method in ["GET", "POST"] {
        let (app_too, method_too) = (app.clone(), method.to_owned());
        let holder = tokio::spawn(async move { ask(&app_too, &method_too, "/busy/0").await });
        timeout(HANG, in_handler.notified())
            .await
            .expect("the handler");
        for path in ["/quick/1", "/quick/2"] {
            assert_eq!(ask(&app, method, path).await.text(), "quick");
            assert_eq!(ask(&app, "GET", path).await.cache_status(), BYPASS);
        }
        release.notify_one();
        assert_eq!(holder.await.unwrap().text(), "x");
        settled(&cache).await;
    }

    // many at once, each of which wants the connection for its lookup, its handler and its store
    let all: Vec<_> = (0..20)
        .map(|n| {
            release.notify_one();
            let app = app.clone();
            tokio::spawn(async move { ask(&app, "GET", &format!("/busy/{n}")).await })
        })
        .collect();
    let freed = tokio::spawn(async move {
        loop {
            in_handler.notified().await;
            release.notify_one();
        }
    });
    for one in all {
        assert_eq!(one.await.unwrap().text(), "x");
    }
    freed.abort();
    settled(&cache).await;
    until("the connection is back", || {
        pool.state().idle_connections == 1
    })
    .await;
}

const BYPASS: &str = "fwd=bypass; fwd-status=200; detail=store";

// --- the server ---

#[tokio::test]
async fn without_a_server_the_inner_service_answers() {
    let refusing = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let refusing_port = refusing.local_addr().unwrap().port();
    drop(refusing);
    // accepts and never says a word
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_port = silent.local_addr().unwrap().port();

    for port in [refusing_port, silent_port] {
        let mut config = Config::new();
        config.host("127.0.0.1").port(port).user("nobody");
        // it must be neither the pool nor the store that ends the waiting
        let pool = Pool::builder()
            .max_size(2)
            .connection_timeout(10 * HANG)
            .build_unchecked(PostgresConnectionManager::new(config, NoTls));
        let cache = PgCache::builder(pool)
            .lookup_deadline(SHORT)
            .change_deadline(SHORT)
            .store_deadline(10 * HANG)
            .build()
            .unwrap();
        let app = Counter::default().behind(&cache);
        for expected in ["0", "1", "2"] {
            let answer = ask(&app, "GET", "/").await;
            assert_eq!(answer.text(), expected);
            assert_eq!(answer.cache_status(), BYPASS);
            assert_eq!(ask(&app, "POST", "/").await.text(), "done");
        }
        assert!(cache.stats().errors >= 3);
        assert_eq!(cache.stats().stored, 0);
    }
}

async fn stopped(server: &Arc<Mutex<Server>>) {
    on(server, Server::stop).await;
}

/// Does something to the server while the runtime goes on.
async fn on(server: &Arc<Mutex<Server>>, what: fn(&mut Server) -> io::Result<()>) {
    let server = server.clone();
    let done = tokio::task::spawn_blocking(move || what(&mut server.lock().unwrap()));
    done.await.unwrap().unwrap();
}

async fn own_server() -> (Arc<Mutex<Server>>, Database) {
    let server = tokio::task::spawn_blocking(Server::start);
    let server = server.await.unwrap().unwrap();
    let database = server.database().await;
    (Arc::new(Mutex::new(server)), database)
}

#[tokio::test]
async fn a_server_that_comes_later_is_used() {
    let (server, database) = own_server().await;
    stopped(&server).await;
    let cache = PgCache::builder(database.pool(2))
        .change_deadline(SHORT)
        .build()
        .unwrap();
    let app = Counter::default().behind(&cache);
    assert_eq!(ask(&app, "GET", "/").await.cache_status(), BYPASS);
    ask(&app, "POST", "/").await;
    assert!(cache.ready().await.is_err());

    on(&server, Server::launch).await;
    // what the POST changed is written down without any further request, schema and all
    settled(&cache).await;
    assert_eq!(cache.stats().invalidations, 1);
    recovered(&cache, &app).await;
}

#[tokio::test]
async fn a_crash_under_load_fails_no_request() {
    let (server, database) = own_server().await;
    let cache = PgCache::builder(database.pool(4))
        .change_deadline(SHORT)
        .build()
        .unwrap();
    let app = Counter::default().behind(&cache);
    recovered(&cache, &app).await;
    let mut load = Load::on(&app);
    for _ in 0..2 {
        load.hits(50).await;
        on(&server, Server::kill9).await;
        load.answers(200).await;
        on(&server, Server::launch).await;
    }
    load.hits(50).await;
    load.end().await;
    settled(&cache).await;
}

#[tokio::test]
async fn a_server_that_hangs_costs_the_lookup_deadline() {
    let (server, database) = own_server().await;
    let cache = PgCache::builder(database.pool(3))
        .change_deadline(SHORT)
        .build()
        .unwrap();
    let app = Counter::default().behind(&cache);
    recovered(&cache, &app).await;
    server.lock().unwrap().pause().unwrap();
    for path in ["/recovered", "/1", "/2", "/3", "/4", "/5"] {
        assert_eq!(ask(&app, "GET", path).await.cache_status(), BYPASS);
    }
    ask(&app, "POST", "/1").await;
    server.lock().unwrap().resume().unwrap();
    recovered(&cache, &app).await;
    settled(&cache).await;
}

#[tokio::test]
async fn a_server_that_stays_away_costs_nothing_and_is_missed_no_longer_than_it_is_away() {
    type Act = fn(&mut Server) -> io::Result<()>;
    let ways: [(Act, Act); 2] = [
        (|server| server.pause(), |server| server.resume()),
        (Server::kill9, Server::launch),
    ];
    let (server, database) = own_server().await;
    let cache = PgCache::builder(database.pool(4))
        .cleanup_interval(Duration::ZERO)
        .build()
        .unwrap();
    let app = Counter::default().behind(&cache);
    for (go, come_back) in ways {
        recovered(&cache, &app).await;
        on(&server, go).await;
        for _ in 0..10 {
            let answer = ask(&app, "GET", "/recovered").await;
            assert_eq!(answer.cache_status(), BYPASS);
        }
        // from here on only waiting takes time
        tokio::time::pause();
        // it may be this one's turn to see whether the server is back
        ask(&app, "GET", "/recovered").await;
        let (start, errors) = (Instant::now(), cache.stats().errors);
        for _ in 0..1000 {
            let answer = ask(&app, "GET", "/recovered").await;
            assert_eq!(answer.cache_status(), BYPASS);
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert_eq!(cache.stats().errors, errors);
        tokio::time::resume();

        on(&server, come_back).await;
        let hit = async {
            while !fetch(&app, "/recovered").await.is_hit() {
                tokio::task::yield_now().await;
            }
        };
        timeout(HANG, hit)
            .await
            .expect("hits, and nobody asked for them");
        settled(&cache).await;
    }
}

#[tokio::test]
async fn connections_that_are_cut_fail_no_request() {
    let database = test_support::database().await;
    let cache = PgCache::builder(database.pool(4))
        .change_deadline(SHORT)
        .build()
        .unwrap();
    let app = Counter::default().behind(&cache);
    recovered(&cache, &app).await;
    let admin = database.connect().await;
    let mut load = Load::on(&app);
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE datname = current_database() AND pid <> pg_backend_pid()";
    for _ in 0..40 {
        admin.query(cut, &[]).await.unwrap();
        load.answers(10).await;
    }
    load.hits(50).await;
    load.end().await;
    settled(&cache).await;
}

// --- the queue ---

#[tokio::test]
async fn a_full_queue_drops_and_goes_on() {
    let database = test_support::database().await;
    for (answers, bytes, least_dropped) in [(1, 1 << 20, 3), (100, 1, 5)] {
        let cache = patient(database.pool(4))
            .store_queue(answers, bytes)
            .store_deadline(HANG)
            .namespace(format!("{answers}"))
            .build()
            .unwrap();
        cache.ready().await.unwrap();
        let app = Counter::default().behind(&cache);
        // whoever reads may go on, whoever writes has to wait
        let mut admin = database.connect().await;
        let lock = admin.transaction().await.unwrap();
        let sql = "LOCK TABLE pgcache.entry IN SHARE MODE";
        lock.batch_execute(sql).await.unwrap();
        for n in 0..5 {
            ask(&app, "GET", &format!("/{n}")).await;
        }
        lock.rollback().await.unwrap();
        settled(&cache).await;
        let stats = cache.stats();
        assert!(stats.dropped >= least_dropped, "{stats:?}");
        assert_eq!(stats.dropped + stats.stored, 5);
        assert_eq!(stats.errors, 0);
        if bytes > 1 {
            recovered(&cache, &app).await;
        }
    }
}

/// Answers to requests that change something wait for the database to say that they are good.
#[tokio::test]
async fn answers_that_are_not_known_to_be_good_take_no_more_memory_than_they_may() {
    const LENGTH: usize = 10_000;
    let database = test_support::database().await;
    let cache = patient(database.pool(4))
        .fill_memory(LENGTH * 3 / 2)
        .policy(Policy::shared_cache())
        .build()
        .unwrap();
    cache.ready().await.unwrap();
    let (entered, gate) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (in_handler, opens) = (entered.clone(), gate.clone());
    let handler = move |request: Request| {
        let (entered, gate) = (in_handler.clone(), opens.clone());
        async move {
            entered.add_permits(1);
            gate.acquire().await.unwrap().forget();
            let location = request.uri().path().to_owned();
            let fields = [
                ("content-location", location),
                ("cache-control", "max-age=60".into()),
            ];
            (fields, "x".repeat(LENGTH))
        }
    };
    let app = Router::new().fallback(any(handler)).layer(cache.layer());
    let mut posts = JoinSet::new();
    for path in ["/1", "/2"] {
        let app = app.clone();
        posts.spawn(async move { ask(&app, "POST", path).await });
    }
    drop(timeout(HANG, entered.acquire_many(2)).await.expect("both"));
    let mut admin = database.connect().await;
    let lock = admin.transaction().await.unwrap();
    let sql = "LOCK TABLE pgcache.epoch IN ACCESS EXCLUSIVE MODE";
    lock.batch_execute(sql).await.unwrap();
    // the second passes through: the first is still there
    for _ in 0..2 {
        gate.add_permits(1);
        let answer = timeout(HANG, posts.join_next()).await.expect("an answer");
        assert_eq!(answer.unwrap().unwrap().text().len(), LENGTH);
        assert_eq!(cache.stats().stored, 0);
    }
    lock.rollback().await.unwrap();
    settled(&cache).await;
    let stats = cache.stats();
    assert_eq!((stats.stored, stats.dropped), (1, 0));
}

// --- what stands in the database ---

#[tokio::test]
async fn a_damaged_entry_is_not_served_and_is_replaced() {
    let database = test_support::database().await;
    let cache = patient(database.pool(4)).memory(0).build().unwrap();
    cache.ready().await.unwrap();
    let calls = Arc::new(AtomicU64::new(0));
    let counted = calls.clone();
    let handler = move || ready(counted.fetch_add(1, Ordering::SeqCst).to_string());
    let app = Router::new()
        .fallback(handler)
        .layer(cache.layer().ttl(MINUTE).domain(THINGS));
    let admin = database.connect().await;
    let damages = [
        "body = 'x'",
        "body = body || 'x'",
        "body = ''",
        "head = 'garbage'",
        "head = ''",
        "head = head || '\\x00'",
        "checksum = ''",
        "checksum = repeat('x', 16)::bytea",
        "epoch = gen_random_uuid()",
        "snapshot = '1:1:'",
        // it would see every change that is still to come
        "snapshot = '1:9000000000:'",
        "snapshot = format('%1$s:%2$s:%1$s', 3, pg_snapshot_xmax(snapshot))::pg_snapshot",
        "probes = '{}'",
        "probes = probes[2:]",
        "expires_at = clock_timestamp()",
    ];
    for (n, damage) in damages.into_iter().enumerate() {
        let path = format!("/{n}");
        ask(&app, "GET", &path).await;
        settled(&cache).await;
        assert!(ask(&app, "GET", &path).await.is_hit(), "{damage}");
        replaced(&admin, &cache, &app, &calls, &path, damage).await;
    }

    // an entry in the place of another one
    for path in ["/one", "/two"] {
        ask(&app, "GET", path).await;
    }
    settled(&cache).await;
    let swap = "(head, body, checksum) =
                (SELECT o.head, o.body, o.checksum FROM pgcache.entry o WHERE o.path = '/two')";
    replaced(&admin, &cache, &app, &calls, "/one", swap).await;

    // a head that is as it was stored, by a program that stored nonsense
    ask(&app, "GET", "/head").await;
    settled(&cache).await;
    let set = "UPDATE pgcache.entry SET head = 'nonsense' WHERE path = '/head'";
    admin.execute(set, &[]).await.unwrap();
    seal(&admin, "/head").await;
    replaced(&admin, &cache, &app, &calls, "/head", "path = path").await;
}

/// What the search for changes goes by says that there was none; by plain statements and by those that sessions keep.
#[tokio::test]
async fn damage_on_the_disk_to_what_validity_is_judged_by_is_noticed() {
    for (warm, partitions) in [(0, None), (40, None), (0, Some(4))] {
        let database = test_support::database().await;
        let builder = patient(database.pool(1)).memory(0);
        let builder = builder.cleanup_interval(Duration::ZERO);
        let builder = match partitions {
            Some(count) => builder.partitions(count),
            None => builder,
        };
        let cache = builder.build().unwrap();
        cache.ready().await.unwrap();
        let app = Router::new()
            .fallback(|| ready("answer"))
            .layer(cache.layer().ttl(MINUTE).domain(THINGS));
        for path in ["/warm", "/snapshot", "/probes"] {
            ask(&app, "GET", path).await;
        }
        settled(&cache).await;
        // nothing that Postgres does changes one of them alone
        let damage = "ALTER TABLE pgcache.entry ALTER meta DROP EXPRESSION;
                      UPDATE pgcache.entry SET snapshot = '1000000000:1000000000:' WHERE path = '/snapshot';
                      UPDATE pgcache.entry SET probes = '{}' WHERE path = '/probes'";
        let admin = database.connect().await;
        admin.batch_execute(damage).await.unwrap();
        for _ in 0..warm {
            assert!(ask(&app, "GET", "/warm").await.is_hit());
            settled(&cache).await;
        }
        let kept = "SELECT EXISTS (SELECT FROM pg_stat_activity
                                    WHERE datname = current_database() AND query LIKE '-- %.lookup in one statement%')";
        let is_kept: bool = admin.query_one(kept, &[]).await.unwrap().get(0);
        assert_eq!(is_kept, warm > 0);
        cache.invalidate([THINGS]).await.unwrap();
        for path in ["/snapshot", "/probes"] {
            assert!(
                !ask(&app, "GET", path).await.is_hit(),
                "{path}, {warm}, {partitions:?}"
            );
        }
    }
}

#[tokio::test]
async fn an_entry_whose_checksum_stands_wrong_beside_it_is_confirmed_all_the_same() {
    let database = test_support::database().await;
    let cache = patient(database.pool(2)).memory(0).build().unwrap();
    cache.ready().await.unwrap();
    let handler = |headers: HeaderMap| {
        let status = match headers.get("if-none-match") {
            Some(_) => StatusCode::NOT_MODIFIED,
            None => StatusCode::OK,
        };
        ready((status, [("etag", "\"1\"")]))
    };
    let app = Router::new()
        .fallback(handler)
        .layer(cache.layer().ttl(MINUTE).domain(THINGS));
    for path in ["/checksum", "/unpacked"] {
        ask(&app, "GET", path).await;
    }
    settled(&cache).await;
    // what lookups read stays as it was, and is made anew with each change of the row after that
    let damage = "ALTER TABLE pgcache.entry ALTER meta DROP EXPRESSION;
         UPDATE pgcache.entry SET checksum = '' WHERE path = '/checksum';
         UPDATE pgcache.entry SET unpacked = 7 WHERE path = '/unpacked';
         CREATE FUNCTION as_it_is() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             NEW.meta := pgcache.meta(NEW.born_at, NEW.expires_at, NEW.cost, NEW.unpacked, NEW.snapshot, NEW.probes, NEW.checksum);
             RETURN NEW;
         END $$;
         CREATE TRIGGER as_it_is BEFORE UPDATE ON pgcache.entry FOR EACH ROW EXECUTE FUNCTION as_it_is()";
    let admin = database.connect().await;
    admin.batch_execute(damage).await.unwrap();
    cache.invalidate([THINGS]).await.unwrap();
    for path in ["/checksum", "/unpacked"] {
        let answer = ask(&app, "GET", path).await;
        let said = answer.cache_status();
        assert!(said.contains("fwd-status=304; stored"), "{path}: {said}");
        settled(&cache).await;
        assert!(ask(&app, "GET", path).await.is_hit(), "{path}");
    }
}

async fn replaced(
    admin: &Client,
    cache: &PgCache,
    app: &Router,
    calls: &AtomicU64,
    path: &str,
    damage: &str,
) {
    let sql = format!("UPDATE pgcache.entry SET {damage} WHERE path = $1");
    assert_eq!(admin.execute(&sql, &[&path]).await.unwrap(), 1, "{damage}");
    let next = calls.load(Ordering::SeqCst).to_string();
    let answer = ask(app, "GET", path).await;
    assert!(!answer.is_hit(), "{damage}");
    assert_eq!(answer.text(), next, "{damage}");
    settled(cache).await;
    let answer = ask(app, "GET", path).await;
    assert!(answer.is_hit(), "{damage}");
    assert_eq!(answer.text(), next, "{damage}");
}

#[tokio::test]
async fn a_schema_that_is_dropped_under_load_is_made_anew() {
    let database = test_support::database().await;
    let cache = PgCache::builder(database.pool(4))
        .change_deadline(SHORT)
        .build()
        .unwrap();
    let app = Counter::default().behind(&cache);
    recovered(&cache, &app).await;
    let admin = database.connect().await;
    let mut load = Load::on(&app);
    for sql in [
        "DROP SCHEMA pgcache CASCADE",
        "DELETE FROM pgcache.epoch",
        "DROP SCHEMA pgcache CASCADE",
        "DELETE FROM pgcache.incarnation",
    ] {
        load.hits(50).await;
        // it may meet a transaction of the cache's in the opposite order
        while admin.batch_execute(sql).await.is_err() {}
        load.answers(50).await;
    }
    load.hits(50).await;

    // a schema without one of its tables is nobody's; somebody has to drop it
    while admin
        .batch_execute("DROP TABLE pgcache.entry CASCADE")
        .await
        .is_err()
    {}
    load.answers(100).await;
    while admin
        .batch_execute("DROP SCHEMA pgcache CASCADE")
        .await
        .is_err()
    {}
    load.hits(50).await;
    load.end().await;
    settled(&cache).await;
}

#[tokio::test]
async fn a_change_recreates_the_schema_too() {
    let database = test_support::database().await;
    let cache = patient(database.pool(2))
        .change_deadline(SHORT)
        .build()
        .unwrap();
    let app = Counter::default().behind(&cache);
    ask(&app, "POST", "/").await;
    settled(&cache).await;
    let admin = database.connect().await;
    let sql = "DROP SCHEMA pgcache CASCADE";
    admin.batch_execute(sql).await.unwrap();
    // nobody reads
    ask(&app, "POST", "/").await;
    settled(&cache).await;
}

#[tokio::test]
async fn rights_that_are_taken_away_are_missed_once() {
    keep_logs();
    let database = test_support::database().await;
    let admin = database.connect().await;
    let role = format!("{}_role", database.name());
    PgCache::new(database.pool(1)).migrate().await.unwrap();
    let grant = format!("GRANT USAGE ON SCHEMA pgcache TO {role}");
    let setup = format!(
        "CREATE ROLE {role}; {grant}; GRANT ALL ON ALL TABLES IN SCHEMA pgcache TO {role}; \
             GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgcache TO {role}"
    );
    admin.batch_execute(&setup).await.unwrap();
    let mut config = database.config();
    config.options(format!("-c role={role}"));
    let cache = patient(pool_of(config, 2)).build().unwrap();
    let app = Counter::default().behind(&cache);
    recovered(&cache, &app).await;
    let (fails, works) = (
        "reading from the cache fails",
        "reading from the cache works",
    );
    let counts = || [fails, works].map(|text| logged().matches(text).count());
    assert_eq!(counts(), [0, 0]);

    let revoke = format!("REVOKE USAGE ON SCHEMA pgcache FROM {role}");
    admin.batch_execute(&revoke).await.unwrap();
    for _ in 0..10 {
        assert_eq!(ask(&app, "GET", "/").await.cache_status(), BYPASS);
    }
    assert_eq!(counts(), [1, 0], "{}", logged());
    admin.batch_execute(&grant).await.unwrap();
    recovered(&cache, &app).await;
    assert_eq!(counts(), [1, 1], "{}", logged());

    let drop = format!("DROP OWNED BY {role}; DROP ROLE {role}");
    admin.batch_execute(&drop).await.unwrap();
}

// --- clients that go away ---

/// A body that gives what the test sends.
struct Fed(mpsc::UnboundedReceiver<Result<Bytes, io::Error>>);

impl http_body::Body for Fed {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<http_body::Frame<Bytes>>>> {
        let piece = self.0.poll_recv(cx);
        piece.map(|piece| piece.map(|data| data.map(http_body::Frame::data)))
    }
}

type Feeding = mpsc::UnboundedSender<Result<Bytes, io::Error>>;

#[tokio::test]
async fn clients_that_leave_leave_nothing_behind() {
    let database = test_support::database().await;
    let pool = database.pool(4);
    let cache = patient(pool.clone())
        .store_deadline(Duration::from_secs(2))
        .build()
        .unwrap();
    let (entered, mut handlers) = mpsc::unbounded_channel::<Feeding>();
    let streaming = move || {
        let (feeding, pieces) = mpsc::unbounded_channel();
        entered.send(feeding).unwrap();
        ready(Body::new(Fed(pieces)))
    };
    let (began, mut hanging) = mpsc::unbounded_channel();
    let hangs = move || {
        began.send(()).unwrap();
        pending::<String>()
    };
    let counter = Counter::default();
    let app = Router::new()
        .route("/stream/{n}", get(streaming))
        .route("/hangs/{n}", get(hangs.clone()).post(hangs))
        .fallback_service(counter.routes())
        .layer(cache.layer().ttl(MINUTE));
    recovered(&cache, &app).await;
    // all connections that the pool can have
    let all: Vec<_> = futures_util::future::join_all((0..4).map(|_| pool.get())).await;
    drop(all);
    let tasks = || Handle::current().metrics().num_alive_tasks();
    until("idle", || pool.state().idle_connections == 4).await;
    settled(&cache).await;
    let before = tasks();
    let stored = cache.stats().stored;

    // while they are looked up
    for n in 0..50 {
        let future = app.clone().oneshot(request("GET", &format!("/hangs/{n}")));
        let mut future = pin!(future);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(future.as_mut().poll(&mut cx).is_pending());
    }
    // before the head
    for n in 0..50 {
        let method = if n % 2 == 0 { "GET" } else { "POST" };
        let future = app.clone().oneshot(request(method, &format!("/hangs/{n}")));
        let client = tokio::spawn(future);
        timeout(HANG, hanging.recv()).await.unwrap().unwrap();
        client.abort();
        assert!(client.await.unwrap_err().is_cancelled());
    }
    // before the end of the body, which fails, or ends, or goes on for ever
    let mut endless = Vec::new();
    for n in 0..60 {
        let future = app.clone().oneshot(request("GET", &format!("/stream/{n}")));
        let mut response = future.await.unwrap();
        let feeding = handlers.recv().await.unwrap();
        feeding.send(Ok(Bytes::from_static(b"some"))).unwrap();
        response.body_mut().frame().await.unwrap().unwrap();
        drop(response);
        match n % 3 {
            0 => feeding.send(Err(io::Error::other("broken"))).unwrap(),
            1 => drop(feeding),
            _ => endless.push(feeding),
        }
    }
    settled(&cache).await;
    assert!(endless.iter().all(Feeding::is_closed));
    assert_eq!(cache.stats().stored - stored, 20);
    until("the tasks end", || tasks() <= before).await;
    until("idle", || pool.state().idle_connections == 4).await;
    let admin = database.connect().await;
    let partial =
        "SELECT count(*) FROM pgcache.entry WHERE path LIKE '/stream/%' AND body <> 'some'
                      OR path LIKE '/hangs/%'";
    let partial: i64 = admin.query_one(partial, &[]).await.unwrap().get(0);
    assert_eq!(partial, 0);
}

// --- what changes something ---

/// An error that is not even a `std::error::Error`.
#[derive(Debug)]
struct Broken;

/// Does what the field `x-do` of the request says.
fn obedient() -> impl Service<Request, Response = Response<Body>, Error = Broken, Future: Send>
+ Clone
+ Send
+ 'static {
    service_fn(|request: Request| async move {
        let headers = request.into_parts().0.headers;
        let field = |name| headers.get(name).map(|v| v.to_str().unwrap());
        let mut response = Response::new(Body::from("x"));
        for (name, field) in [
            ("location", field("x-loc")),
            ("content-location", field("x-cl")),
        ] {
            if let Some(value) = field {
                response.headers_mut().insert(name, value.parse().unwrap());
            }
        }
        match field("x-do").unwrap_or("200") {
            "error" => return Err(Broken),
            "panic" => panic!("as it was told"),
            "hang" => pending::<()>().await,
            status => *response.status_mut() = status.parse::<StatusCode>().unwrap(),
        }
        Ok(response)
    })
}

#[derive(Clone)]
struct TenantName(&'static str);

fn told(method: &str, path: &str, fields: &[(&str, &str)]) -> Request {
    let mut request = http::Request::builder().method(method).uri(path);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(Body::empty()).unwrap()
}

#[tokio::test]
async fn a_change_is_invalidated_however_its_request_ends() {
    let database = test_support::database().await;
    let cache = patient(database.pool(4)).build().unwrap();
    cache.ready().await.unwrap();
    let list = cache.layer().ttl(MINUTE).domain(THINGS).layer(obedient());
    let item = cache
        .layer()
        .ttl(MINUTE)
        .invalidates(THINGS)
        .layer(obedient());
    let bypassed = cache.layer().bypass().invalidates(THINGS).layer(obedient());

    // how the request ends, and what it invalidates: the list, the item itself, /linked
    type Fields = &'static [(&'static str, &'static str)];
    let cases: &[(&str, Fields, [bool; 3])] = &[
        ("POST", &[("x-do", "200")], [true, true, false]),
        ("PUT", &[("x-do", "204")], [true, true, false]),
        ("PATCH", &[("x-do", "303")], [true, true, false]),
        ("DELETE", &[("x-do", "500")], [true, true, false]),
        ("POST", &[("x-do", "error")], [true, true, false]),
        ("POST", &[("x-do", "panic")], [true, true, false]),
        ("POST", &[("x-do", "hang")], [true, true, false]),
        ("POST", &[("authorization", "me")], [true, true, false]),
        ("POST", &[("x-loc", "/linked")], [true, true, true]),
        ("POST", &[("x-cl", "linked")], [true, true, true]),
        (
            "POST",
            &[("host", "h"), ("x-loc", "http://else/linked")],
            [true, false, false],
        ),
        ("POST", &[("x-do", "400"), ("x-loc", "/linked")], [false; 3]),
        ("POST", &[("x-do", "404")], [false; 3]),
        ("POST", &[("x-do", "422")], [false; 3]),
        ("OPTIONS", &[], [false; 3]),
        ("TRACE", &[], [false; 3]),
    ];
    for (method, fields, expected) in cases {
        for bypass in [false, true] {
            for service in [(&list, "/list"), (&item, "/item"), (&item, "/linked")] {
                fetch(service.0, service.1).await;
                settled(&cache).await;
                assert!(fetch(service.0, service.1).await.is_hit());
            }
            let service = if bypass {
                bypassed.clone()
            } else {
                item.clone()
            };
            let client = tokio::spawn(service.oneshot(told(method, "/item", fields)));
            if fields.contains(&("x-do", "hang")) {
                // it has begun as soon as it is polled
                tokio::task::yield_now().await;
                client.abort();
            }
            let _ = timeout(HANG, client).await.expect("an end");
            if ["error", "panic", "hang"]
                .iter()
                .any(|e| fields.contains(&("x-do", e)))
            {
                settled(&cache).await;
            }
            let gone = [
                !fetch(&list, "/list").await.is_hit(),
                !fetch(&item, "/item").await.is_hit(),
                !fetch(&item, "/linked").await.is_hit(),
            ];
            assert_eq!(gone, *expected, "{method} {fields:?} {bypass}");
            settled(&cache).await;
        }
    }
}

#[tokio::test]
async fn a_change_by_an_unknown_tenant_concerns_every_tenant() {
    let database = test_support::database().await;
    let cache = patient(database.pool(4))
        .tenant(Tenant::extension(|TenantName(name): &TenantName| {
            (*name).to_owned()
        }))
        .build()
        .unwrap();
    cache.ready().await.unwrap();
    let layer = cache.layer().ttl(MINUTE).domain(THINGS).invalidates(THINGS);
    let service = layer.layer(obedient());
    let of = |tenant: Option<&'static str>, method, path| {
        let mut request = told(method, path, &[]);
        request.extensions_mut().extend(
            tenant
                .map(TenantName)
                .map(|t| {
                    let mut extensions = http::Extensions::new();
                    extensions.insert(t);
                    extensions
                })
                .unwrap_or_default(),
        );
        send(&service, request)
    };
    for (changer, a_stays, b_stays) in [(Some("a"), false, true), (None, false, false)] {
        for tenant in ["a", "b"] {
            of(Some(tenant), "GET", "/list").await;
            settled(&cache).await;
            assert!(of(Some(tenant), "GET", "/list").await.is_hit());
        }
        of(changer, "POST", "/item").await;
        assert_eq!(of(Some("a"), "GET", "/list").await.is_hit(), a_stays);
        assert_eq!(of(Some("b"), "GET", "/list").await.is_hit(), b_stays);
        settled(&cache).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_serves_an_older_answer_than_a_client_that_changed_it_has() {
    let database = test_support::database().await;
    let counter = Counter::default();
    let instance = || {
        let cache = patient(database.pool(3)).build().unwrap();
        (counter.behind(&cache), cache)
    };
    let (writer, first) = instance();
    first.ready().await.unwrap();
    let readers: Vec<_> = (0..2).map(|_| instance()).collect();
    let answered = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for (app, _) in readers.iter().cycle().take(4) {
        let (app, answered, stop) = (app.clone(), answered.clone(), stop.clone());
        clients.spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                let least = answered.load(Ordering::SeqCst);
                let answer = ask(&app, "GET", "/").await;
                let got: u64 = answer.text().parse().unwrap();
                assert!(
                    got >= least,
                    "{got} after {least}: {}",
                    answer.cache_status()
                );
            }
        });
    }
    for n in 1..=100 {
        ask(&writer, "POST", "/").await;
        answered.store(n, Ordering::SeqCst);
        // now and then there are hits
        if n % 10 == 0 {
            timeout(HANG, async { while !fetch(&writer, "/").await.is_hit() {} })
                .await
                .expect("a hit");
        }
    }
    stop.store(true, Ordering::SeqCst);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    assert!(
        readers
            .iter()
            .map(|(_, cache)| cache.stats().hits)
            .sum::<u64>()
            > 0
    );
}

#[tokio::test]
async fn what_could_not_be_invalidated_is_not_served_here() {
    let database = test_support::database().await;
    let cache = patient(database.pool(4))
        .change_deadline(SHORT)
        .build()
        .unwrap();
    cache.ready().await.unwrap();
    let counter = Counter::default();
    let app = counter.behind(&cache);
    let other = Router::new()
        .fallback_service(counter.routes())
        .layer(cache.layer().ttl(MINUTE));
    for (app, path) in [(&app, "/list"), (&other, "/other")] {
        ask(app, "GET", path).await;
        settled(&cache).await;
        assert!(ask(app, "GET", path).await.is_hit());
    }
    // reading works, writing does not
    let admin = database.connect().await;
    let break_it = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql
                        AS $$ BEGIN RAISE 'refused'; END $$;
                    CREATE TRIGGER refuse BEFORE INSERT ON pgcache.invalidation
                        FOR EACH STATEMENT EXECUTE FUNCTION refuse()";
    admin.batch_execute(break_it).await.unwrap();
    for n in 1..4 {
        ask(&app, "POST", "/item").await;
        let answer = ask(&app, "GET", "/list").await;
        assert_eq!(
            (answer.text(), answer.cache_status()),
            (&*n.to_string(), BYPASS)
        );
        assert!(ask(&other, "GET", "/other").await.is_hit());
    }
    assert_eq!(cache.stats().invalidations, 0);
    admin
        .batch_execute("DROP TRIGGER refuse ON pgcache.invalidation")
        .await
        .unwrap();
    settled(&cache).await;
    assert!(cache.stats().invalidations >= 1);
    assert!(!ask(&app, "GET", "/list").await.is_hit());
    settled(&cache).await;
    assert!(ask(&app, "GET", "/list").await.is_hit());
}

// --- the end ---

#[tokio::test]
async fn close_writes_what_waits_and_ends_in_time() {
    let database = test_support::database().await;
    let cache = patient(database.pool(4))
        .store_deadline(Duration::from_secs(5))
        .build()
        .unwrap();
    cache.ready().await.unwrap();
    let app = Counter::default().behind(&cache);
    for n in 0..20 {
        ask(&app, "GET", &format!("/{n}")).await;
    }
    timeout(HANG, cache.close()).await.expect("closed");
    assert_eq!(cache.stats().stored, 20);
    let closed = "fwd=bypass; fwd-status=200; detail=closed";
    assert_eq!(ask(&app, "GET", "/0").await.cache_status(), closed);
    ask(&app, "POST", "/0").await;
    assert!(cache.ready().await.is_err());
    let next = patient(database.pool(1)).build().unwrap();
    assert!(
        !ask(&Counter::default().behind(&next), "GET", "/0")
            .await
            .is_hit()
    );

    // nothing can be written
    let stuck = patient(database.pool(2))
        .store_deadline(SHORT)
        .build()
        .unwrap();
    let mut admin = database.connect().await;
    let lock = admin.transaction().await.unwrap();
    let sql = "LOCK TABLE pgcache.entry IN SHARE MODE";
    lock.batch_execute(sql).await.unwrap();
    let app = Counter::default().behind(&stuck);
    ask(&app, "GET", "/stuck").await;
    timeout(HANG, stuck.close()).await.expect("closed");
    lock.rollback().await.unwrap();
    settled(&stuck).await;
}

#[tokio::test]
async fn the_last_handle_takes_every_task_along() {
    let database = test_support::database().await;
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let cache = patient(database.pool(3)).build().unwrap();
    let app = Counter::default().behind(&cache);
    recovered(&cache, &app).await;
    ask(&app, "POST", "/").await;
    assert!(tasks() > before);
    drop((app, cache));
    until("the tasks end", || tasks() <= before).await;
}

/// Without any runtime.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

#[test]
fn without_a_runtime_everything_can_be_made_and_the_inner_service_answers() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let database = runtime.block_on(test_support::database());
    let cache = PgCacheBuilder::<PgCache>::connecting(database.config(), NoTls)
        .lookup_deadline(HANG)
        .build()
        .unwrap();
    let layer = cache.layer().ttl(MINUTE).domain(THINGS).invalidates(THINGS);
    let service = layer.layer(obedient());
    runtime.block_on(async {
        fetch(&service, "/list").await;
        settled(&cache).await;
        assert!(fetch(&service, "/list").await.is_hit());
    });
    for method in ["GET", "POST", "OPTIONS"] {
        let response = block_on(service.clone().oneshot(request(method, "/item"))).unwrap();
        assert_eq!(response.status(), 200);
    }
    // the POST was not forgotten
    runtime.block_on(async {
        assert!(!fetch(&service, "/list").await.is_hit());
        settled(&cache).await;
        assert_eq!(cache.stats().invalidations, 1);
        fetch(&service, "/list").await;
        settled(&cache).await;
        assert!(fetch(&service, "/list").await.is_hit());
    });
}

// --- layer in layer ---

const ALPHA: Domain = domain!("alpha");
const BETA: Domain = domain!("beta");

#[tokio::test]
async fn of_two_layers_of_one_engine_the_inner_one_decides() {
    let database = test_support::database().await;
    let cache = patient(database.pool(4)).build().unwrap();
    cache.ready().await.unwrap();
    let routes = || Counter::default().routes();
    let inner = || cache.layer().ttl(2 * MINUTE).domain(BETA).invalidates(BETA);
    let outer = || cache.layer().ttl(MINUTE).domain(ALPHA).invalidates(ALPHA);
    let app = Router::new()
        .route("/both", routes().layer(inner()))
        .route("/outer", routes())
        .route("/inner-bypass", routes().layer(cache.layer().bypass()))
        .layer(outer())
        .merge(
            Router::new()
                .route("/outer-bypass", routes().layer(inner()))
                .layer(cache.layer().bypass()),
        );
    let admin = database.connect().await;
    let scopes = async |path: &str| -> String {
        let sql = "SELECT array_to_string(scopes, ' ') FROM pgcache.entry WHERE path = $1";
        let rows = admin.query(sql, &[&path]).await.unwrap();
        rows.iter().map(|row| row.get::<_, String>(0)).collect()
    };
    for (path, scope, misses) in [
        ("/both", "beta", 1),
        ("/outer", "alpha", 1),
        ("/outer-bypass", "beta", 1),
        ("/inner-bypass", "", 0),
    ] {
        let before = cache.stats();
        let answer = ask(&app, "GET", path).await;
        settled(&cache).await;
        assert_eq!(
            answer.headers.get_all("cache-status").iter().count(),
            1,
            "{path}"
        );
        let after = cache.stats();
        assert_eq!(after.misses - before.misses, misses, "{path}");
        assert_eq!(after.stored - before.stored, misses, "{path}");
        let found = scopes(path).await;
        for name in ["alpha", "beta"] {
            assert_eq!(found.contains(name), name == scope, "{path}: {found}");
        }
        let again = ask(&app, "GET", path).await;
        assert_eq!(again.is_hit(), misses == 1, "{path}");
        assert_eq!(
            again.headers.get_all("cache-status").iter().count(),
            1,
            "{path}"
        );
    }
    // an unsafe method, with both: one member, one invalidation, and the inner one's
    let before = cache.stats().invalidations;
    let answer = ask(&app, "POST", "/both").await;
    assert_eq!(answer.headers.get_all("cache-status").iter().count(), 1);
    assert_eq!(cache.stats().invalidations - before, 1);
    assert!(ask(&app, "GET", "/outer").await.is_hit());
    assert!(!ask(&app, "GET", "/outer-bypass").await.is_hit());
    settled(&cache).await;
}

#[tokio::test]
async fn two_engines_both_act() {
    let database = test_support::database().await;
    let engine = |schema: &str| patient(database.pool(2)).schema(schema).build().unwrap();
    let (inner, outer) = (engine("inner_cache"), engine("outer_cache"));
    let app = Router::new()
        .fallback_service(Counter::default().routes().layer(inner.layer().ttl(MINUTE)))
        .layer(outer.layer().ttl(MINUTE));
    let answer = ask(&app, "GET", "/").await;
    assert_eq!(answer.headers.get_all("cache-status").iter().count(), 2);
    settled(&inner).await;
    settled(&outer).await;
    assert_eq!((inner.stats().stored, outer.stats().stored), (1, 1));
    assert!(ask(&app, "GET", "/").await.is_hit());
    assert_eq!((inner.stats().hits, outer.stats().hits), (0, 1));
    ask(&app, "POST", "/").await;
    assert_eq!(
        (inner.stats().invalidations, outer.stats().invalidations),
        (1, 1)
    );
    assert_eq!(ask(&app, "GET", "/").await.text(), "1");
}
