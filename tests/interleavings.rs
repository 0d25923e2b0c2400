//! Rule 2, one interleaving at a time: each is steered with real connections and a handler that stops where the
//! test wants it to.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use test_support::Database;
use test_support::http::{Answer, get as fetch};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use tower_pgcache::{Domain, PgCache, domain};

const ITEM: Domain = domain!("item");
const MINUTE: Duration = Duration::from_secs(60);

/// A service whose one route reads a row, and stops before and after reading until it is let go.
struct Stage {
    app: Router,
    cache: PgCache,
    stops: mpsc::UnboundedReceiver<Stop>,
    gates: Gates,
    writer: Client,
    database: Database,
}

#[derive(Clone)]
struct Gates {
    before_read: Arc<Semaphore>,
    after_read: Arc<Semaphore>,
}

#[derive(Debug, PartialEq)]
enum Stop {
    BeforeRead,
    AfterRead,
}

impl Stage {
    async fn new() -> Self {
        let database = test_support::database().await;
        let writer = database.connect().await;
        writer
            .batch_execute(
                "CREATE TABLE item (id int PRIMARY KEY, price int); INSERT INTO item VALUES (1, 1)",
            )
            .await
            .unwrap();
        let cache = PgCache::builder(database.pool(4))
            .lookup_deadline(MINUTE)
            .build()
            .unwrap();
        cache.ready().await.unwrap();
        let gates = Gates {
            before_read: Arc::new(Semaphore::new(0)),
            after_read: Arc::new(Semaphore::new(0)),
        };
        let (sender, stops) = mpsc::unbounded_channel();
        let reader = Arc::new(database.connect().await);
        let handler = {
            let gates = gates.clone();
            move |State(reader): State<Arc<Client>>| async move {
                sender.send(Stop::BeforeRead).unwrap();
                gates.before_read.acquire().await.unwrap().forget();
                let price: i32 = reader
                    .query_one("SELECT price FROM item WHERE id = 1", &[])
                    .await
                    .unwrap()
                    .get(0);
                sender.send(Stop::AfterRead).unwrap();
                gates.after_read.acquire().await.unwrap().forget();
                price.to_string()
            }
        };
        let app = Router::new()
            .route(
                "/item",
                get(handler).layer(cache.layer().ttl(MINUTE).domain(ITEM)),
            )
            .with_state(reader);
        Self {
            app,
            cache,
            stops,
            gates,
            writer,
            database,
        }
    }

    /// A request that the test meets at both stops.
    fn request(&self) -> JoinHandle<Answer> {
        let app = self.app.clone();
        tokio::spawn(async move { fetch(&app, "/item").await })
    }

    async fn reach(&mut self, stop: Stop) {
        assert_eq!(self.stops.recv().await, Some(stop));
    }

    fn let_read(&self) {
        self.gates.before_read.add_permits(1);
    }

    fn let_answer(&self) {
        self.gates.after_read.add_permits(1);
    }

    /// A request that nothing stops.
    async fn answer(&self) -> Answer {
        self.let_read();
        self.let_answer();
        let answer = fetch(&self.app, "/item").await;
        self.cache.settled().await;
        if answer.is_hit() {
            // the permits were not used
            self.gates.before_read.acquire().await.unwrap().forget();
            self.gates.after_read.acquire().await.unwrap().forget();
        }
        answer
    }

    async fn set_price(client: &Client, price: i32) {
        client
            .execute("UPDATE item SET price = $1 WHERE id = 1", &[&price])
            .await
            .unwrap();
        client
            .query("SELECT pgcache.invalidate('item')", &[])
            .await
            .unwrap();
    }

    /// What the next request gets must be this price, and from the handler if so said.
    async fn expect(&self, price: &str, hit: bool) {
        let answer = self.answer().await;
        assert_eq!((answer.text(), answer.is_hit()), (price, hit));
    }
}

#[tokio::test]
async fn a_commit_between_snapshot_and_read_makes_the_entry_invalid_and_nothing_worse() {
    let mut stage = Stage::new().await;
    let request = stage.request();
    stage.reach(Stop::BeforeRead).await;
    stage.writer.batch_execute("BEGIN").await.unwrap();
    Stage::set_price(&stage.writer, 2).await;
    stage.writer.batch_execute("COMMIT").await.unwrap();
    stage.let_read();
    stage.let_answer();
    assert_eq!(request.await.unwrap().text(), "2");
    stage.cache.settled().await;
    // conservative: the answer was up to date, but nobody can know
    stage.expect("2", false).await;
    stage.expect("2", true).await;
}

#[tokio::test]
async fn a_commit_between_read_and_store_is_not_outlived() {
    let mut stage = Stage::new().await;
    let request = stage.request();
    stage.reach(Stop::BeforeRead).await;
    stage.let_read();
    stage.reach(Stop::AfterRead).await;
    stage.writer.batch_execute("BEGIN").await.unwrap();
    Stage::set_price(&stage.writer, 2).await;
    stage.writer.batch_execute("COMMIT").await.unwrap();
    stage.let_answer();
    assert_eq!(
        request.await.unwrap().text(),
        "1",
        "it arrived before the commit"
    );
    stage.cache.settled().await;
    stage.expect("2", false).await;
    stage.expect("2", true).await;
}

#[tokio::test]
async fn a_rollback_invalidates_nothing() {
    let stage = Stage::new().await;
    stage.expect("1", false).await;
    stage.writer.batch_execute("BEGIN").await.unwrap();
    Stage::set_price(&stage.writer, 2).await;
    stage.expect("1", true).await;
    stage.writer.batch_execute("ROLLBACK").await.unwrap();
    stage.expect("1", true).await;
}

#[tokio::test]
async fn a_transaction_that_began_before_the_fill_and_commits_after_it_invalidates() {
    let stage = Stage::new().await;
    stage.writer.batch_execute("BEGIN").await.unwrap();
    Stage::set_price(&stage.writer, 2).await;
    // others come and go, so that the open transaction lies well below the snapshot's xmax
    let other = stage.database.connect().await;
    for _ in 0..3 {
        other
            .query("SELECT pgcache.invalidate('something_else')", &[])
            .await
            .unwrap();
    }
    stage.expect("1", false).await;
    stage.expect("1", true).await;
    other.query("SELECT pgcache.fold()", &[]).await.unwrap();
    stage.expect("1", true).await;
    stage.writer.batch_execute("COMMIT").await.unwrap();
    stage.expect("2", false).await;
    stage.expect("2", true).await;
    other.query("SELECT pgcache.fold()", &[]).await.unwrap();
    stage.expect("2", true).await;
}

#[tokio::test]
async fn a_savepoint_that_is_rolled_back_takes_its_invalidation_along() {
    let stage = Stage::new().await;
    stage.expect("1", false).await;
    stage
        .writer
        .batch_execute("BEGIN; SAVEPOINT a")
        .await
        .unwrap();
    Stage::set_price(&stage.writer, 2).await;
    stage
        .writer
        .batch_execute("ROLLBACK TO a; COMMIT")
        .await
        .unwrap();
    stage.expect("1", true).await;

    stage
        .writer
        .batch_execute("BEGIN; SAVEPOINT a")
        .await
        .unwrap();
    Stage::set_price(&stage.writer, 2).await;
    stage
        .writer
        .batch_execute("ROLLBACK TO a; SAVEPOINT b")
        .await
        .unwrap();
    Stage::set_price(&stage.writer, 3).await;
    stage
        .writer
        .batch_execute("RELEASE b; COMMIT")
        .await
        .unwrap();
    stage.expect("3", false).await;
    stage.expect("3", true).await;
}

#[tokio::test]
async fn a_fill_from_before_a_clear_is_not_stored() {
    let mut stage = Stage::new().await;
    let request = stage.request();
    stage.reach(Stop::BeforeRead).await;
    stage.let_read();
    stage.reach(Stop::AfterRead).await;
    stage.cache.clear().await.unwrap();
    stage.let_answer();
    assert_eq!(request.await.unwrap().text(), "1");
    stage.cache.settled().await;
    assert_eq!(stage.cache.stats().dropped, 1);
    stage.expect("1", false).await;
    stage.expect("1", true).await;
    stage.cache.clear().await.unwrap();
    stage.expect("1", false).await;
}

#[tokio::test]
async fn an_older_fill_does_not_replace_a_newer_entry() {
    let mut stage = Stage::new().await;
    let slow = stage.request();
    stage.reach(Stop::BeforeRead).await;
    stage.let_read();
    stage.reach(Stop::AfterRead).await;
    Stage::set_price(&stage.writer, 2).await;
    stage.let_read();
    let fast = stage.request();
    stage.reach(Stop::BeforeRead).await;
    stage.reach(Stop::AfterRead).await;
    // both are there; one permit lets the one go that waited longest
    stage.let_answer();
    stage.let_answer();
    assert_eq!(slow.await.unwrap().text(), "1");
    assert_eq!(fast.await.unwrap().text(), "2");
    stage.cache.settled().await;
    stage.expect("2", true).await;
}
