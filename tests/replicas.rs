//! `snapshot_from`: handlers that read from a standby, which may lag behind, hang, be promoted or be of another system.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::routing::get as getting;
use http::Uri;
use test_support::http::{Answer, get as fetch};
use test_support::{Database, Options, Server, until};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tower_pgcache::bb8::Pool;
use tower_pgcache::bb8_postgres::PostgresConnectionManager;
use tower_pgcache::tokio_postgres::{Client, NoTls};
use tower_pgcache::{Domain, PgCache, PgCacheLayer, domain};

const MINUTE: Duration = Duration::from_secs(60);
/// Nothing here takes long; what takes as long as this hangs.
const HANG: Duration = Duration::from_secs(30);

const PRICE: Domain = domain!("price");
const NAME: Domain = domain!("name");

const NOT_STORED: &str = "fwd=uri-miss; fwd-status=200; detail=replica";

type Connections = Pool<PostgresConnectionManager<NoTls>>;

/// A primary, which the cache is on, and a standby, which handlers read from.
struct Stage {
    /// Lives as long as the rest.
    _primary: Server,
    standby: Mutex<Server>,
    database: Database,
    /// The same, on the standby.
    copy: Database,
    admin: Client,
}

impl Stage {
    async fn new() -> Self {
        let servers = tokio::task::spawn_blocking(|| {
            let primary = Server::start().unwrap();
            let standby = primary.standby().unwrap();
            (primary, standby)
        });
        let (primary, standby) = servers.await.unwrap();
        let database = primary.database().await;
        let copy = standby.copy_of(&database);
        let admin = database.connect().await;
        let tables =
            "CREATE TABLE item (price bigint, name text); INSERT INTO item VALUES (0, 'x')";
        admin.batch_execute(tables).await.unwrap();
        let stage = Self {
            _primary: primary,
            standby: Mutex::new(standby),
            database,
            copy,
            admin,
        };
        stage.replayed().await;
        stage
    }

    fn cache(&self) -> PgCache {
        let builder = PgCache::builder(self.database.pool(6));
        let builder = builder.lookup_deadline(Duration::from_secs(2));
        builder.snapshot_from(self.copy.pool(4)).build().unwrap()
    }

    /// `/price…` and `/name…`, read from `source`.
    fn app(&self, cache: &PgCache, source: &Connections) -> Router {
        let of = |column: &'static str, domain: Domain| {
            let source = source.clone();
            let read = move || {
                let source = source.clone();
                async move {
                    let client = source.get().await.unwrap();
                    let sql = format!("SELECT {column}::text FROM item");
                    let row = client.query_one(&sql, &[]).await.unwrap();
                    row.get::<_, String>(0)
                }
            };
            getting(read).layer(cache.layer().ttl(MINUTE).domain(domain))
        };
        Router::new()
            .route("/price/{n}", of("price", PRICE))
            .route("/name/{n}", of("name", NAME))
    }

    async fn set_price(&self, client: &Client, price: u64) {
        let sql = format!(
            "BEGIN; UPDATE item SET price = {price}; SELECT pgcache.invalidate('price'); COMMIT"
        );
        client.batch_execute(&sql).await.unwrap();
    }

    /// The standby has all that there is.
    async fn replayed(&self) {
        let row = self
            .admin
            .query_one("SELECT pg_current_wal_insert_lsn()::text", &[]);
        let all: String = row.await.unwrap().get(0);
        let behind = format!("SELECT coalesce(pg_last_wal_replay_lsn() < '{all}', true)");
        until(HANG, "the replay", async || {
            // an xid that wrote nothing else is flushed by and by
            let client = self.copy.try_connect().await;
            match client {
                Some(client) => !client
                    .query_one(&behind, &[])
                    .await
                    .unwrap()
                    .get::<_, bool>(0),
                None => false,
            }
        })
        .await;
    }

    async fn pause_replay(&self) {
        let client = self.copy.connect().await;
        client
            .batch_execute("SELECT pg_wal_replay_pause()")
            .await
            .unwrap();
        let state = "SELECT pg_get_wal_replay_pause_state() = 'paused'";
        until(HANG, "the pause", async || {
            client.query_one(state, &[]).await.unwrap().get(0)
        })
        .await;
    }

    async fn resume_replay(&self) {
        let client = self.copy.connect().await;
        client
            .batch_execute("SELECT pg_wal_replay_resume()")
            .await
            .unwrap();
    }

    async fn on_standby(self: &Arc<Self>, act: fn(&mut Server) -> std::io::Result<()>) {
        let stage = self.clone();
        let acting = tokio::task::spawn_blocking(move || act(&mut stage.standby.lock().unwrap()));
        acting.await.unwrap().unwrap();
    }
}

async fn get(app: &Router, path: &str) -> Answer {
    let answer = timeout(HANG, fetch(app, path)).await.expect("an answer");
    assert_eq!(answer.status, 200, "{path}");
    answer
}

async fn settled(cache: &PgCache) {
    timeout(HANG, cache.settled()).await.expect("settled");
}

/// Until there are hits, whatever it takes.
async fn hit(cache: &PgCache, app: &Router, path: &str) -> Answer {
    let work = async {
        loop {
            let answer = get(app, path).await;
            if answer.is_hit() {
                return answer;
            }
            settled(cache).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(HANG, work).await.expect("a hit")
}

#[tokio::test]
async fn what_a_standby_lacks_is_not_served_to_others() {
    let stage = Stage::new().await;
    let (one, other) = (stage.cache(), stage.cache());
    let pool = stage.copy.pool(4);
    let apps = [stage.app(&one, &pool), stage.app(&other, &pool)];
    for (cache, app) in [(&one, &apps[0]), (&other, &apps[1])] {
        for path in ["/price/1", "/name/1"] {
            hit(cache, app, path).await;
        }
    }
    for round in 1..4 {
        let (old, new) = ((round - 1).to_string(), round.to_string());
        stage.pause_replay().await;
        stage.set_price(&stage.admin, round).await;
        for n in 0..10 {
            for (cache, app) in [(&one, &apps[0]), (&other, &apps[1])] {
                // what was there before, and what was never there
                for path in ["/price/1".to_owned(), format!("/price/{round}-{n}")] {
                    for _ in 0..2 {
                        let answer = get(app, &path).await;
                        let status = answer.cache_status();
                        assert!(
                            status.starts_with("fwd=") && !status.contains("collapsed"),
                            "{status}"
                        );
                        assert_eq!(answer.text(), old, "the handler's own");
                        settled(cache).await;
                    }
                }
                // it has all that this one depends on
                assert!(get(app, "/name/1").await.is_hit());
            }
        }
        let fresh = format!("/name/{}", round + 1);
        hit(&one, &apps[0], &fresh).await;
        // nor is it served to those who wait
        let mut many = JoinSet::new();
        for n in 0..20 {
            let app = apps[n % 2].clone();
            many.spawn(async move { get(&app, "/price/together").await });
        }
        while let Some(answer) = many.join_next().await {
            let answer = answer.unwrap();
            let status = answer.cache_status();
            assert!(
                !answer.is_hit() && !status.contains("collapsed"),
                "{status}"
            );
        }
        stage.resume_replay().await;
        stage.replayed().await;
        for (cache, app) in [(&one, &apps[0]), (&other, &apps[1])] {
            for path in ["/price/1", "/price/together"] {
                assert_eq!(hit(cache, app, path).await.text(), new);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_lags_no_hit_is_older_than_its_request() {
    let stage = Arc::new(Stage::new().await);
    let pool = stage.copy.pool(8);
    let caches = [stage.cache(), stage.cache()];
    let (committed, stop, hits) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    caches[0].ready().await.unwrap();
    let mut readers = JoinSet::new();
    for n in 0..6 {
        let app = stage.app(&caches[n % 2], &pool);
        let (committed, stop, hits) = (committed.clone(), stop.clone(), hits.clone());
        readers.spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                let least = committed.load(Ordering::SeqCst);
                let answer = get(&app, &format!("/price/{}", n / 3)).await;
                let status = answer.cache_status();
                if answer.is_hit() || status.contains("collapsed") {
                    let got: u64 = answer.text().parse().unwrap();
                    assert!(got >= least, "{got} after {least}: {status}");
                    hits.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
    }
    let writer = stage.database.connect().await;
    let mut price = 0;
    for round in 0..12 {
        for change in 0..8 {
            if change == round % 4 {
                stage.pause_replay().await;
            }
            price += 1;
            stage.set_price(&writer, price).await;
            committed.store(price, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(price % 5 * 10)).await;
            if change == 5 {
                stage.resume_replay().await;
            }
        }
        let before = hits.load(Ordering::SeqCst);
        until(HANG, "hits", async || {
            hits.load(Ordering::SeqCst) > before + 10
        })
        .await;
    }
    stop.store(true, Ordering::SeqCst);
    while let Some(reader) = readers.join_next().await {
        reader.unwrap();
    }
}

/// A handler that reads nothing, behind a layer with some settings.
fn constant(layer: PgCacheLayer) -> Router {
    Router::new().fallback_service(getting(async |_: Uri| "x").layer(layer))
}

#[tokio::test]
async fn a_replica_that_hangs_costs_the_deadline_and_then_nothing() {
    let stage = Arc::new(Stage::new().await);
    let cache = PgCache::builder(stage.database.pool(4))
        .lookup_deadline(Duration::from_millis(500))
        .build()
        .unwrap();
    let replicas = stage.copy.pool(6);
    let layer = cache.layer().ttl(MINUTE).snapshot_from(replicas.clone());
    let app = constant(layer);
    hit(&cache, &app, "/first").await;
    let mut taken = Vec::new();
    while taken.len() < 6 {
        taken.push(replicas.get().await.unwrap());
    }
    drop(taken);
    stage.on_standby(|standby| standby.pause()).await;
    // the handler answers, and what is there is served
    let mut many = JoinSet::new();
    for n in 0..40 {
        let app = app.clone();
        many.spawn(async move { get(&app, &format!("/many/{n}")).await });
    }
    let mut most = 0;
    while !many.is_empty() {
        let state = replicas.state();
        most = most.max(state.connections - state.idle_connections);
        match many.try_join_next() {
            Some(answer) => assert_eq!(answer.unwrap().cache_status(), NOT_STORED),
            None => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
    assert_eq!(most, 4, "the others are for handlers");
    for n in 0..10 {
        assert_eq!(get(&app, &format!("/{n}")).await.cache_status(), NOT_STORED);
        assert!(get(&app, "/first").await.is_hit());
    }
    let begun = Instant::now();
    for n in 10..40 {
        assert_eq!(get(&app, &format!("/{n}")).await.cache_status(), NOT_STORED);
    }
    // one of them may have tried again
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    stage.on_standby(|standby| standby.resume()).await;
    hit(&cache, &app, "/0").await;
}

#[tokio::test]
async fn a_replica_that_was_promoted_or_belongs_to_another_system_is_none() {
    let stage = Arc::new(Stage::new().await);
    let cache = stage.cache();
    let own = stage.copy.pool(4);
    let calls = Arc::new(AtomicU64::new(0));
    let counted = calls.clone();
    let handler = getting(move || {
        counted.fetch_add(1, Ordering::SeqCst);
        std::future::ready("x")
    });
    let layer = cache.layer().ttl(Duration::from_secs(1));
    let layer = layer.stale_while_revalidate(MINUTE).snapshot_from(own);
    let promoted = Router::new().fallback_service(handler.layer(layer));
    let is_stale = async || {
        let answer = get(&promoted, "/").await;
        answer.cache_status().starts_with("hit; ttl=-")
    };
    // the primary itself is no replica, and has all that it has
    let itself = constant(
        cache
            .layer()
            .ttl(MINUTE)
            .namespace("i")
            .snapshot_from(stage.database.pool(2)),
    );
    hit(&cache, &itself, "/").await;
    hit(&cache, &promoted, "/").await;

    for (namespace, options) in [
        ("a", Options::new().own_identity()),
        // from a copy of the same directory
        ("b", Options::new()),
    ] {
        let others = tokio::task::spawn_blocking(|| {
            let primary = Server::with(options).unwrap();
            let standby = primary.standby().unwrap();
            (primary, standby)
        });
        let (primary, standby) = others.await.unwrap();
        let database = primary.database().await;
        let copy = standby.copy_of(&database);
        let admin = database.connect().await;
        if namespace == "b" {
            // it has had more transactions than this one
            let many = "DO $$ BEGIN
                            FOR i IN 1..2000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP;
                        END $$";
            admin.batch_execute(many).await.unwrap();
        } else {
            // it has had as many, or a few less
            let sql = "SELECT pg_current_xact_id()::text::bigint";
            let number =
                async |client: &Client| -> i64 { client.query_one(sql, &[]).await.unwrap().get(0) };
            let ours = number(&stage.admin).await;
            while number(&admin).await < ours - 2 {}
        }
        admin.batch_execute("CREATE TABLE last ()").await.unwrap();
        until(HANG, "the other standby", async || {
            let Some(client) = copy.try_connect().await else {
                return false;
            };
            client.batch_execute("SELECT FROM last").await.is_ok()
        })
        .await;
        for (place, pool) in [("primary", database.pool(2)), ("standby", copy.pool(2))] {
            let layer = cache.layer().ttl(MINUTE);
            let layer = layer.namespace(format!("{namespace} {place}"));
            let app = constant(layer.snapshot_from(pool));
            for _ in 0..3 {
                let answer = get(&app, "/").await;
                let status = answer.cache_status();
                assert!(!answer.is_hit(), "{namespace} {place}: {status}");
                settled(&cache).await;
            }
        }
    }

    // as long as it is one, what is stale is refreshed in the background
    until(HANG, "a stale answer", is_stale).await;
    until(HANG, "a fresh answer", async || !is_stale().await).await;
    let client = stage.copy.connect().await;
    client.batch_execute("SELECT pg_promote()").await.unwrap();
    for n in 0..3 {
        assert_eq!(
            get(&promoted, &format!("/{n}")).await.cache_status(),
            NOT_STORED
        );
    }
    // nor what is refreshed in the background
    until(HANG, "a stale answer", is_stale).await;
    let before = calls.load(Ordering::SeqCst);
    for _ in 0..5 {
        settled(&cache).await;
        assert!(is_stale().await);
    }
    assert_eq!(calls.load(Ordering::SeqCst), before, "in vain");
    assert!(get(&itself, "/").await.is_hit());

    // a standby of the one that was promoted has the same system, and another history
    let made = stage.clone();
    let grandchild =
        tokio::task::spawn_blocking(move || made.standby.lock().unwrap().standby().unwrap());
    let grandchild = grandchild.await.unwrap();
    let copy = grandchild.copy_of(&stage.database);
    let layer = cache.layer().ttl(MINUTE).namespace("g");
    let app = constant(layer.snapshot_from(copy.pool(2)));
    for _ in 0..3 {
        let answer = get(&app, "/").await;
        assert!(!answer.is_hit(), "{}", answer.cache_status());
        settled(&cache).await;
    }
}

#[tokio::test]
async fn a_transaction_in_progress_is_not_seen() {
    let stage = Stage::new().await;
    let cache = stage.cache();
    let app = stage.app(&cache, &stage.copy.pool(4));
    hit(&cache, &app, "/name/1").await;
    // it is under way on the standby, too, and others have ended since
    let late = stage.database.connect().await;
    let change = "BEGIN; UPDATE item SET price = 1; SELECT pgcache.invalidate('price')";
    late.batch_execute(change).await.unwrap();
    for _ in 0..3 {
        let other = "CREATE TABLE other (); DROP TABLE other";
        stage.admin.batch_execute(other).await.unwrap();
    }
    stage.replayed().await;
    // does no harm
    assert_eq!(hit(&cache, &app, "/price/1").await.text(), "0");
    late.batch_execute("COMMIT").await.unwrap();
    let answer = get(&app, "/price/1").await;
    assert!(!answer.is_hit(), "{}", answer.cache_status());
    stage.replayed().await;
    assert_eq!(hit(&cache, &app, "/price/1").await.text(), "1");
}

#[tokio::test]
async fn a_replica_that_restarts_while_the_handler_runs_may_have_gone_back() {
    let stage = Arc::new(Stage::new().await);
    let cache = stage.cache();
    let (entered, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (inside, release) = (entered.clone(), go_on.clone());
    let handler = getting(move || {
        let (entered, go_on) = (entered.clone(), go_on.clone());
        async move {
            entered.notify_one();
            go_on.notified().await;
            "x"
        }
    });
    let layer = cache.layer().ttl(MINUTE).snapshot_from(stage.copy.pool(2));
    let app = Router::new().fallback_service(handler.layer(layer));
    for restarts in [true, false] {
        let asking = app.clone();
        let answer = tokio::spawn(async move { get(&asking, "/").await });
        timeout(HANG, inside.notified()).await.expect("the handler");
        if restarts {
            stage.on_standby(Server::kill9).await;
            stage.on_standby(Server::launch).await;
        }
        release.notify_one();
        assert!(answer.await.unwrap().is_stored());
        settled(&cache).await;
        assert_eq!(cache.stats().stored, u64::from(!restarts));
    }
    assert!(get(&app, "/").await.is_hit());
}
