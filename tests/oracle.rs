//! One random script of reads and writes over two tenants, through two instances with the cache and one without
//! it: every answer must be the same. Writes come as SQL transactions with `pgcache.invalidate`, as
//! `invalidate_in`, and as mutating routes; housekeeping runs in between.
//!
//! `ORACLE_SEED` repeats a run.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::get;
use axum::{Extension, Router};
use test_support::Database;
use test_support::http::{Answer, send};
use test_support::random::Random;
use tokio_postgres::Client;
use tower_pgcache::bb8::Pool;
use tower_pgcache::bb8_postgres::PostgresConnectionManager;
use tower_pgcache::tokio_postgres::NoTls;
use tower_pgcache::{Domain, PgCache, PgCacheBuilder, Tenant, domain};

const ITEM: Domain = domain!("item");
const MINUTE: Duration = Duration::from_secs(60);
const TENANTS: [&str; 2] = ["acme", "bolt"];
const ITEMS: u32 = 4;
const STEPS: u32 = 3000;

type Db = Pool<PostgresConnectionManager<NoTls>>;

#[derive(Clone)]
struct TenantId(String);

async fn auth(mut request: Request, next: Next) -> Response {
    let tenant = request.headers()["x-tenant"].to_str().unwrap().to_owned();
    request.extensions_mut().insert(TenantId(tenant));
    next.run(request).await
}

async fn item(
    State(db): State<Db>,
    Extension(t): Extension<TenantId>,
    Path(id): Path<i32>,
) -> String {
    let row = db.get().await.unwrap();
    let row = row
        .query_one(
            "SELECT value FROM item WHERE tenant = $1 AND id = $2",
            &[&t.0, &id],
        )
        .await
        .unwrap();
    format!("{} {id} = {}", t.0, row.get::<_, i32>(0))
}

async fn list(State(db): State<Db>, Extension(t): Extension<TenantId>) -> String {
    let db = db.get().await.unwrap();
    let rows = db
        .query(
            "SELECT value FROM item WHERE tenant = $1 ORDER BY id",
            &[&t.0],
        )
        .await
        .unwrap();
    format!(
        "{} {:?}",
        t.0,
        rows.iter().map(|r| r.get::<_, i32>(0)).collect::<Vec<_>>()
    )
}

/// Reads across tenants.
async fn total(State(db): State<Db>) -> String {
    let db = db.get().await.unwrap();
    let row = db
        .query_one("SELECT sum(value) FROM item", &[])
        .await
        .unwrap();
    format!("total {}", row.get::<_, i64>(0))
}

async fn add(
    State(db): State<Db>,
    Extension(t): Extension<TenantId>,
    Path(id): Path<i32>,
) -> String {
    let db = db.get().await.unwrap();
    db.execute(
        "UPDATE item SET value = value + 1 WHERE tenant = $1 AND id = $2",
        &[&t.0, &id],
    )
    .await
    .unwrap();
    "added".to_owned()
}

fn app(db: &Database, cache: Option<&PgCache>) -> Router {
    let pool = db.pool(4);
    let app = match cache {
        None => Router::new()
            .route("/item/{id}", get(item).post(add))
            .route("/list", get(list))
            .route("/total", get(total)),
        Some(cache) => {
            let layer = || cache.layer().ttl(MINUTE);
            Router::new()
                .route(
                    "/item/{id}",
                    get(item)
                        .post(add)
                        .layer(layer().entity(ITEM, "id").invalidates(ITEM)),
                )
                .route("/list", get(list).layer(layer().domain(ITEM)))
                .route(
                    "/total",
                    get(total).layer(layer().domain(ITEM.all_tenants())),
                )
        }
    };
    app.layer(from_fn(auth)).with_state(pool)
}

async fn ask(app: &Router, method: &str, tenant: &str, path: &str) -> Answer {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("x-tenant", tenant);
    send(app, request.body(Body::empty()).unwrap()).await
}

struct Script {
    random: Random,
    instances: [(Router, PgCache); 2],
    plain: Router,
    writer: Client,
    hits: u32,
    /// A transaction that stays open over other steps, with what it will have done.
    open: Option<Client>,
}

impl Script {
    async fn step(&mut self, database: &Database) {
        match self.random.below(20) {
            0..=12 => self.read().await,
            13 => self.write_in_sql().await,
            14 => self.write_through_invalidate_in().await,
            15 => self.write_through_a_route().await,
            16 => self.keep_house().await,
            17 => self.purge().await,
            _ => self.open_or_end(database).await,
        }
    }

    async fn read(&mut self) {
        let tenant = self.random.of(&TENANTS);
        let id = self.random.below(ITEMS);
        let path = match self.random.below(4) {
            0 => "/list".to_owned(),
            1 => "/total".to_owned(),
            _ => format!("/item/{id}"),
        };
        let expected = ask(&self.plain, "GET", tenant, &path).await;
        let (app, cache) = &self.instances[self.random.below(2)];
        let answer = ask(app, "GET", tenant, &path).await;
        assert_eq!(
            answer.text(),
            expected.text(),
            "{tenant} {path}: {}",
            answer.cache_status()
        );
        if answer.is_hit() {
            self.hits += 1;
        } else if self.random.below(4) > 0 {
            cache.settled().await;
        }
    }

    async fn write_in_sql(&mut self) {
        let (tenant, id) = (self.random.of(&TENANTS), self.random.below(ITEMS) as i32);
        let end = self.random.of(&["COMMIT", "COMMIT", "ROLLBACK"]);
        self.writer.batch_execute("BEGIN").await.unwrap();
        change(&self.writer, tenant, id, self.random.below(3)).await;
        self.writer.batch_execute(end).await.unwrap();
    }

    async fn write_through_invalidate_in(&mut self) {
        let (tenant, id) = (self.random.of(&TENANTS), self.random.below(ITEMS) as i32);
        let cache = &self.instances[self.random.below(2)].1;
        let transaction = self.writer.transaction().await.unwrap();
        transaction
            .execute(
                "UPDATE item SET value = value + 10 WHERE tenant = $1 AND id = $2",
                &[&tenant, &id],
            )
            .await
            .unwrap();
        cache
            .invalidate_in(&transaction, [ITEM.entity(id).tenant(tenant)])
            .await
            .unwrap();
        if self.random.below(3) > 0 {
            transaction.commit().await.unwrap();
        } else {
            transaction.rollback().await.unwrap();
        }
    }

    async fn write_through_a_route(&mut self) {
        let (tenant, id) = (self.random.of(&TENANTS), self.random.below(ITEMS));
        let app = &self.instances[self.random.below(2)].0;
        assert_eq!(
            ask(app, "POST", tenant, &format!("/item/{id}"))
                .await
                .text(),
            "added"
        );
    }

    async fn keep_house(&mut self) {
        let statement = self.random.of(&[
            "SELECT pgcache.fold()",
            "SELECT pgcache.prune(20)",
            "SELECT pgcache.prune()",
        ]);
        self.writer.batch_execute(statement).await.unwrap();
        self.instances[0].1.cleanup().await.unwrap();
    }

    async fn purge(&mut self) {
        let cache = &self.instances[self.random.below(2)].1;
        match self.random.below(4) {
            0 => cache.clear().await.unwrap(),
            1 => cache.purge_tenant(self.random.of(&TENANTS)).await.unwrap(),
            2 => cache.purge_uri(&"/list".parse().unwrap()).await.unwrap(),
            _ => cache.invalidate([&ITEM]).await.unwrap(),
        }
    }

    /// Its effects are to be seen by nobody until it commits, and by everybody from then on.
    async fn open_or_end(&mut self, database: &Database) {
        match self.open.take() {
            Some(client) => client
                .batch_execute(self.random.of(&["COMMIT", "ROLLBACK"]))
                .await
                .unwrap(),
            None => {
                let client = database.connect().await;
                client.batch_execute("BEGIN").await.unwrap();
                // rows of its own, or the other writers would wait for it
                client.batch_execute("INSERT INTO item VALUES ('acme', 100, 1) ON CONFLICT (tenant, id) DO UPDATE SET value = item.value + 1").await.unwrap();
                client
                    .batch_execute("SELECT pgcache.invalidate('item', 'acme', '100')")
                    .await
                    .unwrap();
                self.open = Some(client);
            }
        }
    }
}

async fn change(client: &Client, tenant: &str, id: i32, breadth: u32) {
    let update = "UPDATE item SET value = value + 100 WHERE tenant = $1 AND id = $2";
    client.execute(update, &[&tenant, &id]).await.unwrap();
    let entity = id.to_string();
    let (tenant, entity): (Option<&str>, Option<&str>) = match breadth {
        0 => (Some(tenant), Some(&entity)),
        1 => (Some(tenant), None),
        _ => (None, Some(&entity)),
    };
    client
        .query(
            "SELECT pgcache.invalidate('item', $1, $2)",
            &[&tenant, &entity],
        )
        .await
        .unwrap();
}

#[tokio::test]
async fn with_the_cache_and_without_it_the_answers_are_the_same() {
    compare(|builder| builder).await;
}

/// Every hit comes from a partition.
#[tokio::test]
async fn with_partitions_and_without_a_cache_the_answers_are_the_same() {
    compare(|builder| builder.partitions(4).memory(0)).await;
}

async fn compare(configure: impl Fn(PgCacheBuilder) -> PgCacheBuilder) {
    let database = test_support::database().await;
    let writer = database.connect().await;
    writer
        .batch_execute(
            "CREATE TABLE item (tenant text, id int, value int, PRIMARY KEY (tenant, id));
             INSERT INTO item SELECT t, i, 0 FROM unnest(array['acme', 'bolt']) t, generate_series(0, 3) i",
        )
        .await
        .unwrap();
    let instance = || {
        let tenant = Tenant::extension(|t: &TenantId| t.0.clone());
        let builder = PgCache::builder(database.pool(4)).tenant(tenant);
        let cache = configure(builder).build().unwrap();
        (app(&database, Some(&cache)), cache)
    };
    let mut script = Script {
        random: Random::of_this_run("ORACLE_SEED"),
        instances: [instance(), instance()],
        plain: app(&database, None),
        writer,
        hits: 0,
        open: None,
    };
    script.instances[0].1.ready().await.unwrap();
    for _ in 0..STEPS {
        script.step(&database).await;
    }
    assert!(
        script.hits > STEPS / 10,
        "only {} hits: the cache was hardly tested",
        script.hits
    );
}
