//! Several runtimes share a layer: what stands still or ends in one of them holds up nobody in another.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::future::ready;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use test_support::Database;
use test_support::http::get as fetch;
use tokio::runtime::{Builder, Runtime};
use tokio::task::yield_now;
use tokio::time::timeout;
use tokio_postgres::{Client, NoTls};
use tower_pgcache::{Domain, PgCache, PgCacheBuilder, domain};

const MINUTE: Duration = Duration::from_secs(60);
const DEADLINE: Duration = Duration::from_millis(200);
/// Nothing here takes long; what takes as long as this hangs.
const HANG: Duration = Duration::from_secs(20);

const THINGS: Domain = domain!("things");

fn app(cache: &PgCache) -> Router {
    Router::new()
        .route("/0", get(|| ready("answer")))
        .layer(cache.layer().domain(THINGS).ttl(MINUTE))
}

async fn until_hit(app: &Router) {
    let hit = async {
        while !fetch(app, "/0").await.is_hit() {
            // an answer of the handler alone gives way to nobody
            yield_now().await;
        }
    };
    timeout(HANG, hit).await.expect("a hit");
}

/// Only while somebody waits in it.
fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// An answer that is stored, in a runtime that lasts and has the connections.
struct Stage {
    app: Router,
    cache: PgCache,
    pool: bb8::Pool<bb8_postgres::PostgresConnectionManager<NoTls>>,
    database: Database,
    lasting: Runtime,
}

impl Stage {
    fn new(connections: u32, memory: usize) -> Self {
        let lasting = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (database, pool, cache) = lasting.block_on(async {
            let database = test_support::database().await;
            let pool = database.pool(connections);
            let mut all = Vec::new();
            for _ in 0..connections {
                all.push(pool.get_owned().await.unwrap());
            }
            let cache = PgCache::builder(pool.clone())
                .lookup_deadline(DEADLINE)
                .memory(memory)
                .build()
                .unwrap();
            (database, pool, cache)
        });
        let app = app(&cache);
        lasting.block_on(async {
            cache.ready().await.unwrap();
            until_hit(&app).await;
            cache.settled().await;
            // no task of the cache is left in this runtime that would see to what the next one leaves behind
            let quiet = async {
                while pool.state().idle_connections < connections {
                    yield_now().await;
                }
            };
            timeout(HANG, quiet)
                .await
                .expect("all connections in the pool");
        });
        Self {
            app,
            cache,
            pool,
            database,
            lasting,
        }
    }

    /// Whoever reads these tables waits until it is dropped.
    async fn lock(&self, tables: &str) -> Client {
        let admin = self.database.connect().await;
        let lock = format!("BEGIN; LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE");
        admin.batch_execute(&lock).await.unwrap();
        admin
    }
}

#[test]
fn a_lookup_ends_by_its_deadline_though_the_runtime_of_an_earlier_one_stands_still() {
    let stage = Stage::new(4, 0);
    let still = runtime();
    assert!(still.block_on(fetch(&stage.app, "/0")).is_hit());
    stage.lasting.block_on(async {
        let lock = stage.lock("pgcache.entry").await;
        let answer = timeout(HANG, fetch(&stage.app, "/0")).await;
        let answer = answer.expect("an answer");
        assert_eq!((answer.is_hit(), answer.text()), (false, "answer"));
        drop(lock);
    });
}

#[test]
fn what_is_in_memory_is_not_waited_for_where_the_runtime_that_reads_the_feed_stands_still() {
    let stage = Stage::new(4, 1 << 20);
    let still = runtime();
    let (lock, observer) = stage.lasting.block_on(async {
        let lock = stage.lock("pgcache.invalidation").await;
        (lock, stage.database.connect().await)
    });
    let app = stage.app.clone();
    still.block_on(async {
        tokio::spawn(async move { fetch(&app, "/0").await });
        let waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)";
        while !observer
            .query_one(waits, &[])
            .await
            .unwrap()
            .get::<_, bool>(0)
        {
            yield_now().await;
        }
    });
    stage.lasting.block_on(async {
        drop(lock);
        let answer = timeout(HANG, fetch(&stage.app, "/0")).await;
        assert_eq!(answer.expect("an answer").text(), "answer");
        // and nobody else has to wait, or to do without what is stored
        until_hit(&stage.app).await;
        for _ in 0..10 {
            assert!(fetch(&stage.app, "/0").await.is_hit());
        }
    });
    // and all is well when it goes on
    still.block_on(async {
        until_hit(&stage.app).await;
    });
}

#[test]
fn a_connection_goes_back_to_the_pool_when_its_runtime_ends() {
    let stage = Stage::new(1, 0);
    let ending = runtime();
    assert!(ending.block_on(fetch(&stage.app, "/0")).is_hit());
    drop(ending);
    stage.lasting.block_on(async {
        let connection = timeout(HANG, stage.pool.get()).await;
        connection.expect("a connection").unwrap();
        stage.cache.close().await;
    });
}

/// The connection ends with the runtime that has made it.
#[test]
fn the_place_of_a_connection_is_free_when_its_runtime_ends() {
    let lasting = runtime();
    let (_database, pool) = lasting.block_on(async {
        let database = test_support::database().await;
        let pool = database.pool(1);
        (database, pool)
    });
    let cache = PgCache::builder(pool.clone()).build().unwrap();
    let app = app(&cache);
    let ending = runtime();
    ending.block_on(until_hit(&app));
    drop(ending);
    lasting.block_on(async {
        let connection = timeout(HANG, pool.get()).await;
        connection.expect("a connection").unwrap();
    });
}

#[test]
fn a_cache_may_outlive_its_runtimes() {
    let lasting = runtime();
    let database = lasting.block_on(test_support::database());
    let cache = PgCacheBuilder::<PgCache>::connecting(database.config(), NoTls)
        .connections(1..=1)
        .build()
        .unwrap();
    let app = app(&cache);
    // one after the other, each with the only connection
    for _ in 0..8 {
        let ending = runtime();
        ending.block_on(until_hit(&app));
        drop(ending);
    }
    drop(app);
    drop(cache);
}
