//! A small multi-tenant service on real tables, with its answers cached in the same Postgres.
//!
//! ```sh
//! cargo run --example quickstart              # a tour, then serves on 127.0.0.1:3000
//! cargo run --example quickstart -- --once    # the tour alone; exit code 0 if every step was as expected
//! ```
//!
//! `--listen ADDR` serves elsewhere. Uses the Postgres of `DATABASE_URL` if that is set, else one of its own that
//! is gone when the program ends.

use std::error::Error;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::get;
use axum::{Extension, Json, Router};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tower_pgcache::bb8::Pool;
use tower_pgcache::bb8_postgres::PostgresConnectionManager;
use tower_pgcache::tokio_postgres::{self, NoTls};
use tower_pgcache::{Domain, PgCache, Tenant, domain};

type Db = Pool<PostgresConnectionManager<NoTls>>;

const PRODUCT: Domain = domain!("product");
const MIN5: Duration = Duration::from_secs(300);

/// Who is asking. The authentication layer puts it into the request.
#[derive(Clone)]
struct TenantId(String);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse()?;
    let database = test_support::try_database().await?;
    let db = database.pool(8);
    create_tables(&db).await?;

    let cache = PgCache::builder(db.clone())
        .tenant(Tenant::extension(|t: &TenantId| t.0.clone()))
        .build()?;
    cache.ready().await?;

    let listener = tokio::net::TcpListener::bind(options.listen)
        .await
        .map_err(|e| {
            format!(
                "cannot listen on {}: {e}; use --listen ADDR",
                options.listen
            )
        })?;
    let address = listener.local_addr()?;
    let server = tokio::spawn(axum::serve(listener, app(&cache, db.clone())).into_future());
    let as_expected = Tour::new(address, cache.clone(), db).take().await?;
    if options.once {
        cache.close().await;
        std::process::exit(if as_expected { 0 } else { 1 });
    }
    print_curl_lines(address);
    tokio::select! {
        served = server => served??,
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    cache.close().await;
    Ok(())
}

/// The service. Read settings apply to GET, `invalidates` to POST and PUT. The authentication layer is added
/// last, so that it runs first: the cache has to know the tenant.
fn app(cache: &PgCache, db: Db) -> Router {
    let products = Router::new()
        .route(
            "/",
            get(list).post(create).layer(
                cache
                    .layer()
                    .ttl(MIN5)
                    .domain(PRODUCT)
                    .invalidates(PRODUCT)
                    .shared_by_tenant(),
            ),
        )
        .route(
            "/{id}",
            get(item).put(update).layer(
                cache
                    .layer()
                    .ttl(MIN5)
                    .entity(PRODUCT, "id")
                    .invalidates(PRODUCT)
                    .shared_by_tenant(),
            ),
        );
    Router::new()
        .nest("/products", products)
        .layer(from_fn(authenticate))
        .with_state(db)
}

async fn authenticate(mut request: Request, next: Next) -> Result<Response, StatusCode> {
    let token = request
        .headers()
        .get("authorization")
        .and_then(|value| value.to_str().ok());
    let tenant = match token {
        Some("Bearer acme-secret") => "acme",
        Some("Bearer bolt-secret") => "bolt",
        _ => return Err(StatusCode::UNAUTHORIZED),
    };
    request.extensions_mut().insert(TenantId(tenant.to_owned()));
    Ok(next.run(request).await)
}

/// Every product with what was sold of it: worth caching.
async fn list(
    State(db): State<Db>,
    Extension(tenant): Extension<TenantId>,
) -> Result<Json<Value>, Failure> {
    let rows = db
        .get()
        .await?
        .query(
            "SELECT p.id, p.name, p.price, count(s.*) AS sold
               FROM product p LEFT JOIN sale s ON s.tenant = p.tenant AND s.product = p.id
              WHERE p.tenant = $1 GROUP BY p.tenant, p.id ORDER BY p.id",
            &[&tenant.0],
        )
        .await?;
    Ok(Json(rows.iter().map(product).collect()))
}

async fn item(
    State(db): State<Db>,
    Extension(tenant): Extension<TenantId>,
    Path(id): Path<i32>,
) -> Result<Json<Value>, Failure> {
    let row = db
        .get()
        .await?
        .query_opt(
            "SELECT p.id, p.name, p.price, (SELECT count(*) FROM sale s WHERE s.tenant = p.tenant AND s.product = p.id) AS sold
               FROM product p WHERE p.tenant = $1 AND p.id = $2",
            &[&tenant.0, &id],
        )
        .await?;
    row.as_ref()
        .map(product)
        .map(Json)
        .ok_or(Failure(StatusCode::NOT_FOUND))
}

fn product(row: &tokio_postgres::Row) -> Value {
    json!({
        "id": row.get::<_, i32>("id"),
        "name": row.get::<_, &str>("name"),
        "price": row.get::<_, i32>("price"),
        "sold": row.get::<_, i64>("sold"),
    })
}

#[derive(serde::Deserialize)]
struct Draft {
    name: String,
    price: i32,
}

async fn create(
    State(db): State<Db>,
    Extension(tenant): Extension<TenantId>,
    Json(draft): Json<Draft>,
) -> Result<(StatusCode, Json<Value>), Failure> {
    let row = db
        .get()
        .await?
        .query_one(
            "INSERT INTO product (tenant, id, name, price)
             SELECT $1, coalesce(max(id), 0) + 1, $2, $3 FROM product WHERE tenant = $1 RETURNING id",
            &[&tenant.0, &draft.name, &draft.price],
        )
        .await?;
    Ok((
        StatusCode::CREATED,
        Json(json!({ "id": row.get::<_, i32>(0) })),
    ))
}

async fn update(
    State(db): State<Db>,
    Extension(tenant): Extension<TenantId>,
    Path(id): Path<i32>,
    Json(draft): Json<Draft>,
) -> Result<StatusCode, Failure> {
    let changed = db
        .get()
        .await?
        .execute(
            "UPDATE product SET name = $3, price = $4 WHERE tenant = $1 AND id = $2",
            &[&tenant.0, &id, &draft.name, &draft.price],
        )
        .await?;
    Ok(if changed == 0 {
        StatusCode::NOT_FOUND
    } else {
        StatusCode::NO_CONTENT
    })
}

struct Failure(StatusCode);

impl<E: Error> From<E> for Failure {
    fn from(error: E) -> Self {
        eprintln!("a handler failed: {error}");
        Self(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl axum::response::IntoResponse for Failure {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}

async fn create_tables(db: &Db) -> Result<(), Box<dyn Error>> {
    let db = db.get().await?;
    db.batch_execute(
        "CREATE TABLE product (tenant text, id int, name text NOT NULL, price int NOT NULL, PRIMARY KEY (tenant, id));
         CREATE TABLE sale (tenant text NOT NULL, product int NOT NULL, at timestamptz NOT NULL);
         INSERT INTO product SELECT t, i, 'Product ' || i, 10 * i FROM unnest(array['acme', 'bolt']) t, generate_series(1, 5) i;
         INSERT INTO sale SELECT (array['acme', 'bolt'])[1 + i % 2], 1 + i % 5, now() - i * interval '1 min' FROM generate_series(1, 200000) i;
         ANALYZE product, sale",
    )
    .await?;
    Ok(())
}

/// The steps, each with what is expected of it.
struct Tour {
    address: SocketAddr,
    client: Client<HttpConnector, Full<Bytes>>,
    cache: PgCache,
    db: Db,
    step: u32,
    as_expected: bool,
}

/// What the cache should do, and the price of product 1 that the answer should show.
enum Expected {
    Miss { price: i64 },
    Hit { price: i64 },
    Written,
}

impl Tour {
    fn new(address: SocketAddr, cache: PgCache, db: Db) -> Self {
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self {
            address,
            client,
            cache,
            db,
            step: 0,
            as_expected: true,
        }
    }

    async fn take(mut self) -> Result<bool, Box<dyn Error>> {
        use Expected::{Hit, Miss, Written};
        println!("\nA shop for two tenants; each list is computed from 200,000 sales.\n");
        self.get("acme", "the first request computes", Miss { price: 10 })
            .await?;
        self.get(
            "acme",
            "the second is answered from Postgres",
            Hit { price: 10 },
        )
        .await?;
        self.get(
            "bolt",
            "another tenant has answers of its own",
            Miss { price: 10 },
        )
        .await?;
        self.put(
            "acme",
            11,
            "a PUT invalidates its tenant's answers",
            Written,
        )
        .await?;
        self.get("acme", "so this one is computed again", Miss { price: 11 })
            .await?;
        self.get("acme", "and stored again", Hit { price: 11 })
            .await?;
        self.get(
            "bolt",
            "the other tenant's answer has stayed",
            Hit { price: 10 },
        )
        .await?;
        self.write_in_sql(12).await?;
        self.get(
            "acme",
            "its commit was the end of the old answer",
            Miss { price: 12 },
        )
        .await?;
        self.get("acme", "from here on a hit again", Hit { price: 12 })
            .await?;
        let verdict = if self.as_expected {
            "Every step was as expected."
        } else {
            "Some steps were NOT as expected."
        };
        println!("\n{verdict}");
        Ok(self.as_expected)
    }

    async fn get(
        &mut self,
        tenant: &str,
        what: &str,
        expected: Expected,
    ) -> Result<(), Box<dyn Error>> {
        let request = self
            .request("GET", tenant, "/products")
            .body(Full::default())?;
        self.send(
            &format!("GET /products   {tenant}"),
            what,
            request,
            expected,
        )
        .await
    }

    async fn put(
        &mut self,
        tenant: &str,
        price: i64,
        what: &str,
        expected: Expected,
    ) -> Result<(), Box<dyn Error>> {
        let body = json!({ "name": "Product 1", "price": price }).to_string();
        let request = self
            .request("PUT", tenant, "/products/1")
            .header("content-type", "application/json")
            .body(Full::from(body))?;
        self.send(
            &format!("PUT /products/1 {tenant}"),
            what,
            request,
            expected,
        )
        .await
    }

    fn request(&self, method: &str, tenant: &str, path: &str) -> http::request::Builder {
        Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address))
            .header("authorization", format!("Bearer {tenant}-secret"))
    }

    async fn send(
        &mut self,
        line: &str,
        what: &str,
        request: http::Request<Full<Bytes>>,
        expected: Expected,
    ) -> Result<(), Box<dyn Error>> {
        let began = Instant::now();
        let (head, body) = self.client.request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        let took = began.elapsed();
        // an answer is stored in the background: let that come to its end before the next step
        self.cache.settled().await;

        let status = head
            .headers
            .get("cache-status")
            .and_then(|v| v.to_str().ok())
            .unwrap_or("none")
            .to_owned();
        let price = || serde_json::from_slice::<Value>(&body).ok()?[0]["price"].as_i64();
        let good = match expected {
            Expected::Miss { price: p } => status.ends_with("stored") && price() == Some(p),
            Expected::Hit { price: p } => status.starts_with("pgcache; hit") && price() == Some(p),
            Expected::Written => head.status.is_success(),
        };
        self.report(line, what, took, &status, good);
        Ok(())
    }

    /// A program that knows nothing of HTTP changes the data.
    async fn write_in_sql(&mut self, price: i32) -> Result<(), Box<dyn Error>> {
        let began = Instant::now();
        let pool = self.db.clone();
        let mut db = pool.get().await?;
        let transaction = db.transaction().await?;
        transaction
            .execute(
                "UPDATE product SET price = $1 WHERE tenant = 'acme' AND id = 1",
                &[&price],
            )
            .await?;
        transaction
            .execute("SELECT pgcache.invalidate('product', 'acme')", &[])
            .await?;
        transaction.commit().await?;
        self.report(
            "UPDATE … in SQL acme",
            "with pgcache.invalidate in its transaction",
            began.elapsed(),
            "no HTTP",
            true,
        );
        Ok(())
    }

    fn report(&mut self, line: &str, what: &str, took: Duration, status: &str, good: bool) {
        self.step += 1;
        self.as_expected &= good;
        let mark = if good { " " } else { "!" };
        let milliseconds = took.as_secs_f64() * 1e3;
        println!(
            "{mark}{:2}. {line:<22} {milliseconds:7.2} ms   {status:<48} {what}",
            self.step
        );
    }
}

fn print_curl_lines(address: SocketAddr) {
    println!(
        "\nServing on http://{address}; stop with Ctrl-C. Try:
  curl -i -H 'Authorization: Bearer acme-secret' http://{address}/products
  curl -i -H 'Authorization: Bearer bolt-secret' http://{address}/products/1
  curl -i -H 'Authorization: Bearer acme-secret' -H 'Content-Type: application/json' \\
       -d '{{\"name\": \"Lamp\", \"price\": 25}}' http://{address}/products"
    );
}

struct Options {
    listen: SocketAddr,
    once: bool,
}

impl Options {
    fn parse() -> Result<Self, Box<dyn Error>> {
        let mut options = Self {
            listen: ([127, 0, 0, 1], 3000).into(),
            once: false,
        };
        let mut explicit = false;
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--once" => options.once = true,
                "--listen" => {
                    let address = arguments
                        .next()
                        .ok_or("--listen needs an address, such as 127.0.0.1:3000")?;
                    options.listen = address
                        .parse()
                        .map_err(|e| format!("--listen {address}: {e}; use host:port"))?;
                    explicit = true;
                }
                other => {
                    return Err(
                        format!("unknown argument {other}; known: --listen ADDR, --once").into(),
                    );
                }
            }
        }
        if options.once && !explicit {
            // whatever else runs on port 3000 is in nobody's way
            options.listen.set_port(0);
        }
        Ok(options)
    }
}
