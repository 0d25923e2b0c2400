//! The shop as a service: its options, its tables, its routes.

mod handlers;
mod options;
mod tables;

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::{get, put};
use tokio::net::TcpListener;
use tower_pgcache::bb8::Pool;
use tower_pgcache::bb8_postgres::PostgresConnectionManager;
use tower_pgcache::tokio_postgres::{Config, NoTls};
use tower_pgcache::{Domain, PgCache, PgCacheBuilder, Tenant, domain};

pub(crate) use options::Options;

type Db = Pool<PostgresConnectionManager<NoTls>>;

const PRODUCT: Domain = domain!("product");
const PRICE: Domain = domain!("price");
const ORDER: Domain = domain!("order");
const MIN5: Duration = Duration::from_secs(300);

/// Who is asking. The authentication layer puts it into the request.
#[derive(Clone)]
struct TenantId(String);

/// A shop that is ready to serve.
pub(crate) struct Shop {
    listener: TcpListener,
    address: SocketAddr,
    cache: PgCache,
    db: Db,
}

impl Shop {
    /// Sees to it that the tables exist and are watched, and listens.
    pub(crate) async fn open(options: &Options) -> Result<Self, Box<dyn Error>> {
        let url = options.database_url.as_deref().ok_or("no database")?;
        let config: Config = url.parse()?;
        let db = pool(&config, "shop", 16);
        // A pool of its own, so that one sees in pg_stat_activity who does what; `db.clone()` would do.
        let builder = PgCache::builder(pool(&config, "shop cache", 6))
            .tenant(Tenant::extension(|tenant: &TenantId| tenant.0.clone()));
        let cache = freshness(builder, options).build()?;
        cache.ready().await?;
        tables::set_up(&db, &cache, options.watched).await?;

        let listener = TcpListener::bind(options.listen)
            .await
            .map_err(|e| format!("cannot listen on {}: {e}", options.listen))?;
        Ok(Self {
            address: listener.local_addr()?,
            listener,
            cache,
            db,
        })
    }

    pub(crate) fn announcement(&self) -> String {
        format!("Serving on http://{}; stop with Ctrl-C.", self.address)
    }

    #[allow(dead_code)] // the tour alone needs it
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    #[allow(dead_code)] // a process that is killed closes nothing
    pub(crate) fn cache(&self) -> PgCache {
        self.cache.clone()
    }

    pub(crate) async fn serve(self) -> io::Result<()> {
        axum::serve(self.listener, app(&self.cache, self.db)).await
    }
}

/// How fresh answers have to be, and how much memory they may take.
fn freshness(builder: PgCacheBuilder, options: &Options) -> PgCacheBuilder {
    let Options {
        max_staleness,
        memory,
        ..
    } = options;
    let builder = match *memory {
        Some(bytes) => builder.memory(bytes),
        None => builder,
    };
    match *max_staleness {
        Some(bound) => builder.max_staleness(bound),
        None => builder,
    }
}

fn pool(config: &Config, application: &str, size: u32) -> Db {
    let mut config = config.clone();
    config.application_name(application);
    Pool::builder()
        .max_size(size)
        .connection_timeout(Duration::from_secs(5))
        .build_unchecked(PostgresConnectionManager::new(config, NoTls))
}

/// Read settings apply to GET, `invalidates` to POST and PUT. The authentication layer is added last, so that it
/// runs first: the cache has to know the tenant.
///
/// The tables are watched, so nothing depends on `invalidates`. It is what one would write without.
fn app(cache: &PgCache, db: Db) -> Router {
    let layer = || cache.layer().ttl(MIN5).shared_by_tenant();
    let tenants = Router::new()
        .route(
            "/products",
            get(handlers::products).layer(layer().domain(PRODUCT)),
        )
        .route(
            "/products/{id}",
            get(handlers::product).put(handlers::change_product).layer(
                layer()
                    .negative_ttl(MIN5)
                    .entity(PRODUCT, "id")
                    .invalidates(PRODUCT),
            ),
        )
        // no `invalidates`: it would be a change of every price, and the watched table knows which one it was
        .route("/products/{id}/price", put(handlers::change_price))
        .route(
            "/orders",
            get(handlers::orders)
                .post(handlers::create_order)
                .layer(layer().domain(ORDER).invalidates(ORDER)),
        )
        .route(
            "/report",
            get(handlers::report).layer(layer().domain(PRODUCT).domain(ORDER)),
        )
        .layer(from_fn(authenticate));
    let everybody = Router::new().route("/", get(handlers::description)).route(
        "/totals",
        get(handlers::totals).layer(
            cache
                .layer()
                .ttl(MIN5)
                .domain(PRODUCT)
                .all_tenants()
                .shared_by_everyone(),
        ),
    );
    everybody.merge(tenants).with_state(db)
}

/// A real one would verify something.
async fn authenticate(mut request: Request, next: Next) -> Result<Response, StatusCode> {
    let tenant = request.headers().get("x-tenant");
    let tenant = tenant.and_then(|value| value.to_str().ok());
    let tenant = TenantId(tenant.ok_or(StatusCode::UNAUTHORIZED)?.to_owned());
    request.extensions_mut().insert(tenant);
    Ok(next.run(request).await)
}
