//! An instance: a service whose pages come from the origin, with the cache around it.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::routing::get;
use axum::{Json, Router};
use http::{Response, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle};
use tokio::time::timeout;
use tower_pgcache::bb8::Pool;
use tower_pgcache::bb8_postgres::PostgresConnectionManager;
use tower_pgcache::tokio_postgres::{Config, NoTls};
use tower_pgcache::{Domain, PgCache, domain};

/// The command line of an instance, which is this program again.
const VARIABLE: &str = "CHAOS_INSTANCE";

/// How many connections an instance may have.
pub(super) const CONNECTIONS: u32 = 4;

/// The table of this name is watched.
const PAGE: Domain = domain!("page");
/// Invalidated by the transactions that change it.
const NAMED: Domain = domain!("named");
/// Changed through the service.
const ROUTED: Domain = domain!("routed");
const MIN5: Duration = Duration::from_secs(300);

type Connections = Pool<PostgresConnectionManager<NoTls>>;

/// What differs between the cases.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// A connection string.
    pub(crate) database: String,
    pub(crate) origin: String,
    /// Bytes; zero: each answer comes from Postgres.
    pub(crate) memory: usize,
    pub(crate) durable: bool,
    /// How old an answer may be, in milliseconds; zero: strict.
    pub(crate) max_staleness: u64,
    /// For statements of the cache, in milliseconds; zero: the default.
    pub(crate) lookup_deadline: u64,
}

/// What an instance uses of the machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Vitals {
    /// Besides those of connections to Postgres.
    pub(super) tasks: usize,
    /// As `tasks`.
    pub(super) files: usize,
    pub(super) threads: usize,
    pub(super) children: usize,
    pub(super) connections: usize,
    pub(super) resident_kilobytes: usize,
    pub(super) panics: usize,
    pub(super) seconds_since_1970: u64,
}

pub(super) fn command(settings: &Settings) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "instance", "--nocapture"])
        .env(VARIABLE, serde_json::to_string(settings).unwrap());
    command
}

pub(crate) fn instance_if_asked() {
    static PANICS: AtomicUsize = AtomicUsize::new(0);

    let Ok(settings) = std::env::var(VARIABLE) else {
        return;
    };
    std::thread::spawn(|| {
        // ends with whoever started it
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        say(panic);
    }));
    let settings = serde_json::from_str(&settings).unwrap();
    let mut runtime = Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(serve(settings, &PANICS));
}

async fn serve(settings: Settings, panics: &'static AtomicUsize) {
    let config: Config = settings.database.parse().unwrap();
    let ports = config.get_ports().to_vec();
    let pool: Connections = Pool::builder()
        .max_size(CONNECTIONS)
        .build_unchecked(PostgresConnectionManager::new(config, NoTls));
    let mut builder = PgCache::builder(pool)
        .memory(settings.memory)
        .durable(settings.durable)
        .cleanup_interval(Duration::from_secs(1));
    if settings.max_staleness > 0 {
        builder = builder.max_staleness(Duration::from_millis(settings.max_staleness));
    }
    if settings.lookup_deadline > 0 {
        builder = builder.lookup_deadline(Duration::from_millis(settings.lookup_deadline));
    }
    let cache = builder.build().unwrap();
    // where it cannot be used yet it will be later
    let _ = cache.ready().await;

    let origin = Upstream::new(settings.origin);
    let layer = |domain| cache.layer().ttl(MIN5).entity(domain, "id");
    let pages = Router::new()
        .route("/page/{id}", get(relay).layer(layer(PAGE)))
        .route("/named/{id}", get(relay).layer(layer(NAMED)))
        .route(
            "/routed/{id}",
            get(relay)
                .put(relay)
                .layer(layer(ROUTED).invalidates(ROUTED)),
        )
        .route(
            "/brief/{id}",
            get(relay).layer(cache.layer().ttl(Duration::from_secs(1))),
        )
        .with_state(origin);
    let watched = Watched {
        cache: cache.clone(),
        ports,
        panics,
    };
    let app = pages.route("/vitals", get(vitals).with_state(watched));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    println!("Serving on http://{address}; ends with its standard input.");
    axum::serve(listener, app).await.unwrap();
}

/// The origin, as handlers see it.
#[derive(Clone)]
struct Upstream {
    address: String,
    http: Client<HttpConnector, Body>,
}

impl Upstream {
    fn new(address: String) -> Self {
        // no idle connections: what an instance holds shall depend on nothing but Postgres
        let http = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(0)
            .build_http();
        Self { address, http }
    }
}

/// Without the fields of the origin's head: its `Date` is right, and the instance has a clock of its own.
async fn relay(State(upstream): State<Upstream>, request: Request) -> Response<Body> {
    let path = request.uri().path();
    let uri: Uri = format!("http://{}{path}", upstream.address)
        .parse()
        .unwrap();
    let forwarded = Request::builder().method(request.method().clone()).uri(uri);
    let answer = upstream
        .http
        .request(forwarded.body(Body::empty()).unwrap())
        .await;
    match answer {
        Ok(answer) => {
            let status = answer.status();
            let mut relayed = Response::new(Body::new(answer.into_body()));
            *relayed.status_mut() = status;
            relayed
        }
        Err(error) => {
            let mut failed = Response::new(Body::from(format!("{error:?}")));
            *failed.status_mut() = StatusCode::BAD_GATEWAY;
            failed
        }
    }
}

#[derive(Clone)]
struct Watched {
    cache: PgCache,
    /// Those of Postgres.
    ports: Vec<u16>,
    panics: &'static AtomicUsize,
}

async fn vitals(State(watched): State<Watched>) -> Json<Vitals> {
    const SETTLE: Duration = Duration::from_secs(5);
    let _ = timeout(SETTLE, watched.cache.settled()).await;
    // (the pool counts those too that have ended while nobody used them)
    let connections = connections_to(&watched.ports);
    let tasks = Handle::current().metrics().num_alive_tasks();
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    Json(Vitals {
        tasks: tasks.saturating_sub(connections),
        files: entries("/proc/self/fd").saturating_sub(connections),
        threads: entries("/proc/self/task"),
        children: children(),
        connections,
        resident_kilobytes: resident_kilobytes(),
        panics: watched.panics.load(Ordering::Relaxed),
        seconds_since_1970: since_1970.unwrap().as_secs(),
    })
}

/// Zero where there is no such directory.
fn entries(directory: &str) -> usize {
    std::fs::read_dir(directory).map_or(0, Iterator::count)
}

/// Sockets of this process whose other end has one of these ports.
fn connections_to(ports: &[u16]) -> usize {
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap_or_default();
    let inodes: HashSet<String> = table
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (_, port) = fields.get(2)?.split_once(':')?;
            let port = u16::from_str_radix(port, 16).ok()?;
            ports
                .contains(&port)
                .then(|| format!("socket:[{}]", fields[9]))
        })
        .collect();
    let files = std::fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .flatten();
    let targets = files.filter_map(|file| std::fs::read_link(file.path()).ok());
    targets
        .filter(|target| {
            target
                .to_str()
                .is_some_and(|target| inodes.contains(target))
        })
        .count()
}

fn children() -> usize {
    let threads = std::fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten();
    let of = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("children"));
    threads
        .filter_map(|thread| of(thread).ok())
        .map(|pids| pids.split_whitespace().count())
        .sum()
}

fn resident_kilobytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.unwrap_or(0)
}

/// Where an instance is asked.
pub(super) async fn vitals_of(address: SocketAddr) -> Option<Vitals> {
    let client = super::http::Client::new(address);
    let ask = super::http::Ask {
        tenant: "",
        path: "/vitals",
        hold: Duration::ZERO,
    };
    let answer = client.get(&ask).await.ok()?;
    serde_json::from_value(answer.body).ok()
}
