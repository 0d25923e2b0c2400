//! A plain HTTP reverse proxy with the cache around it.
//!
//! ```sh
//! cargo run --example reverse_proxy -- --listen 127.0.0.1:8080 --upstream http://127.0.0.1:8000
//! ```
//!
//! `--database-url URL` names the Postgres to use; without it there is one that is gone when the program ends.
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
use tower_pgcache::PgCache;
use tower_pgcache::bb8::Pool;
use tower_pgcache::bb8_postgres::PostgresConnectionManager;
use tower_pgcache::tokio_postgres::NoTls;

use interim::InterimIo;
use upstream::{Upstream, remove_fields_of_the_hop};

type BoxError = Box<dyn Error + Send + Sync>;
type Db = Pool<PostgresConnectionManager<NoTls>>;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let options = Options::parse()?;
    let database = Database::open(options.database_url.as_deref()).await?;
    let cache = PgCache::builder(database.pool()?).build()?;
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
    tokio::select! {
        () = serve(listener, proxy) => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    cache.close().await;
    Ok(())
}

async fn serve<S, B>(listener: TcpListener, service: S)
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
                tokio::spawn(serve_connection(socket, service.clone()));
            }
            Err(error) => {
                // no file descriptor is free, perhaps; soon one will be
                eprintln!("cannot accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_connection<S, B>(socket: TcpStream, service: S)
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
        let answer = service.clone().oneshot(request);
        async {
            let mut response = answer.await?;
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

/// The Postgres of `--database-url`, or one that lives as long as this value.
enum Database {
    Given(String),
    Ephemeral(test_support::Database),
}

impl Database {
    async fn open(url: Option<&str>) -> Result<Self, BoxError> {
        Ok(match url {
            Some(url) => Self::Given(url.to_owned()),
            None => Self::Ephemeral(test_support::try_database().await?),
        })
    }

    fn pool(&self) -> Result<Db, BoxError> {
        const SIZE: u32 = 8;
        match self {
            Self::Given(url) => {
                let manager = PostgresConnectionManager::new(url.parse()?, NoTls);
                Ok(Pool::builder().max_size(SIZE).build_unchecked(manager))
            }
            Self::Ephemeral(database) => Ok(database.pool(SIZE)),
        }
    }
}

struct Options {
    listen: SocketAddr,
    upstream: Uri,
    database_url: Option<String>,
}

impl Options {
    const USAGE: &str =
        "usage: reverse_proxy --listen ADDR --upstream http://HOST[:PORT] [--database-url URL]";

    fn parse() -> Result<Self, BoxError> {
        let (mut listen, mut upstream, mut database_url) = (None, None, None);
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let option = match argument.as_str() {
                "--listen" => &mut listen,
                "--upstream" => &mut upstream,
                "--database-url" => &mut database_url,
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
        })
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
