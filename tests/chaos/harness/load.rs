//! Clients that read from every instance and check each answer, and writers that commit changes in the cache's
//! database.
//!
//! 1. A writer changes the page at the origin, then commits its transaction: from the commit on, nobody may be served
//!    an older version. (Before, somebody may see the new one already.)
//! 2. A writer whose transaction fails has changed nothing that anybody may rely on. A client that sees anything
//!    but a page has seen an error, always.
//! 3. What is changed through an instance is asked for there only: that is all that a mutating route promises while
//!    the database is away.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use serde_json::json;
use test_support::random::Random;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tower_pgcache::tokio_postgres::{Client as Sql, Config, NoTls};

use super::Error;
use super::http::{Answer, Ask, Client};
use super::ledger::{Change, Ledger, RowId, Shown, Table};
use super::origin::Origin;
use super::tally::{Report, Tally};

/// Whose all pages are.
const ALL: &str = "all";

/// So many pages of a kind.
pub(super) const PAGES: i64 = 12;

const READERS_OF_AN_INSTANCE: usize = 3;

/// Between two requests of a client, and between two changes: the machine has other work.
const THINK: Duration = Duration::from_millis(1);
const WRITE: Duration = Duration::from_millis(8);

/// The ledger's tables are the shop's. Here they are the ways in which a page can change.
const WATCHED: Table = Table::Product;
const NAMED: Table = Table::Price;
const ROUTED: Table = Table::Order;
const KINDS: [Table; 3] = [WATCHED, NAMED, ROUTED];

fn path((kind, id): RowId) -> String {
    match kind {
        WATCHED => format!("page/{id}"),
        NAMED => format!("named/{id}"),
        ROUTED => format!("routed/{id}"),
    }
}

#[derive(Debug)]
pub(super) struct Load {
    pub(super) instances: Vec<SocketAddr>,
    pub(super) max_staleness: Duration,
    origin: Origin,
    ledger: Ledger,
    tally: Tally,
    /// Of each instance.
    hits: Vec<AtomicU64>,
    /// Of each kind, what was committed.
    changes: [AtomicU64; 3],
    /// The slowest GET. (Others wait for their invalidation.)
    slowest: Mutex<(Duration, String)>,
    pub(super) began: Instant,
    resting: AtomicBool,
    /// Where changes are committed.
    database: watch::Sender<Config>,
}

impl Load {
    pub(super) fn new(instances: Vec<SocketAddr>, origin: Origin, database: Config) -> Self {
        Self {
            hits: instances.iter().map(|_| AtomicU64::new(0)).collect(),
            instances,
            max_staleness: Duration::ZERO,
            origin,
            ledger: Ledger::default(),
            tally: Tally::default(),
            changes: Default::default(),
            slowest: Mutex::default(),
            began: Instant::now(),
            resting: AtomicBool::new(false),
            database: watch::Sender::new(database),
        }
    }

    /// Until it [`rests`](Self::rest).
    pub(super) fn go_on(self: &Arc<Self>, random: &mut Random) -> JoinSet<()> {
        self.resting.store(false, Ordering::Relaxed);
        let mut tasks = JoinSet::new();
        for instance in 0..self.instances.len() {
            for _ in 0..READERS_OF_AN_INSTANCE {
                tasks.spawn(self.clone().read(instance, random.fork()));
            }
        }
        for kind in KINDS {
            tasks.spawn(self.clone().write(kind, random.fork()));
        }
        tasks
    }

    pub(super) fn rest(&self) {
        self.resting.store(true, Ordering::Relaxed);
    }

    pub(super) fn write_to(&self, database: Config) {
        self.database.send_replace(database);
    }

    pub(super) fn report(&self) -> Report {
        self.tally.report()
    }

    /// How long it took, and what it was.
    pub(super) fn slowest(&self) -> (Duration, String) {
        self.slowest
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Hits of each instance, then changes of each kind.
    pub(super) fn progress(&self) -> Vec<u64> {
        let counters = self.hits.iter().chain(&self.changes);
        counters
            .map(|counter| counter.load(Ordering::Relaxed))
            .collect()
    }

    fn rests(&self) -> bool {
        self.resting.load(Ordering::Relaxed)
    }

    async fn read(self: Arc<Self>, instance: usize, mut random: Random) {
        let client = Client::new(self.instances[instance]);
        while !self.rests() {
            let kind = random.of(&KINDS);
            let id = match kind {
                ROUTED => self.routed(instance, &mut random),
                _ => 1 + random.below(PAGES),
            };
            self.ask(&client, instance, (kind, id)).await;
            sleep(THINK).await;
        }
    }

    /// A page that this instance alone changes.
    fn routed(&self, instance: usize, random: &mut Random) -> i64 {
        let instances = i64::try_from(self.instances.len()).unwrap();
        i64::try_from(instance).unwrap() + instances * (1 + random.below(3))
    }

    /// Asks, and checks the answer.
    async fn ask(&self, client: &Client, instance: usize, page: RowId) {
        let path = &format!("/{}", path(page));
        let began = Instant::now();
        let at = began.checked_sub(self.max_staleness).unwrap_or(self.began);
        let floor = self.ledger.floor(at, |row| row == page);
        let hold = Duration::ZERO;
        let answer = client
            .get(&Ask {
                tenant: ALL,
                path,
                hold,
            })
            .await;
        self.took(began.elapsed(), path, &answer);
        let (answer, version) = match answer {
            Ok(answer) => match version(&answer, path) {
                Some(version) => (answer, version),
                None => return self.tally.failed(format!("GET {path}: {answer:?}")),
            },
            Err(error) => return self.tally.failed(format!("GET {path}: {error}")),
        };
        self.tally.checked(answer.is_hit);
        self.hits[instance].fetch_add(answer.is_hit.into(), Ordering::Relaxed);
        let shown = Shown {
            rows: vec![(page, version, ALL.to_owned())],
            ..Shown::default()
        };
        let wrong = self.ledger.judge(&floor, &shown);
        if !wrong.is_empty() {
            self.tally.stale(format!(
                "GET {path} from instance {instance} ({}), asked {:.3} s and answered {:.3} s after the start: {}",
                answer.cache_status,
                (began - self.began).as_secs_f64(),
                self.began.elapsed().as_secs_f64(),
                wrong.join("; ")
            ));
        }
    }

    fn took(&self, time: Duration, path: &str, answer: &Result<Answer, Error>) {
        self.tally.took(time);
        let mut slowest = self.slowest.lock().unwrap_or_else(PoisonError::into_inner);
        if time > slowest.0 {
            let how = answer
                .as_ref()
                .map_or("no answer", |answer| &answer.cache_status);
            *slowest = (
                time,
                format!(
                    "GET {path} ({how}), answered {:.3} s after the start",
                    self.began.elapsed().as_secs_f64()
                ),
            );
        }
    }

    async fn write(self: Arc<Self>, kind: Table, mut random: Random) {
        let clients: Vec<Client> = self.instances.iter().map(|at| Client::new(*at)).collect();
        while !self.rests() {
            if kind == ROUTED {
                self.change_through_an_instance(&clients, &mut random).await;
                sleep(3 * WRITE).await;
            } else if self
                .change_by_sql(kind, &clients, &mut random)
                .await
                .is_err()
            {
                self.tally.gave_up();
                sleep(WRITE).await;
            }
        }
    }

    /// Until the connection breaks, or another database is to be written to.
    async fn change_by_sql(
        &self,
        kind: Table,
        clients: &[Client],
        random: &mut Random,
    ) -> Result<(), Error> {
        let mut database = self.database.subscribe();
        let config = database.borrow_and_update().clone();
        let (sql, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        while !self.rests() && !database.has_changed()? {
            let page = (kind, 1 + random.below(PAGES));
            let change = self.change_of(page);
            self.ledger.note(std::slice::from_ref(&change));
            if let Err(error) = commit(&sql, &change).await {
                let _ = sql.batch_execute("ROLLBACK").await;
                return Err(error);
            }
            self.committed(change);
            self.tally.wrote();
            // nobody asks sooner after a commit than who has made it
            for (instance, client) in clients.iter().enumerate() {
                self.ask(client, instance, page).await;
            }
            sleep(WRITE).await;
        }
        Ok(())
    }

    fn change_of(&self, row: RowId) -> Change {
        Change {
            row,
            version: self.origin.change(&path(row)),
            tenant: Some(ALL.to_owned()),
        }
    }

    fn committed(&self, change: Change) {
        let kind = KINDS.iter().position(|kind| *kind == change.row.0);
        self.ledger.committed(&[change]);
        self.changes[kind.unwrap()].fetch_add(1, Ordering::Relaxed);
    }

    async fn change_through_an_instance(&self, clients: &[Client], random: &mut Random) {
        let instance = random.below(clients.len());
        let row = (ROUTED, self.routed(instance, random));
        let path = format!("/{}", path(row));
        let answer = clients[instance]
            .write(Method::PUT, ALL, &path, &json!({}))
            .await;
        match answer {
            Ok(answer) => match version(&answer, &path) {
                Some(version) => {
                    let tenant = Some(ALL.to_owned());
                    self.committed(Change {
                        row,
                        version,
                        tenant,
                    });
                    self.ask(&clients[instance], instance, row).await;
                }
                None => self.tally.failed(format!("PUT {path}: {answer:?}")),
            },
            Err(error) => self.tally.failed(format!("PUT {path}: {error}")),
        }
    }
}

/// `None` if it is not the page that was asked for.
fn version(answer: &Answer, path: &str) -> Option<i64> {
    let asked_for = answer.body["path"].as_str() == Some(path.trim_start_matches('/'));
    let is_page = asked_for && answer.status == StatusCode::OK;
    answer.body["version"].as_i64().filter(|_| is_page)
}

/// A table that is not watched any more is not changed: nobody promises anything then. (The check is a division by
/// zero; the update's lock keeps the triggers until the end.)
async fn commit(sql: &Sql, change: &Change) -> Result<(), Error> {
    let (kind, id) = change.row;
    let version = change.version;
    let statements = if kind == WATCHED {
        format!(
            "BEGIN; UPDATE public.page SET version = {version} WHERE id = {id};
             SELECT 1 / count(*) FROM pg_catalog.pg_trigger
              WHERE tgrelid = 'public.page'::pg_catalog.regclass AND tgname LIKE 'pgcache%'; COMMIT"
        )
    } else {
        format!("BEGIN; SELECT pgcache.invalidate('named', NULL, '{id}'); COMMIT")
    };
    Ok(sql.batch_execute(&statements).await?)
}
