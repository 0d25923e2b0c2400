//! The read and the write path, behind the HTTP service and in front of the store.
//!
//! 1. A request never fails and never waits longer than a deadline because of the engine: every fault ends as
//!    "not found, not to be stored", is counted, and is logged when the state changes.
//! 2. Nothing is spawned before the first request, and nothing lives on when the last handle is gone and the
//!    queues are empty.
//! 3. What a commit invalidated is decided in the store. What this instance failed to write down so far
//!    ([`changes`]) is decided here.

mod breaker;
mod changes;
mod fill;
mod gauge;
mod health;
mod housekeeping;
mod readiness;
mod refresh;
mod stats;
mod writer;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::{HeaderMap, HeaderName, StatusCode};
use tokio::runtime::Handle;
use tokio::time::timeout;

pub(crate) use changes::ChangeGuard;
pub(crate) use fill::{Budget, Fill, Label, Reservation, StoredHead, Storing};
pub use housekeeping::Cleaned;
pub(crate) use refresh::Refreshing;
pub use stats::Stats;

use crate::domain::Scope;
use crate::error::{Error, ErrorKind};
use crate::http::cache_status::Bypass;
use crate::http::fields::decode_head;
use crate::http::reuse::Condition;
use crate::key::Key;
use crate::store::{
    Creation, Found, Lookup, Origin, Parameters, Record, Store, Stored, WatchedTable,
};
use breaker::Breaker;
use changes::Changes;
use gauge::{Gauge, Token};
use health::Health;
use readiness::Readiness;
use refresh::Refreshes;
use stats::Counters;
use writer::Writer;

/// For how many URIs an instance remembers what their answers vary with.
const VARYING_URIS: usize = 10_000;

/// What the builder decided.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) has_database: bool,
    /// When the cache is closed.
    pub(crate) drops_schema: bool,
    pub(crate) lookup_deadline: Duration,
    pub(crate) store_deadline: Duration,
    /// How long a mutating request waits for its invalidation.
    pub(crate) change_deadline: Duration,
    /// Zero: never.
    pub(crate) cleanup_interval: Duration,
    pub(crate) auto_migrate: bool,
    pub(crate) durable: bool,
    /// The role that owns the schema, if not the one that is connected.
    pub(crate) owner: Option<String>,
    pub(crate) max_log_rows: i64,
    pub(crate) queue_entries: usize,
    pub(crate) queue_bytes: usize,
    pub(crate) fill_bytes: usize,
}

pub(crate) struct Engine {
    pub(crate) store: Arc<Store>,
    pub(crate) settings: Settings,
    pub(crate) budget: Arc<Budget>,
    readiness: Readiness,
    writer: Writer,
    changes: Changes,
    housekeeper: housekeeping::Housekeeper,
    /// What is still to be written, or may become so.
    pending: Gauge,
    reads: Breaker,
    writes: Health,
    stats: Counters,
    /// The fields that the answers for a URI vary with, as far as this instance has met them.
    varying: quick_cache::sync::Cache<Key, Arc<[HeaderName]>>,
    refreshes: Refreshes,
    closed: AtomicBool,
    enabled: AtomicBool,
}

/// What is active, as [`PgCache::capabilities`](crate::PgCache::capabilities) found it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// Whether there is a database at all; not for [`PgCache::disabled`](crate::PgCache::disabled).
    pub database: bool,
    /// Whether the tables survive a crash of the server.
    pub durable: bool,
    /// How many tables are watched ([`PgCache::watch`](crate::PgCache::watch)).
    pub watched_tables: usize,
    /// Whether the extension `pg_fraiseql_cache` is followed
    /// ([`PgCache::adopt_fraiseql`](crate::PgCache::adopt_fraiseql)).
    pub adopted_fraiseql: bool,
    /// What is set up and does not work as it should, each with its mend.
    pub warnings: Vec<String>,
}

/// What is amiss with a watched table.
fn complaints(watched: &WatchedTable, has_tenants: bool) -> Vec<String> {
    let WatchedTable {
        table,
        has_tenant,
        triggers,
        unwatched,
        broken,
    } = watched;
    let mut complaints = Vec::new();
    if triggers != "enabled" {
        complaints.push(format!(
            "the triggers of the watched table {table} are not as they should be ({triggers}): watch it again"
        ));
    }
    if !unwatched.is_empty() {
        complaints.push(format!(
            "partitions or children of the watched table {table} are not watched ({}): watch {table} again",
            unwatched.join(", ")
        ));
    }
    if !broken.is_empty() {
        complaints.push(format!(
            "columns of the watched table {table} are gone or of another type ({}), so every change invalidates its \
             whole domain: watch it again, with the columns that it has",
            broken.join(", ")
        ));
    }
    if *has_tenant && !has_tenants {
        complaints.push(format!(
            "the watched table {table} has a tenant column, and no tenant is configured: if its rows belong to \
             tenants, so do the answers made from them; see PgCacheBuilder::tenant"
        ));
    }
    complaints
}

/// A stored answer.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: Key,
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// Whether the cache made the `ETag`, so that the handler does not know it.
    pub(crate) etag_is_ours: bool,
    pub(crate) body: bytes::Bytes,
    pub(crate) condition: Condition,
    checksum: Vec<u8>,
    /// What its validity is judged by.
    pub(crate) probes: Vec<i64>,
}

impl Entry {
    /// A part of an answer (206), which is not one by itself.
    pub(crate) fn is_part(&self) -> bool {
        self.status == StatusCode::PARTIAL_CONTENT
    }
}

/// What to ask for: the key of a URI, and how the key of a variant comes about.
pub(crate) struct Question<'a> {
    pub(crate) key: Key,
    pub(crate) variant: &'a (dyn Fn(&[HeaderName]) -> Key + Sync),
    /// Under which key a part of the answer would stand, if parts are stored.
    pub(crate) part: Option<Key>,
    /// Also answers that are invalid and cannot be revalidated.
    pub(crate) invalid_too: bool,
}

/// The outcome of asking for an entry.
#[derive(Debug)]
pub(crate) enum Asked {
    /// What there is, perhaps nothing; if the inner service is asked, its answer may be stored.
    Known(Fill),
    /// The inner service is to be asked.
    Unusable(Bypass),
}

impl Engine {
    pub(crate) fn new(store: Arc<Store>, settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            budget: Arc::new(Budget::new(settings.fill_bytes)),
            store,
            settings,
            readiness: Readiness::default(),
            writer: Writer::default(),
            changes: Changes::default(),
            housekeeper: housekeeping::Housekeeper::default(),
            pending: Gauge::default(),
            reads: Breaker::new("reading from the cache"),
            writes: Health::new("writing to the cache"),
            stats: Counters::default(),
            varying: quick_cache::sync::Cache::new(VARYING_URIS),
            refreshes: Refreshes::default(),
            closed: AtomicBool::new(false),
            enabled: AtomicBool::new(true),
        })
    }

    /// Looks for an entry. Takes at most the lookup deadline.
    pub(crate) async fn ask(self: &Arc<Self>, question: Question<'_>) -> Asked {
        if !self.settings.has_database || !self.enabled.load(Ordering::Relaxed) {
            return Asked::Unusable(Bypass::Disabled);
        }
        if self.is_closed() || Handle::try_current().is_err() {
            return Asked::Unusable(Bypass::Closed);
        }
        self.housekeeper.start(self);
        self.housekeeper.note_traffic();
        let Some(attempt) = self.reads.admit() else {
            return Asked::Unusable(Bypass::Store);
        };
        let looked_up = in_time(self.settings.lookup_deadline, async {
            match self.readiness.ensure(self).await {
                Ok(()) => self.look_up(&question).await.map(Ok),
                Err(unprepared) => Ok(Err(unprepared)),
            }
        });
        match looked_up.await {
            Ok(Ok(Some((origin, found)))) => {
                attempt.succeeded();
                self.changes.keep_trying(self);
                return self.judge(question.key, origin, found);
            }
            Ok(Ok(None)) => self.readiness.forget(),
            // it is tried again in its own time, and costs nothing until then
            Ok(Err(unprepared)) => self.note_read_failure(&unprepared),
            Err(error) => {
                self.note_read_failure(&error);
                self.readiness.doubt(&error);
                attempt.failed(&error);
            }
        }
        Asked::Unusable(Bypass::Store)
    }

    fn note_read_failure(&self, error: &Error) {
        self.stats.count(|s| &s.errors);
        self.reads.is_ill(error);
    }

    /// One statement where the fields that a URI's answers vary with are known or there are none; else two.
    async fn look_up(
        self: &Arc<Self>,
        question: &Question<'_>,
    ) -> Result<Option<(Origin, Option<(Key, Found)>)>, Error> {
        let known = self.varying.get(&question.key);
        let mut keys = vec![question.key];
        keys.extend(known.as_deref().map(question.variant));
        keys.extend(question.part);
        let Some((origin, mut stored)) = self.rows(keys.clone(), question.invalid_too).await?
        else {
            return Ok(None);
        };
        // only where there is nothing more
        let part = question
            .part
            .and_then(|part| match take(&mut stored, part) {
                Some(Stored::Answer(found)) => Some((part, found)),
                _ => None,
            });
        let fields = match take(&mut stored, question.key) {
            Some(Stored::Answer(found)) => return Ok(Some((origin, Some((question.key, found))))),
            Some(Stored::Varies(fields)) => fields,
            None => return Ok(Some((origin, part))),
        };
        let variant = (question.variant)(&fields);
        let (origin, mut stored) = if keys.contains(&variant) {
            (origin, stored)
        } else {
            self.varying.insert(question.key, fields.into());
            match self.rows(vec![variant], question.invalid_too).await? {
                Some(rows) => rows,
                None => return Ok(None),
            }
        };
        let found = match take(&mut stored, variant) {
            Some(Stored::Answer(found)) => Some((variant, found)),
            _ => part,
        };
        Ok(Some((origin, found)))
    }

    async fn rows(
        self: &Arc<Self>,
        keys: Vec<Key>,
        invalid_too: bool,
    ) -> Result<Option<(Origin, Vec<(Key, Stored)>)>, Error> {
        Ok(
            match self
                .store
                .lookup(keys, invalid_too, self.settings.lookup_deadline)
                .await?
            {
                Lookup::Rows { origin, stored } => Some((origin, stored)),
                Lookup::NoEpoch => None,
            },
        )
    }

    fn judge(self: &Arc<Self>, key: Key, origin: Origin, found: Option<(Key, Found)>) -> Asked {
        if found
            .as_ref()
            .is_some_and(|(_, found)| self.changes.concern(&found.probes))
        {
            // a change that we know of and could not write down yet
            return Asked::Unusable(Bypass::Store);
        }
        let entry = found.and_then(|(key, found)| {
            let Found {
                head,
                body,
                valid,
                age,
                fresh_for,
                stale_for,
                checksum,
                probes,
            } = found;
            // a head that does not decode was stored by a program that wrote it in another way
            let (status, headers, etag_is_ours) = decode_head(&head)?;
            let condition = Condition {
                age,
                fresh_for,
                stale_for,
                valid,
            };
            Some(Entry {
                key,
                status,
                headers,
                etag_is_ours,
                body,
                condition,
                checksum,
                probes,
            })
        });
        Asked::Known(Fill::new(self.clone(), key, origin, entry))
    }

    fn push(self: &Arc<Self>, record: Record) {
        if !self.is_closed() {
            self.writer.push(self, record);
        }
    }

    /// Begins to refresh an entry in the background, unless that is going on.
    pub(crate) fn begin_refresh(self: &Arc<Self>, key: Key) -> Option<Refreshing> {
        self.refreshes.begin(key, self.pending.enter())
    }

    /// How long this instance has known that a commit has invalidated an entry; `None` if it cannot remember.
    pub(crate) fn known_invalid_for(&self, entry: &Entry) -> Option<Duration> {
        self.refreshes.known_invalid_for(entry.key, &entry.checksum)
    }

    /// Something that may lead to a store; [`settled`](Self::settled) waits for it.
    pub(crate) fn begin_work(&self) -> Token {
        self.pending.enter()
    }

    /// Creates or migrates the schema, whatever `auto_migrate` says.
    pub(crate) async fn migrate(self: &Arc<Self>) -> Result<(), Error> {
        self.refuse_if_closed()?;
        self.prepare(true).await
    }

    /// Finds out whether the cache can be used, now.
    pub(crate) async fn ready(self: &Arc<Self>) -> Result<(), Error> {
        self.refuse_if_closed()?;
        self.prepare(self.settings.auto_migrate).await
    }

    async fn prepare(self: &Arc<Self>, migrate: bool) -> Result<(), Error> {
        if !self.settings.has_database {
            self.readiness.set_ready();
            return Ok(());
        }
        let creation = migrate.then_some(Creation {
            durable: self.settings.durable,
            owner: self.settings.owner.clone(),
        });
        self.store
            .prepare(creation, self.settings.store_deadline)
            .await?;
        self.readiness.set_ready();
        self.reads.hurry();
        Ok(())
    }

    /// Invalidates now; the caller gets to know.
    pub(crate) async fn invalidate(self: &Arc<Self>, scopes: Vec<Scope>) -> Result<(), Error> {
        if !self.usable().await? {
            return Ok(());
        }
        self.store
            .invalidate(scopes, self.settings.store_deadline)
            .await?;
        self.stats.count(|s| &s.invalidations);
        Ok(())
    }

    pub(crate) async fn clear(self: &Arc<Self>) -> Result<(), Error> {
        if !self.usable().await? {
            return Ok(());
        }
        self.store.clear(self.settings.store_deadline).await
    }

    pub(crate) async fn cleanup(self: &Arc<Self>) -> Result<Cleaned, Error> {
        if !self.usable().await? {
            return Ok(Cleaned {
                entries: 0,
                log_rows: 0,
            });
        }
        housekeeping::sweep(self).await
    }

    pub(crate) async fn capabilities(
        self: &Arc<Self>,
        has_tenants: bool,
    ) -> Result<Capabilities, Error> {
        if !self.usable().await? {
            return Ok(Capabilities::default());
        }
        let installed = self.store.installed(self.settings.store_deadline).await?;
        Ok(Capabilities {
            database: true,
            durable: installed.durable,
            watched_tables: installed.watched.len(),
            adopted_fraiseql: installed.adopted,
            warnings: installed
                .watched
                .iter()
                .flat_map(|watched| complaints(watched, has_tenants))
                .collect(),
        })
    }

    pub(crate) fn set_enabled(&self, on: bool) {
        self.enabled.store(on, Ordering::Relaxed);
    }

    /// Calls a function that administrates the schema; without a database, nothing happens.
    pub(crate) async fn administer(
        self: &Arc<Self>,
        statement: &str,
        within: Duration,
        parameters: impl FnOnce(&mut Parameters),
    ) -> Result<Vec<Vec<String>>, Error> {
        if !self.usable().await? {
            return Ok(Vec::new());
        }
        let mut given = Parameters::default();
        parameters(&mut given);
        self.store.administer(statement, within, given).await
    }

    /// False if there is no database, and so nothing to do.
    async fn usable(self: &Arc<Self>) -> Result<bool, Error> {
        self.refuse_if_closed()?;
        self.readiness.ensure(self).await?;
        Ok(self.settings.has_database)
    }

    /// Waits until nothing is left to write.
    pub(crate) async fn settled(&self) {
        self.pending.zero().await;
    }

    /// Stops. What is queued is written first, for as long as the store deadline.
    pub(crate) async fn close(self: &Arc<Self>) {
        self.closed.store(true, Ordering::Release);
        if timeout(self.settings.store_deadline, self.settled())
            .await
            .is_err()
        {
            tracing::warn!(
                "the cache was closed with work left that the database did not accept in time"
            );
        }
        self.housekeeper.stop();
        if self.settings.drops_schema {
            if let Err(error) = self.store.drop_schema(self.settings.store_deadline).await {
                tracing::warn!(%error, "the schema of an ephemeral cache could not be dropped");
            }
        }
    }

    #[cfg(feature = "test-util")]
    pub(crate) async fn expire(
        self: &Arc<Self>,
        authority: Option<String>,
        path: String,
    ) -> Result<(), Error> {
        if self.usable().await? {
            self.store
                .expire(authority, path, self.settings.store_deadline)
                .await?;
        }
        Ok(())
    }

    pub(crate) fn stats(&self) -> Stats {
        self.stats.read()
    }

    pub(crate) fn count_hit(&self) {
        self.stats.count(|s| &s.hits);
    }

    pub(crate) fn count_miss(&self) {
        self.stats.count(|s| &s.misses);
    }

    pub(crate) fn count_bypass(&self) {
        self.stats.count(|s| &s.bypasses);
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn refuse_if_closed(&self) -> Result<(), Error> {
        if self.is_closed() {
            Err(Error::new(ErrorKind::Closed, "the cache was closed"))
        } else {
            Ok(())
        }
    }
}

/// What stands under a key.
fn take(stored: &mut Vec<(Key, Stored)>, key: Key) -> Option<Stored> {
    let at = stored.iter().position(|(k, _)| *k == key)?;
    Some(stored.swap_remove(at).1)
}

/// Being late is an error like any other.
async fn in_time<T>(
    within: Duration,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    timeout(within, work).await.unwrap_or_else(|_| {
        Err(Error::new(
            ErrorKind::Timeout,
            format!("no answer within {within:?}"),
        ))
    })
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("store", &self.store)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
