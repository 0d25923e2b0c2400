//! A plain HTTP reverse proxy with the cache around it.
//!
//! ```sh
//! cargo run --example reverse_proxy -- --listen 127.0.0.1:8080 --upstream http://127.0.0.1:8000
//! ```
//!
//! `--database-url URL` names the Postgres to use; without it there is one that is gone when the program ends.
//!
//! `--patient` is for tests that ask again at once, on a busy machine: a request waits until the answers before it
//! are stored, which else happens in the background, and has long to be looked up.
//!
//! `tests/conformance/run` puts this in front of the origin of the public conformance suite for HTTP caches.

#[path = "reverse_proxy/interim.rs"]
mod interim;
#[path = "reverse_proxy/upstream.rs"]
mod upstream;

use std::convert::Infallible;
use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tower::{Layer, Service, ServiceExt};
use tower_pgcache::bb8::Pool;
use tower_pgcache::bb8_postgres::PostgresConnectionManager;
use tower_pgcache::tokio_postgres::NoTls;
use tower_pgcache::{PgCache, Policy};

use interim::InterimIo;
use upstream::{Upstream, remove_fields_of_the_hop};

type BoxError = Box<dyn Error + Send + Sync>;
type Db = Pool<PostgresConnectionManager<NoTls>>;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let options = Options::parse()?;
    let (pool, _database) = open(options.database_url.as_deref()).await?;
    let cache = PgCache::builder(pool)
        .lookup_deadline(options.lookup_deadline())
        .policy(Policy::shared_cache())
        .build()?;
    cache.ready().await?;
    let proxy = cache.layer().layer(Upstream::new(&options.upstream)?);

    let listener = TcpListener::bind(options.listen)
        .await
        .map_err(|e| format!("cannot listen on {}: {e}", options.listen))?;
    println!(
        "Serving {} on http://{}; stop with Ctrl-C.",
        options.upstream,
        listener.local_addr()?
    );
    let settle = options.patient.then(|| cache.clone());
    tokio::select! {
        () = serve(listener, proxy, settle) => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    cache.close().await;
    Ok(())
}

async fn serve<S, B>(listener: TcpListener, service: S, settle: Option<PgCache>)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    loop {
        match listener.accept().await {
            Ok((socket, _)) => {
                tokio::spawn(serve_connection(socket, service.clone(), settle.clone()));
            }
            Err(error) => {
                // no file descriptor is free, perhaps; soon one will be
                eprintln!("cannot accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_connection<S, B>(socket: TcpStream, service: S, settle: Option<PgCache>)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let (io, outbox) = InterimIo::new(socket);
    let answer = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(outbox.clone());
        let (service, settle) = (service.clone(), settle.clone());
        async move {
            if let Some(cache) = settle {
                cache.settled().await;
            }
            let mut response = service.oneshot(request).await?;
            // outside of the cache, so that it meets them and has to do its own part
            remove_fields_of_the_hop(response.headers_mut());
            Ok::<_, Infallible>(response)
        }
    });
    // It ends with an error when either side goes away in the middle of a message, which is theirs to do.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(io), answer)
        .await;
}

/// The Postgres of `url`, or one that lives as long as the second value.
async fn open(url: Option<&str>) -> Result<(Db, Option<test_support::Database>), BoxError> {
    const CONNECTIONS: u32 = 8;
    if let Some(url) = url {
        let manager = PostgresConnectionManager::new(url.parse()?, NoTls);
        let pool = Pool::builder().max_size(CONNECTIONS);
        return Ok((pool.build_unchecked(manager), None));
    }
    let database = test_support::try_database().await?;
    Ok((database.pool(CONNECTIONS), Some(database)))
}

struct Options {
    listen: SocketAddr,
    upstream: Uri,
    database_url: Option<String>,
    patient: bool,
}

impl Options {
    const USAGE: &str = "usage: reverse_proxy --listen ADDR --upstream http://HOST[:PORT] [--database-url URL] [--patient]";

    fn parse() -> Result<Self, BoxError> {
        let (mut listen, mut upstream, mut database_url) = (None, None, None);
        let mut patient = false;
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let option = match argument.as_str() {
                "--listen" => &mut listen,
                "--upstream" => &mut upstream,
                "--database-url" => &mut database_url,
                "--patient" => {
                    patient = true;
                    continue;
                }
                other => return Err(format!("unknown argument {other}; {}", Self::USAGE).into()),
            };
            let value = arguments
                .next()
                .ok_or_else(|| format!("{argument} needs a value; {}", Self::USAGE))?;
            *option = Some(value);
        }
        Ok(Self {
            listen: required("--listen", listen)?,
            upstream: required("--upstream", upstream)?,
            database_url,
            patient,
        })
    }

    fn lookup_deadline(&self) -> Duration {
        if self.patient {
            Duration::from_secs(5)
        } else {
            Duration::from_millis(100) // the default
        }
    }
}

fn required<T>(option: &str, value: Option<String>) -> Result<T, String>
where
    T: std::str::FromStr<Err: Error>,
{
    let value = value.ok_or_else(|| format!("{option} is missing; {}", Options::USAGE))?;
    value
        .parse()
        .map_err(|e| format!("{option} {value}: {e}; {}", Options::USAGE))
}
