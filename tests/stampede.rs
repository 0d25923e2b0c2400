//! Many requests for what is not stored: one of them has it computed.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::future::pending;
use std::io;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::response::IntoResponse;
use axum::routing::get;
use test_support::Database;
use test_support::http::{Answer, get as fetch};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout};
use tower_pgcache::tokio_postgres::NoTls;
use tower_pgcache::{Domain, PgCache, PgCacheBuilder, domain};

const HANG: Duration = Duration::from_secs(30);
const MINUTE: Duration = Duration::from_secs(60);
const ITEM: Domain = domain!("item");

/// A handler that counts its calls and answers when it may.
#[derive(Clone)]
struct Handler {
    calls: Arc<AtomicU64>,
    open: Arc<watch::Sender<bool>>,
    cache_control: &'static str,
}

impl Handler {
    fn closed(cache_control: &'static str) -> Self {
        Self {
            calls: Arc::default(),
            open: Arc::new(watch::Sender::new(false)),
            cache_control,
        }
    }

    async fn answer(self) -> impl IntoResponse {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        let mut open = self.open.subscribe();
        open.wait_for(|open| *open).await.unwrap();
        ([("cache-control", self.cache_control)], call.to_string())
    }

    async fn called(&self, times: u64) {
        let called = async {
            while self.calls.load(Ordering::SeqCst) < times {
                tokio::task::yield_now().await;
            }
        };
        timeout(HANG, called).await.expect("calls of the handler");
    }

    fn behind(&self, cache: &PgCache) -> Router {
        let handler = self.clone();
        Router::new()
            .route("/", get(move || handler.answer()))
            .layer(cache.layer().ttl(MINUTE).domain(ITEM))
    }
}

async fn instance(database: &Database, memory: usize) -> PgCache {
    built(PgCache::builder(database.pool(4)).memory(memory)).await
}

async fn built(builder: PgCacheBuilder) -> PgCache {
    let cache = builder
        .lookup_deadline(HANG)
        .lease_wait(HANG)
        .build()
        .unwrap();
    cache.ready().await.unwrap();
    cache
}

fn request(app: &Router) -> JoinHandle<Answer> {
    let app = app.clone();
    tokio::spawn(async move { fetch(&app, "/").await })
}

async fn answers(requests: Vec<JoinHandle<Answer>>) -> Vec<Answer> {
    let mut answers = Vec::new();
    for request in requests {
        let answer = timeout(HANG, request).await.expect("an answer in time");
        answers.push(answer.unwrap());
    }
    answers
}

/// How many requests wait for a lease or a flight cannot be seen; that the database is idle can.
async fn all_wait(caches: &[&PgCache], requests: usize) {
    let waiting = async {
        while caches
            .iter()
            .map(|cache| cache.stats().waiting)
            .sum::<u64>()
            < requests as u64
        {
            tokio::task::yield_now().await;
        }
    };
    timeout(HANG, waiting).await.expect("requests that wait");
}

#[tokio::test]
async fn fifty_misses_on_three_instances_are_one_call() {
    for memory in [0, 1 << 20] {
        let database = test_support::database().await;
        let handler = Handler::closed("max-age=60");
        let caches = [
            instance(&database, memory).await,
            instance(&database, memory).await,
            instance(&database, memory).await,
        ];
        let apps: Vec<Router> = caches.iter().map(|cache| handler.behind(cache)).collect();
        let requests = (0..50).map(|n| request(&apps[n % 3])).collect();
        handler.called(1).await;
        all_wait(&caches.each_ref(), 49).await;
        handler.open.send_replace(true);
        for answer in answers(requests).await {
            assert_eq!(answer.text(), "0");
        }
        assert_eq!(handler.calls.load(Ordering::SeqCst), 1, "memory {memory}");
    }
}

#[tokio::test]
async fn followers_are_told_that_they_were_collapsed() {
    let database = test_support::database().await;
    let handler = Handler::closed("max-age=60");
    let cache = instance(&database, 0).await;
    let app = handler.behind(&cache);
    let first = request(&app);
    handler.called(1).await;
    let second = request(&app);
    all_wait(&[&cache], 1).await;
    handler.open.send_replace(true);
    let answers = answers(vec![first, second]).await;
    assert!(answers[0].is_stored());
    assert_eq!(answers[1].cache_status(), "fwd=uri-miss; collapsed");
    assert!(answers[1].header("age").is_some());
}

#[tokio::test]
async fn what_is_not_stored_is_not_waited_for() {
    let database = test_support::database().await;
    let handler = Handler::closed("no-store");
    let cache = instance(&database, 0).await;
    let app = handler.behind(&cache);
    let first = request(&app);
    handler.called(1).await;
    let others: Vec<_> = (0..5).map(|_| request(&app)).collect();
    all_wait(&[&cache], 5).await;
    handler.open.send_replace(true);
    answers(vec![first]).await;
    assert_eq!(answers(others).await.len(), 5);
    assert_eq!(handler.calls.load(Ordering::SeqCst), 6);

    // for a while nobody waits for this one
    handler.open.send_replace(false);
    let together: Vec<_> = (0..5).map(|_| request(&app)).collect();
    handler.called(11).await;
    handler.open.send_replace(true);
    answers(together).await;
}

#[tokio::test]
async fn a_follower_takes_over_from_a_client_that_has_left() {
    let database = test_support::database().await;
    let handler = Handler::closed("max-age=60");
    let caches = [instance(&database, 0).await, instance(&database, 0).await];
    let apps: Vec<Router> = caches.iter().map(|cache| handler.behind(cache)).collect();
    let first = request(&apps[0]);
    handler.called(1).await;
    let others = vec![request(&apps[0]), request(&apps[1])];
    all_wait(&caches.each_ref(), 2).await;
    first.abort();
    handler.called(2).await;
    handler.open.send_replace(true);
    for answer in answers(others).await {
        assert_eq!(answer.text(), "1");
    }
    assert_eq!(handler.calls.load(Ordering::SeqCst), 2);
}

/// The change comes while the handler computes: those who came after it must not get what was computed before, those
/// who came before may.
#[tokio::test]
async fn those_who_waited_judge_as_of_their_own_arrival() {
    for memory in [0, 1 << 20] {
        let database = test_support::database().await;
        let handler = Handler::closed("max-age=60");
        let cache = instance(&database, memory).await;
        let app = handler.behind(&cache);
        let first = request(&app);
        handler.called(1).await;
        let early = request(&app);
        all_wait(&[&cache], 1).await;
        let sql = database.connect().await;
        sql.batch_execute("SELECT pgcache.invalidate('item')")
            .await
            .unwrap();
        let late = request(&app);
        all_wait(&[&cache], 2).await;
        handler.open.send_replace(true);
        let answers = answers(vec![first, early, late]).await;
        assert_eq!(answers[0].text(), "0");
        assert_eq!(answers[1].text(), "0", "it arrived before the change");
        assert_eq!(answers[2].text(), "1", "it arrived after the change");
    }
}

/// Under steady changes an answer is never good "now", and still nobody starves.
#[tokio::test]
async fn steady_changes_starve_nobody() {
    let database = test_support::database().await;
    let cache = instance(&database, 1 << 20).await;
    let calls = Arc::new(AtomicU64::new(0));
    let counted = calls.clone();
    let changer = Arc::new(database.connect().await);
    let handler = move || async move {
        // a change before the answer is there, each time
        changer
            .batch_execute("SELECT pgcache.invalidate('item')")
            .await
            .unwrap();
        counted.fetch_add(1, Ordering::SeqCst).to_string()
    };
    let app = Router::new()
        .route("/", get(handler))
        .layer(cache.layer().ttl(MINUTE).domain(ITEM));
    let mut requests = JoinSet::new();
    for _ in 0..50 {
        let app = app.clone();
        requests.spawn(async move { fetch(&app, "/").await });
    }
    let all = timeout(HANG, requests.join_all()).await;
    assert_eq!(all.expect("answers in time").len(), 50);
    let calls = calls.load(Ordering::SeqCst);
    assert!(calls < 50, "{calls} calls for 50 requests");
}

#[tokio::test]
async fn the_lease_of_an_instance_that_died_expires() {
    let database = test_support::database().await;
    let handler = Handler::closed("max-age=60");
    handler.open.send_replace(true);
    let cache = instance(&database, 0).await;
    let app = handler.behind(&cache);
    let sql = database.connect().await;
    // learns its key
    request(&app).await.unwrap();
    cache.settled().await;
    let died = "INSERT INTO pgcache.lease (key, holder, expires_at)
                SELECT key, 1, clock_timestamp() + interval '1 s' FROM pgcache.entry
                ON CONFLICT (place) DO UPDATE SET holder = 1, expires_at = EXCLUDED.expires_at, released = NULL;
                DELETE FROM pgcache.entry";
    sql.batch_execute(died).await.unwrap();
    let until = "SELECT extract(epoch FROM expires_at)::float8 FROM pgcache.lease";
    let until: f64 = sql.query_one(until, &[]).await.unwrap().get(0);
    let answer = timeout(HANG, request(&app)).await.expect("in time");
    assert!(answer.unwrap().is_stored());
    let now = "SELECT extract(epoch FROM clock_timestamp())::float8";
    let now: f64 = sql.query_one(now, &[]).await.unwrap().get(0);
    assert!(now >= until, "not before");
    assert_eq!(handler.calls.load(Ordering::SeqCst), 2);
}

/// As after a restored dump, or for a snapshot with many running transactions: what was released looks unseen forever.
#[tokio::test]
async fn an_answer_that_never_comes_into_sight_is_not_waited_for_beyond_the_patience() {
    let database = test_support::database().await;
    let handler = Handler::closed("max-age=60");
    handler.open.send_replace(true);
    let cache = PgCache::builder(database.pool(4))
        .lookup_deadline(HANG)
        .lease_wait(Duration::from_millis(200))
        .memory(0)
        .build()
        .unwrap();
    let app = handler.behind(&cache);
    let sql = database.connect().await;
    request(&app).await.unwrap();
    cache.settled().await;
    // one that has begun, and stays in progress as far as any snapshot can tell
    let running = database.connect().await;
    running.batch_execute("BEGIN").await.unwrap();
    let running: &str = &running
        .query_one("SELECT pg_current_xact_id()::text", &[])
        .await
        .unwrap()
        .get::<_, String>(0);
    for released in [running, "999999999999"] {
        let unseen = format!(
            "INSERT INTO pgcache.lease (key, holder, expires_at, released)
             SELECT key, 1, clock_timestamp(), '{released}' FROM pgcache.entry
                 ON CONFLICT (place) DO UPDATE SET holder = 1, released = EXCLUDED.released;
             UPDATE pgcache.entry SET epoch = gen_random_uuid()"
        );
        sql.batch_execute(&unseen).await.unwrap();
        let answer = timeout(HANG, request(&app)).await.expect("in time");
        assert!(answer.unwrap().is_stored());
        cache.settled().await;
    }
    assert_eq!(handler.calls.load(Ordering::SeqCst), 3);
}

/// Tells the process that dies which database it is for.
const LEADER: &str = "STAMPEDE_LEADER";
const CALLED: &str = "the handler is called";
/// Short against what others wait at most, and long enough that the process dies before.
const LIFE: Duration = Duration::from_secs(3);

/// No test: what the next one runs in a process of its own, and kills. Its handler never ends.
#[tokio::test]
async fn leader() {
    let Ok(url) = std::env::var(LEADER) else {
        return;
    };
    std::thread::spawn(|| {
        // ends with whoever started it
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        std::process::exit(0);
    });
    let builder = PgCacheBuilder::connecting(url.parse().unwrap(), NoTls);
    let cache = built(builder.lease_life(LIFE)).await;
    let handler = || async {
        println!("{CALLED}");
        pending::<String>().await
    };
    let app = Router::new()
        .route("/", get(handler))
        .layer(cache.layer().ttl(MINUTE).domain(ITEM));
    fetch(&app, "/").await;
}

/// A process in the middle of its handler's work.
async fn leading(database: &Database) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "leader", "--nocapture"])
        .env(LEADER, database.url())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let called = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains(CALLED) {
                return;
            }
        }
        panic!("the process has ended by itself");
    };
    timeout(HANG, called).await.expect("a call of the handler");
    child
}

#[tokio::test]
async fn when_the_process_that_fills_is_killed_one_of_the_others_takes_over() {
    for memory in [0, 1 << 20] {
        let database = test_support::database().await;
        let sql = database.connect().await;
        let handler = Handler::closed("max-age=60");
        handler.open.send_replace(true);
        let caches = [
            instance(&database, memory).await,
            instance(&database, memory).await,
        ];
        let apps: Vec<Router> = caches.iter().map(|cache| handler.behind(cache)).collect();
        let mut process = leading(&database).await;
        let requests = (0..10).map(|n| request(&apps[n % 2])).collect();
        all_wait(&caches.each_ref(), 10).await;

        process.kill().await.unwrap();
        let killed = Instant::now();
        let calls = handler.calls.load(Ordering::SeqCst);
        let held =
            "SELECT coalesce(bool_and(released IS NULL AND expires_at > clock_timestamp()), false)
                      FROM pgcache.lease";
        let held: bool = sql.query_one(held, &[]).await.unwrap().get(0);
        assert!(held, "it has died before its lease, and given nothing back");
        assert_eq!(calls, 0);

        for answer in answers(requests).await {
            assert_eq!((answer.status.as_u16(), answer.text()), (200, "0"));
        }
        let took = killed.elapsed();
        assert!(took < HANG / 2, "{took:?} for a lease of {LIFE:?}");
        assert_eq!(handler.calls.load(Ordering::SeqCst), 1, "memory {memory}");
    }
}

#[tokio::test]
async fn without_rights_on_leases_every_instance_fills_by_itself() {
    let database = test_support::database().await;
    let handler = Handler::closed("max-age=60");
    handler.open.send_replace(true);
    let cache = instance(&database, 0).await;
    let sql = database.connect().await;
    sql.batch_execute("ALTER TABLE pgcache.lease RENAME TO lost")
        .await
        .unwrap();
    let app = handler.behind(&cache);
    let answer = timeout(HANG, request(&app)).await.expect("in time");
    assert_eq!(answer.unwrap().status, 200);
}

/// An answer that took its time is refreshed while it is fresh, by one of all who ask.
#[tokio::test]
async fn an_answer_that_is_about_to_expire_is_refreshed_by_one_in_the_background() {
    for memory in [0, 1 << 20] {
        let database = test_support::database().await;
        let handler = Handler::closed("max-age=60");
        handler.open.send_replace(true);
        let caches = [
            instance(&database, memory).await,
            instance(&database, memory).await,
        ];
        let route = |cache: &PgCache, beta| {
            let handler = handler.clone();
            Router::new()
                .route("/", get(move || handler.answer()))
                .layer(cache.layer().ttl(MINUTE).domain(ITEM).early_refresh(beta))
        };
        let patient = route(&caches[0], f64::MIN_POSITIVE);
        for _ in 0..20 {
            fetch(&patient, "/").await;
            caches[0].settled().await;
        }
        assert_eq!(handler.calls.load(Ordering::SeqCst), 1);

        // every request finds that it is high time
        let apps: Vec<Router> = caches.iter().map(|cache| route(cache, 1e12)).collect();
        handler.open.send_replace(false);
        let requests: Vec<_> = (0..10).map(|n| request(&apps[n % 2])).collect();
        for answer in answers(requests).await {
            assert!(answer.is_hit());
            assert_eq!(answer.text(), "0");
        }
        handler.called(2).await;
        handler.open.send_replace(true);
        for cache in &caches {
            cache.settled().await;
        }
        assert_eq!(handler.calls.load(Ordering::SeqCst), 2, "memory {memory}");
        let answer = fetch(&patient, "/").await;
        assert!(answer.is_hit());
        if memory == 0 {
            assert_eq!(answer.text(), "1");
        }
    }
}

#[tokio::test]
async fn a_lease_that_is_granted_too_late_is_given_back() {
    let database = test_support::database().await;
    let cache = PgCache::builder(database.pool(4)).build().unwrap();
    cache.ready().await.unwrap();
    let handler = Handler::closed("max-age=60");
    handler.open.send_replace(true);
    let app = handler.behind(&cache);
    let mut admin = database.connect().await;
    let lock = admin.transaction().await.unwrap();
    // lookups go on, and claims wait for longer than anybody waits for them
    lock.batch_execute("LOCK TABLE pgcache.lease IN SHARE ROW EXCLUSIVE MODE")
        .await
        .unwrap();
    assert_eq!(fetch(&app, "/").await.text(), "0");
    lock.commit().await.unwrap();

    let held = "SELECT count(*) FROM pgcache.lease WHERE released IS NULL";
    let waiting = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND state = 'active' AND pid <> pg_backend_pid()";
    let given_back = async {
        for query in [waiting, held] {
            while admin.query_one(query, &[]).await.unwrap().get::<_, i64>(0) > 0 {}
        }
    };
    // sooner than it would expire
    let within = Duration::from_secs(5);
    timeout(within, given_back).await.expect("no lease");
}

#[tokio::test]
async fn a_lease_that_cannot_be_given_back_is_given_back_later() {
    let database = test_support::database().await;
    let cache = instance(&database, 0).await;
    let handler = Handler::closed("no-store");
    handler.open.send_replace(true);
    let app = handler.behind(&cache);
    let admin = database.connect().await;
    let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$;
                  CREATE SEQUENCE refused;
                  CREATE TRIGGER refuse BEFORE DELETE ON pgcache.lease FOR EACH STATEMENT
                      WHEN (nextval('refused') > 0) EXECUTE FUNCTION refuse()";
    admin.batch_execute(refuse).await.unwrap();
    assert_eq!(fetch(&app, "/").await.text(), "0");
    let count = async |query: &str| -> i64 { admin.query_one(query, &[]).await.unwrap().get(0) };
    let given_back = async {
        while count("SELECT last_value - (NOT is_called)::int FROM refused").await == 0 {}
        assert_eq!(count("SELECT count(*) FROM pgcache.lease").await, 1);
        let allow = "DROP TRIGGER refuse ON pgcache.lease";
        admin.batch_execute(allow).await.unwrap();
        while count("SELECT count(*) FROM pgcache.lease").await > 0 {}
    };
    // sooner than it would expire
    let within = Duration::from_secs(5);
    timeout(within, given_back).await.expect("no lease");
}
