//! `stale_if_store_down`: what is served from memory while the store cannot be asked, for how long, and what is not.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use http::{Method, StatusCode};
use test_support::http::{Answer, send};
use test_support::{Database, Server};
use tokio::time::{Instant, timeout};
use tower_pgcache::{Domain, PgCache, PgCacheLayer, Tenant, domain};

const MINUTE: Duration = Duration::from_secs(60);
/// Nothing here takes long; what takes as long as this hangs.
const HANG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(50);

const THINGS: Domain = domain!("things");

/// What a request that is passed on says.
const BYPASS: &str = "fwd=bypass; fwd-status=200; detail=store";

/// A value at every path: GET reads it, POST adds one. `cc` in the query is what the answer says of itself.
#[derive(Clone, Default)]
struct Origin {
    value: Arc<AtomicU64>,
    fails: Arc<AtomicBool>,
}

async fn answer(State(origin): State<Origin>, request: Request) -> Response {
    if origin.fails.load(Ordering::SeqCst) {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    if request.method() == Method::POST {
        origin.value.fetch_add(1, Ordering::SeqCst);
        return "done".into_response();
    }
    let says = request.uri().query().unwrap_or_default().to_owned();
    let value = origin.value.load(Ordering::SeqCst).to_string();
    match says.strip_prefix("cc=") {
        Some(says) => ([("cache-control", says.replace('+', ", "))], value).into_response(),
        None => value.into_response(),
    }
}

impl Origin {
    fn behind(&self, layer: PgCacheLayer) -> Router {
        let layer = layer.domain(THINGS).invalidates(THINGS);
        Router::new()
            .fallback(any(answer))
            .layer(layer)
            .with_state(self.clone())
    }
}

struct Stage {
    server: Arc<Mutex<Server>>,
    database: Database,
    cache: PgCache,
    origin: Origin,
}

impl Stage {
    async fn new() -> Self {
        let server = tokio::task::spawn_blocking(Server::start);
        let server = server.await.unwrap().unwrap();
        let database = server.database().await;
        let cache = PgCache::builder(database.pool(4))
            .change_deadline(SHORT)
            .cleanup_interval(Duration::ZERO)
            .build()
            .unwrap();
        cache.ready().await.unwrap();
        Self {
            server: Arc::new(Mutex::new(server)),
            database,
            cache,
            origin: Origin::default(),
        }
    }

    /// Answers may be served for so long while the store is down.
    fn app(&self, at_most: Duration) -> Router {
        let layer = self.cache.layer().ttl(MINUTE);
        self.origin.behind(layer.stale_if_store_down(at_most))
    }

    /// Asks until it is in memory.
    async fn warm(&self, app: &Router, path: &str) {
        let work = async {
            while !get(app, path).await.is_hit() {
                self.cache.settled().await;
            }
        };
        timeout(HANG, work).await.expect("a hit");
    }

    async fn act(&self, what: Act) {
        let server = self.server.clone();
        let done = tokio::task::spawn_blocking(move || what(&mut server.lock().unwrap()));
        done.await.unwrap().unwrap();
    }

    /// The store goes away; when this returns, nothing of it answers any more.
    async fn goes(&self, how: Act) {
        self.act(how).await;
        let app = self.origin.behind(self.cache.layer().ttl(MINUTE));
        let work = async { while get(&app, "/nowhere").await.cache_status() != BYPASS {} };
        timeout(HANG, work).await.expect("the end of the store");
    }

    /// A change by somebody else, who has told no instance.
    async fn change(&self) {
        let client = self.database.connect().await;
        let by_hand = "SELECT pgcache.invalidate('things')";
        self.origin.value.fetch_add(1, Ordering::SeqCst);
        client.batch_execute(by_hand).await.unwrap();
    }

    /// The instance has learnt that the store answers again.
    async fn recovered(&self) {
        let work = async {
            while self.cache.ready().await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        timeout(HANG, work).await.expect("the store");
    }
}

async fn ask(app: &Router, method: &str, path: &str, fields: &[(&str, &str)]) -> Answer {
    let mut request = http::Request::builder().method(method).uri(path);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::empty()).unwrap();
    timeout(HANG, send(app, request)).await.expect("an answer")
}

async fn get(app: &Router, path: &str) -> Answer {
    ask(app, "GET", path, &[]).await
}

fn is_unconfirmed(answer: &Answer) -> bool {
    answer.is_hit() && answer.cache_status().ends_with("; detail=store-down")
}

type Act = fn(&mut Server) -> io::Result<()>;

const WAYS: [(Act, Act); 2] = [
    (|server| server.pause(), |server| server.resume()),
    (Server::kill9, Server::launch),
];

#[tokio::test]
async fn hits_go_on_for_a_while_and_cost_nothing_and_end_when_the_store_is_back() {
    let stage = Stage::new().await;
    let (app, strict) = (stage.app(MINUTE), stage.app(Duration::from_nanos(1)));
    let without = stage.origin.behind(stage.cache.layer().ttl(MINUTE));
    for (go, come_back) in WAYS {
        for (app, path) in [(&app, "/a"), (&strict, "/b"), (&without, "/c")] {
            stage.warm(app, path).await;
        }
        let known = stage.origin.value.load(Ordering::SeqCst);
        stage.goes(go).await;
        // nobody told the cache
        stage.origin.value.fetch_add(1, Ordering::SeqCst);
        let before = stage.cache.stats();
        for _ in 0..10 {
            let answer = get(&app, "/a").await;
            assert!(is_unconfirmed(&answer), "{}", answer.cache_status());
            assert_eq!(answer.text(), known.to_string());
            assert!(answer.header("age").is_some());
            for (app, path) in [(&strict, "/b"), (&without, "/c"), (&app, "/not-known")] {
                let answer = get(app, path).await;
                assert_eq!(answer.cache_status(), BYPASS, "{path}");
                assert_eq!(answer.text(), (known + 1).to_string());
            }
        }
        let after = stage.cache.stats();
        assert_eq!(after.unconfirmed, before.unconfirmed + 10);
        assert_eq!(after.hits, before.hits + 10);
        // from here on only waiting takes time
        tokio::time::pause();
        let start = Instant::now();
        for _ in 0..1000 {
            assert!(is_unconfirmed(&get(&app, "/a").await));
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        tokio::time::resume();

        stage.act(come_back).await;
        stage.recovered().await;
        stage.change().await;
        for _ in 0..3 {
            let answer = get(&app, "/a").await;
            assert!(!answer.cache_status().contains("store-down"));
            assert_eq!(answer.text(), (known + 2).to_string());
            stage.cache.settled().await;
        }
    }
}

#[tokio::test]
async fn a_change_that_was_committed_meanwhile_is_seen_when_the_store_answers() {
    let stage = Stage::new().await;
    let app = stage.app(MINUTE);
    stage.warm(&app, "/").await;
    // the cache alone is cut off: its requests hang at a lock that nobody else needs
    let admin = stage.database.connect().await;
    admin
        .batch_execute("BEGIN; LOCK TABLE pgcache.epoch IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    for _ in 0..8 {
        assert!(is_unconfirmed(&get(&app, "/").await));
    }
    stage.origin.value.fetch_add(1, Ordering::SeqCst);
    admin
        .batch_execute("SELECT pgcache.invalidate('things')")
        .await
        .unwrap();
    assert_eq!(get(&app, "/").await.text(), "0");
    admin.batch_execute("COMMIT").await.unwrap();
    // it has not been told: it looks by itself, though everybody who asks has an answer
    let work = async {
        while is_unconfirmed(&get(&app, "/").await) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let begun = Instant::now();
    timeout(HANG, work).await.expect("the end of it");
    assert!(begun.elapsed() < Duration::from_secs(3));
    for _ in 0..3 {
        assert_eq!(get(&app, "/").await.text(), "1");
        stage.cache.settled().await;
    }
    assert!(get(&app, "/").await.is_hit());
}

#[tokio::test]
async fn the_time_counts_from_when_it_was_known_to_be_valid() {
    let stage = Stage::new().await;
    let limit = Duration::from_millis(1500);
    let app = stage.app(limit);
    stage.warm(&app, "/").await;
    // somewhen between these two
    let before = Instant::now();
    let confirmed = get(&app, "/").await;
    assert!(confirmed.is_hit() && !is_unconfirmed(&confirmed));
    let known = Instant::now();
    stage.goes(|server| server.pause()).await;
    let mut unconfirmed = 0;
    loop {
        let asked = known.elapsed();
        let answer = get(&app, "/").await;
        if !is_unconfirmed(&answer) {
            assert_eq!(answer.cache_status(), BYPASS);
            break;
        }
        assert!(asked < limit, "still served after {asked:?}");
        let age: u64 = answer.header("age").unwrap().parse().unwrap();
        assert!(age >= asked.as_secs(), "{age} after {asked:?}");
        unconfirmed += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // for most of the time, but for the first requests' deadlines
    assert!(unconfirmed > 20, "{unconfirmed}");
    assert!(before.elapsed() >= limit);
    assert_eq!(get(&app, "/").await.cache_status(), BYPASS);
    stage.act(|server| server.resume()).await;
}

#[tokio::test]
async fn a_pool_without_a_free_connection_is_enough() {
    let stage = Stage::new().await;
    let pool = stage.database.pool(1);
    let cache = PgCache::builder(pool.clone())
        .lookup_deadline(SHORT)
        .build()
        .unwrap();
    cache.ready().await.unwrap();
    let layer = cache.layer().ttl(MINUTE).stale_if_store_down(MINUTE);
    let app = stage.origin.behind(layer);
    let warm = async {
        while !get(&app, "/").await.is_hit() {
            cache.settled().await;
        }
    };
    timeout(HANG, warm).await.expect("a hit");
    let held = pool.get().await.unwrap();
    assert!(is_unconfirmed(&get(&app, "/").await));
    drop(held);
    let confirmed = get(&app, "/").await;
    assert!(confirmed.is_hit() && !is_unconfirmed(&confirmed));
}

#[tokio::test]
async fn what_this_instance_has_changed_is_not_served() {
    let stage = Stage::new().await;
    let app = stage.app(MINUTE);
    for (go, come_back) in WAYS {
        stage.warm(&app, "/list").await;
        stage.goes(go).await;
        assert!(is_unconfirmed(&get(&app, "/list").await));
        for _ in 0..3 {
            assert_eq!(ask(&app, "POST", "/item", &[]).await.text(), "done");
            let answer = get(&app, "/list").await;
            assert_eq!(answer.cache_status(), BYPASS);
            let now = stage.origin.value.load(Ordering::SeqCst);
            assert_eq!(answer.text(), now.to_string());
        }
        stage.act(come_back).await;
        // until it is written down, and afterwards
        let now = stage.origin.value.load(Ordering::SeqCst).to_string();
        let work = async {
            while !get(&app, "/list").await.is_hit() {
                assert_eq!(get(&app, "/list").await.text(), now);
            }
        };
        timeout(HANG, work).await.expect("a hit");
        assert_eq!(get(&app, "/list").await.text(), now);
        stage.cache.settled().await;
    }
}

#[tokio::test]
async fn what_is_known_to_have_changed_is_not_served() {
    let stage = Stage::new().await;
    let app = stage.app(MINUTE);
    stage.warm(&app, "/list").await;
    ask(&app, "POST", "/item", &[]).await;
    stage.goes(|server| server.pause()).await;
    let answer = get(&app, "/list").await;
    assert_eq!((answer.text(), answer.cache_status()), ("1", BYPASS));
    stage.act(|server| server.resume()).await;
}

#[tokio::test]
async fn it_ends_soon_however_long_the_store_was_away() {
    let stage = Stage::new().await;
    let app = stage.app(MINUTE);
    stage.warm(&app, "/").await;
    stage.goes(|server| server.pause()).await;
    for _ in 0..6 {
        assert!(is_unconfirmed(&get(&app, "/").await));
    }
    // by now nobody would ask the store for seconds
    tokio::time::pause();
    for _ in 0..8 {
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(is_unconfirmed(&get(&app, "/").await));
    }
    tokio::time::resume();
    stage.act(|server| server.resume()).await;
    let back = Instant::now();
    while is_unconfirmed(&get(&app, "/").await) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let took = back.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn what_asks_for_more_and_what_forbids_it_goes_to_the_handler() {
    let stage = Stage::new().await;
    let layer = stage.cache.layer().ttl(MINUTE).request_directives(true);
    let app = stage.origin.behind(layer.stale_if_store_down(MINUTE));
    let fresh = "/?cc=max-age=60";
    let paths = [
        fresh,
        "/?cc=max-age=60+must-revalidate",
        "/?cc=max-age=60+proxy-revalidate",
    ];
    for path in paths {
        stage.warm(&app, path).await;
    }
    let etag = get(&app, fresh).await.header("etag").unwrap().to_owned();
    stage.goes(Server::kill9).await;
    assert!(is_unconfirmed(&get(&app, fresh).await));
    for forbids in &paths[1..] {
        assert_eq!(get(&app, forbids).await.cache_status(), BYPASS, "{forbids}");
    }
    for asks in ["no-cache", "max-age=0", "min-fresh=3600"] {
        // an age of zero seconds is one that max-age=0 accepts
        if asks == "max-age=0" {
            tokio::time::sleep(Duration::from_millis(1100)).await;
        }
        let answer = ask(&app, "GET", fresh, &[("cache-control", asks)]).await;
        assert_eq!(answer.cache_status(), BYPASS, "{asks}");
    }
    let only = [("cache-control", "only-if-cached")];
    assert!(is_unconfirmed(&ask(&app, "GET", fresh, &only).await));
    let unknown = ask(&app, "GET", "/unknown", &only).await;
    assert_eq!(unknown.status, 504);
    // preconditions, ranges and HEAD are what they are for any hit
    let same = ask(&app, "GET", fresh, &[("if-none-match", &etag)]).await;
    assert_eq!(same.status, 304);
    assert!(is_unconfirmed(&same));
    let head = ask(&app, "HEAD", fresh, &[]).await;
    assert!(is_unconfirmed(&head) && head.body.is_empty());
}

#[tokio::test]
async fn what_has_expired_stands_in_for_an_error_where_that_is_asked_for() {
    let stage = Stage::new().await;
    let layer = stage.cache.layer().stale_if_store_down(MINUTE);
    let app = stage.origin.behind(layer);
    let paths: HashMap<&str, bool> = [
        ("/?cc=max-age=1+stale-if-error=60", true),
        ("/?cc=max-age=1", false),
        ("/?cc=max-age=1+stale-if-error=60+must-revalidate", false),
    ]
    .into();
    for path in paths.keys() {
        stage.warm(&app, path).await;
    }
    stage.goes(Server::kill9).await;
    for path in paths.keys() {
        let work = async {
            while is_unconfirmed(&get(&app, path).await) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(HANG, work).await.expect("it expires");
        // the handler answers
        assert_eq!(get(&app, path).await.cache_status(), BYPASS, "{path}");
    }
    stage.origin.fails.store(true, Ordering::SeqCst);
    for (path, stands_in) in paths {
        let answer = get(&app, path).await;
        let expected = if stands_in {
            (200, "fwd=stale; fwd-status=500; detail=stand-in")
        } else {
            (500, "fwd=bypass; fwd-status=500; detail=store")
        };
        let got = (answer.status.as_u16(), answer.cache_status());
        assert_eq!(got, expected, "{path}");
        if stands_in {
            let age: u64 = answer.header("age").unwrap().parse().unwrap();
            assert!(age >= 1);
        }
    }
    // and not what this instance has changed
    stage.origin.fails.store(false, Ordering::SeqCst);
    ask(&app, "POST", "/item", &[]).await;
    stage.origin.fails.store(true, Ordering::SeqCst);
    let answer = get(&app, "/?cc=max-age=1+stale-if-error=60").await;
    assert_eq!(answer.status, 500);
}

#[tokio::test]
async fn tenants_get_their_own() {
    let stage = Stage::new().await;
    let cache = PgCache::builder(stage.database.pool(4))
        .tenant(Tenant::trusted_header("x-tenant"))
        .build()
        .unwrap();
    let layer = cache.layer().ttl(MINUTE).stale_if_store_down(MINUTE);
    let app = stage.origin.behind(layer);
    let of = async |tenant| ask(&app, "GET", "/", &[("x-tenant", tenant)]).await;
    let warm = async {
        while !of("a").await.is_hit() {
            cache.settled().await;
        }
    };
    timeout(HANG, warm).await.expect("a hit");
    stage.goes(Server::kill9).await;
    assert!(is_unconfirmed(&of("a").await));
    assert_eq!(of("b").await.cache_status(), BYPASS);
    assert!(!get(&app, "/").await.is_hit());
}

#[tokio::test]
async fn of_two_layers_the_one_that_answers_decides() {
    let stage = Stage::new().await;
    let inner = stage.cache.layer().ttl(MINUTE).stale_if_store_down(MINUTE);
    let outer = stage.cache.layer().ttl(MINUTE);
    let app = stage.origin.behind(inner).layer(outer);
    let swapped = stage
        .origin
        .behind(stage.cache.layer().ttl(MINUTE))
        .layer(stage.cache.layer().ttl(MINUTE).stale_if_store_down(MINUTE));
    for (app, path) in [(&app, "/a"), (&swapped, "/b")] {
        stage.warm(app, path).await;
    }
    stage.goes(Server::kill9).await;
    for _ in 0..8 {
        let answer = get(&app, "/a").await;
        assert!(is_unconfirmed(&answer), "{}", answer.cache_status());
        assert_eq!(get(&swapped, "/b").await.cache_status(), BYPASS);
    }
}

#[tokio::test]
async fn a_database_that_says_that_there_is_no_epoch_has_been_asked() {
    let stage = Stage::new().await;
    let app = stage.app(MINUTE);
    stage.warm(&app, "/").await;
    let admin = stage.database.connect().await;
    // as after a crash with a prepared transaction: there is no epoch, and there must be no new one
    admin
        .batch_execute("BEGIN; PREPARE TRANSACTION 'pending'; DELETE FROM pgcache.epoch")
        .await
        .unwrap();
    for _ in 0..8 {
        assert_eq!(get(&app, "/").await.cache_status(), BYPASS);
    }
    // nor later, when it cannot be asked at all
    stage.goes(Server::kill9).await;
    for _ in 0..8 {
        assert_eq!(get(&app, "/").await.cache_status(), BYPASS);
    }
}

#[test]
fn a_time_that_makes_no_sense_is_a_mistake() {
    for (time, mend) in [
        (Duration::ZERO, "leave it out"),
        (Duration::MAX, "more than a day"),
    ] {
        let layer = PgCache::disabled().layer().stale_if_store_down(time);
        let error = layer.check().unwrap_err().to_string();
        let named = error.contains("stale_if_store_down") && error.contains(mend);
        assert!(named, "{error}");
    }
    let day = Duration::from_secs(24 * 3600);
    let layer = PgCache::disabled().layer().stale_if_store_down(day);
    assert!(layer.check().is_ok());
}
