//! Instances of the shop in processes of their own, writers that commit, and clients that check every answer: whether
//! it is as new as what was known to be committed when they asked.

mod disturb;
mod http;
mod instance;
mod ledger;
mod reader;
mod tally;
mod writer;

use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use test_support::{Options as ServerOptions, Server};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tower_pgcache::tokio_postgres::NoTls;

pub(crate) use disturb::Disturbance;
pub(crate) use tally::Report;

use instance::Instance;
use ledger::{Change, Floor, Ledger, RowId, Table};
use tally::Tally;

pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

/// As the shop makes them.
const TENANTS: [&str; 3] = ["acme", "bolt", "crane"];
const PRODUCTS: i64 = 30;
const ORDERS: i64 = 60;

/// How long a request may still suffer from an outage of the server that is over: connections in the shop's pool
/// that are broken, tables that are being recovered.
const AFTERMATH: Duration = Duration::from_millis(500);

/// A run with fewer hits says nothing, and goes on for a while.
const ENOUGH: u64 = 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// What to do.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) instances: usize,
    pub(crate) clients: u64,
    pub(crate) writers: u64,
    /// There is one transaction for so many reads, on a slow machine as on a fast one.
    pub(crate) reads_per_write: u64,
    pub(crate) time: Duration,
    pub(crate) seed: u64,
    /// None: on a server of its own.
    pub(crate) database_url: Option<String>,
    /// None: strict.
    pub(crate) max_staleness: Option<Duration>,
    pub(crate) memory: Option<usize>,
    /// Some handlers take long, and commits come in between.
    pub(crate) long_fills: bool,
    pub(crate) disturbances: Vec<Disturbance>,
    /// Without, answers become stale.
    pub(crate) watched: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            instances: 3,
            clients: 9,
            writers: 3,
            reads_per_write: 12,
            time: Duration::from_secs(3),
            seed: 1,
            database_url: None,
            max_staleness: None,
            memory: None,
            long_fills: false,
            disturbances: Vec::new(),
            watched: true,
        }
    }
}

impl Plan {
    /// The command line of an instance.
    fn arguments(&self, database_url: &str) -> Vec<String> {
        let mut arguments = ["--listen", "127.0.0.1:0", "--database-url", database_url]
            .map(str::to_owned)
            .to_vec();
        if let Some(bound) = self.max_staleness {
            arguments.extend(["--max-staleness".to_owned(), bound.as_millis().to_string()]);
        }
        if let Some(bytes) = self.memory {
            arguments.extend(["--memory".to_owned(), bytes.to_string()]);
        }
        if !self.watched {
            arguments.push("--unwatched".to_owned());
        }
        arguments
    }

    /// Does it. `instance` makes a command, from arguments, that runs the shop.
    pub(crate) async fn run(
        self,
        instance: impl Fn(&[String]) -> Command,
    ) -> Result<Report, Error> {
        let (server, url) = match &self.database_url {
            Some(url) => (None, url.clone()),
            None => {
                let (server, url) = server().await?;
                (Some(Mutex::new(server)), url)
            }
        };
        let mut instances = Vec::new();
        for _ in 0..self.instances {
            instances.push(Instance::start(instance(&self.arguments(&url))));
        }
        // at the same time: they create the tables and the schema, and only one can
        let instances = futures_util::future::try_join_all(instances).await?;

        let run = Arc::new(Run {
            addresses: instances.iter().map(|instance| instance.address).collect(),
            pids: instances.iter().map(|instance| instance.pid).collect(),
            ledger: Ledger::default(),
            tally: Tally::default(),
            outages: Mutex::default(),
            over: AtomicBool::new(false),
            may_write: Semaphore::new(0),
            was_hit: Notify::new(),
            began: Instant::now(),
            two_phase: can_prepare(&url).await?,
            database_url: url,
            server,
            plan: self,
        });
        run.initial_rows().await?;
        run.go().await?;
        Ok(run.tally.report())
    }
}

async fn server() -> Result<(Server, String), Error> {
    // a deadlock of two writers is none of ours, and should not take long
    let options = ServerOptions::new().config("deadlock_timeout", "50ms");
    let server = tokio::task::spawn_blocking(|| Server::with(options)).await??;
    let url = server.database().await.url();
    Ok((server, url))
}

/// Whether transactions can be prepared.
async fn can_prepare(url: &str) -> Result<bool, Error> {
    let (sql, connection) = tower_pgcache::tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    let setting = sql
        .query_one(
            "SELECT current_setting('max_prepared_transactions')::int > 0",
            &[],
        )
        .await?;
    Ok(setting.get(0))
}

/// What all tasks of a run share.
#[derive(Debug)]
struct Run {
    plan: Plan,
    addresses: Vec<SocketAddr>,
    pids: Vec<u32>,
    database_url: String,
    server: Option<Mutex<Server>>,
    two_phase: bool,
    ledger: Ledger,
    tally: Tally,
    /// From when to when the server was down.
    outages: Mutex<Vec<(Instant, Option<Instant>)>>,
    over: AtomicBool,
    /// A permit for each transaction. Closed when the run is over.
    may_write: Semaphore,
    was_hit: Notify,
    began: Instant,
}

/// Ends an outage.
struct Outage<'a>(&'a Run);

impl Drop for Outage<'_> {
    fn drop(&mut self) {
        let mut outages = self
            .0
            .outages
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some((_, end)) = outages.last_mut() {
            *end = Some(Instant::now() + AFTERMATH);
        }
    }
}

impl Run {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    fn checked(&self, is_hit: bool) {
        if self.tally.checked(is_hit) % self.plan.reads_per_write.max(1) == 0 {
            self.may_write.add_permits(1);
        }
        if is_hit {
            self.was_hit.notify_one();
        }
    }

    fn floor(&self, began: Instant, wanted: impl Fn(RowId) -> bool) -> Floor {
        let allowed = self.plan.max_staleness.unwrap_or_default();
        let at = began.checked_sub(allowed).unwrap_or(self.began);
        self.ledger.floor(at, wanted)
    }

    fn outage(&self) -> Outage<'_> {
        let mut outages = self.outages.lock().unwrap_or_else(PoisonError::into_inner);
        outages.push((Instant::now(), None));
        Outage(self)
    }

    /// Something that began then has failed: for a good reason?
    fn refused(&self, began: Instant, what: impl Fn() -> String) {
        let outages = self.outages.lock().unwrap_or_else(PoisonError::into_inner);
        if outages
            .iter()
            .any(|(_, end)| end.is_none_or(|end| end > began))
        {
            self.tally.refused();
        } else {
            self.tally.failed(what());
        }
    }

    /// What the shop began with, or an earlier run has left.
    async fn initial_rows(&self) -> Result<(), Error> {
        let (sql, connection) =
            tower_pgcache::tokio_postgres::connect(&self.database_url, NoTls).await?;
        tokio::spawn(connection);
        for (table, select) in [
            (Table::Product, "SELECT id, version, tenant_id FROM product"),
            (
                Table::Price,
                "SELECT product_id, version, tenant_id FROM price",
            ),
            (Table::Order, "SELECT id, version, tenant_id FROM orders"),
        ] {
            let rows = sql.query(select, &[]).await?;
            let known = rows.iter().map(|row| Change {
                row: (table, row.get(0)),
                version: row.get(1),
                tenant: Some(row.get(2)),
            });
            self.ledger.committed(&known.collect::<Vec<_>>());
        }
        Ok(())
    }

    async fn go(self: &Arc<Self>) -> Result<(), Error> {
        let mut tasks = JoinSet::new();
        for number in 0..self.plan.clients {
            tasks.spawn(reader::read(self.clone(), number));
        }
        for number in 0..self.plan.writers {
            tasks.spawn(writer::write(self.clone(), number));
        }
        for disturbance in &self.plan.disturbances {
            tasks.spawn(disturbance.go_on(self.clone()));
        }
        sleep(self.plan.time).await;
        // on a slow machine it may not have come to anything yet
        let _ = timeout(PATIENCE, async {
            while self.tally.hits() < ENOUGH {
                self.was_hit.notified().await;
            }
        })
        .await;
        self.over.store(true, Ordering::Relaxed);
        self.may_write.close();
        while let Some(ended) = tasks.join_next().await {
            ended?;
        }
        Ok(())
    }
}
