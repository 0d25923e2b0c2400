//! How much of what is read comes from the cache, and how much of it is not true any more, under a steady rate of
//! writes: 100 item pages, read as often as each other, and a list of all, every tenth time.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Path;
use axum::routing::get;
use test_support::http::get as fetch;
use test_support::{Database, Server};
use tokio::time::{MissedTickBehavior, interval};
use tower_pgcache::bb8::Pool;
use tower_pgcache::bb8_postgres::PostgresConnectionManager;
use tower_pgcache::tokio_postgres::NoTls;
use tower_pgcache::{Domain, PgCache, Watch, domain};

use crate::options::Options;
use test_support::random::Random;

type Db = Pool<PostgresConnectionManager<NoTls>>;

const PRODUCT: Domain = domain!("product");
const PRODUCTS: usize = 100;
const WRITES_PER_SECOND: f64 = 50.0;
const READERS: usize = 8;
const READS_PER_SECOND: f64 = 1000.0;
const HOUR: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone, Copy)]
enum Candidate {
    Ttl(Duration),
    Domains,
    Entities,
}

const CANDIDATES: [(&str, Candidate); 4] = [
    ("TTL of 1 s", Candidate::Ttl(Duration::from_secs(1))),
    ("TTL of 100 ms", Candidate::Ttl(Duration::from_millis(100))),
    ("domain", Candidate::Domains),
    ("entities", Candidate::Entities),
];

/// What has been committed for sure: a later answer that knows less is stale.
struct Truth {
    prices: Vec<AtomicI64>,
    sum: AtomicI64,
}

#[derive(Debug, Default)]
struct Tally {
    items: AtomicU64,
    item_hits: AtomicU64,
    lists: AtomicU64,
    list_hits: AtomicU64,
    stale: AtomicU64,
}

pub(crate) async fn measure(server: &Server, options: &Options) -> String {
    let mut report = format!(
        "{WRITES_PER_SECOND} writes/s to {PRODUCTS} products, {READS_PER_SECOND} reads/s of {PRODUCTS} item pages and (every tenth) of a list:\n\n\
         | invalidated by | hit rate, items | hit rate, list | hit rate, all | stale answers |\n\
         |---|--:|--:|--:|--:|\n"
    );
    for (name, candidate) in CANDIDATES {
        let total = Tally::default();
        for _ in 0..options.rounds {
            turn(server, candidate, 2 * options.turn(), &total).await;
        }
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        let (items, lists) = (get(&total.items), get(&total.lists));
        let (item_hits, list_hits) = (get(&total.item_hits), get(&total.list_hits));
        report += &format!(
            "| {name} | {:.1} % | {:.1} % | {:.1} % | {} of {} ({:.1} %) |\n",
            100.0 * item_hits / items,
            100.0 * list_hits / lists,
            100.0 * (item_hits + list_hits) / (items + lists),
            get(&total.stale),
            items + lists,
            100.0 * get(&total.stale) / (items + lists),
        );
    }
    report
}

async fn turn(server: &Server, candidate: Candidate, time: Duration, tally: &Tally) {
    let database = server.database().await;
    let sql = database.connect().await;
    sql.batch_execute(&format!(
        "CREATE TABLE product (id integer PRIMARY KEY, price bigint NOT NULL) WITH (fillfactor = 50);
         INSERT INTO product SELECT n, 0 FROM generate_series(0, {PRODUCTS} - 1) AS n"
    ))
    .await
    .unwrap();
    let cache = PgCache::new(database.pool(8));
    let watch = Watch::table("product").domain(PRODUCT);
    match candidate {
        Candidate::Ttl(_) => cache.ready().await.unwrap(),
        Candidate::Domains => cache.watch(watch).await.unwrap(),
        Candidate::Entities => cache.watch(watch.entity_column("id")).await.unwrap(),
    }
    let app = app(&cache, candidate, database.pool(8));
    let truth = Arc::new(Truth {
        prices: (0..PRODUCTS).map(|_| AtomicI64::new(0)).collect(),
        sum: AtomicI64::new(0),
    });

    let until = Instant::now() + time;
    let writer = write(&database, &truth, until);
    let readers = (0..READERS).map(|number| read(&app, &truth, tally, until, number));
    tokio::join!(writer, futures_util::future::join_all(readers));
    cache.settled().await;
}

fn app(cache: &PgCache, candidate: Candidate, db: Db) -> Router {
    let layer = cache.layer();
    let (item, list) = match candidate {
        Candidate::Ttl(ttl) => (layer.clone().ttl(ttl), layer.ttl(ttl)),
        Candidate::Domains => (
            layer.clone().ttl(HOUR).domain(PRODUCT),
            layer.ttl(HOUR).domain(PRODUCT),
        ),
        Candidate::Entities => (
            layer.clone().ttl(HOUR).entity(PRODUCT, "id"),
            layer.ttl(HOUR).domain(PRODUCT),
        ),
    };
    let all = db.clone();
    Router::new()
        .route(
            "/products/{id}",
            get(move |Path(id): Path<i32>| {
                number(db, "SELECT price FROM product WHERE id = $1", Some(id))
            })
            .layer(item),
        )
        .route(
            "/products",
            get(move || number(all, "SELECT sum(price)::bigint FROM product", None)).layer(list),
        )
}

async fn number(db: Db, query: &str, id: Option<i32>) -> String {
    let sql = db.get().await.unwrap();
    let row = match id {
        Some(id) => sql.query_one(query, &[&id]).await,
        None => sql.query_one(query, &[]).await,
    };
    row.unwrap().get::<_, i64>(0).to_string()
}

async fn write(database: &Database, truth: &Truth, until: Instant) {
    let sql = database.connect().await;
    let update = "UPDATE product SET price = price + 1 WHERE id = $1 RETURNING price";
    let update = sql.prepare(update).await.unwrap();
    let mut random = Random::new(0, READERS as u64);
    let mut clock = interval(Duration::from_secs_f64(1.0 / WRITES_PER_SECOND));
    while Instant::now() < until {
        clock.tick().await;
        let at = random.below(PRODUCTS);
        let id = i32::try_from(at).unwrap();
        let row = sql.query_one(&update, &[&id]).await.unwrap();
        truth.prices[at].store(row.get(0), Ordering::SeqCst);
        truth.sum.fetch_add(1, Ordering::SeqCst);
    }
}

async fn read(app: &Router, truth: &Truth, tally: &Tally, until: Instant, number: usize) {
    let mut random = Random::new(0, number as u64);
    let mut clock = interval(Duration::from_secs_f64(READERS as f64 / READS_PER_SECOND));
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while Instant::now() < until {
        clock.tick().await;
        let is_list = random.below(10) == 0;
        let at = random.below(PRODUCTS);
        let (uri, known, reads, hits) = match is_list {
            true => (
                "/products".to_owned(),
                &truth.sum,
                &tally.lists,
                &tally.list_hits,
            ),
            false => (
                format!("/products/{at}"),
                &truth.prices[at],
                &tally.items,
                &tally.item_hits,
            ),
        };
        let known = known.load(Ordering::SeqCst);
        let answer = fetch(app, &uri).await;
        let count = |counter: &AtomicU64, whether: bool| {
            counter.fetch_add(u64::from(whether), Ordering::Relaxed);
        };
        count(reads, true);
        count(hits, answer.is_hit());
        count(&tally.stale, answer.text().parse::<i64>().unwrap() < known);
    }
}
