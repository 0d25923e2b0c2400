//! The read and the write path, behind the HTTP service and in front of the store.
//!
//! 1. A request never fails and never waits longer than a deadline because of the engine: every fault ends as
//!    "not found, not to be stored", is counted, and is logged when the state changes.
//! 2. Nothing is spawned before the first request, and nothing lives on when the last handle is gone and the
//!    queues are empty.
//! 3. What a commit invalidated is decided in the store. What this instance failed to write down so far
//!    ([`changes`]) is decided here.

//!
//! # Bounds
//!
//! Everything that grows with requests has a bound, here and in the modules around. To reach one costs hits, or speed,
//! and nothing else. Tests are named with their file; those in `src` are in the module itself.
//!
//! | what | bound | setting | beyond it | test |
//! |---|---|---|---|---|
//! | answers in memory | 64 MiB | [`memory`](crate::PgCacheBuilder::memory) | the least used go | `memory`: `memory_is_bounded_by_bytes` |
//! | what URIs vary with | 10,000 URIs | | a lookup takes two statements | here |
//! | keys changed in the feed | 200,000 | | memory begins anew | `feed` |
//! | changes in one read of the feed | 40,000 keys | | memory begins anew | `memory`: `a_gap_in_the_feed…` |
//! | requests that wait for a read | 65,536, each half of `lookup_deadline` | | passed on | `feed` |
//! | reads of the feed under way | 1, also when it hangs | | | `limits`: `a_feed_that_hangs…` |
//! | lookups that wait | 8,192, each for [`lookup_deadline`](crate::PgCacheBuilder::lookup_deadline) | | passed on | `limits`: `beyond_so_many_lookups…` |
//! | lookups in a statement | 64 | | the next statement | `lookups` |
//! | connections that look up | half of the pool, 1 to 4 | [`lookup_connections`](crate::PgCacheBuilder::lookup_connections) | lookups wait | `lookups` |
//! | other statements under way | the pool; each waits for a connection until its deadline | [`store_deadline`](crate::PgCacheBuilder::store_deadline) | fails | `faults`: `a_server_that_hangs…` |
//! | flights | 10,000 keys | | who fills does so alone | `flight` |
//! | keys known not to be stored | 10,000, for 10 s | | somebody waits in vain | `flight` |
//! | waiting for a flight or a lease | 5 s, 2 disappointments | [`lease_wait`](crate::PgCacheBuilder::lease_wait) | the handler | `stampede`: `an_answer_that_never_comes…` |
//! | a lease | 10 s | [`lease_life`](crate::PgCacheBuilder::lease_life) | somebody else fills | `stampede`: `the_lease_of_an_instance…` |
//! | leases in Postgres | 65,536 places, 15 MB | | somebody else fills as well | `janitor`: `leases` |
//! | leases being given back | 1,024, each for `store_deadline` | | they expire | `limit` |
//! | answers to be stored | 1,024, 32 MiB | [`store_queue`](crate::PgCacheBuilder::store_queue) | not stored | `faults`: `a_full_queue…` |
//! | bodies being compressed | one transaction's, on one thread, for `store_deadline` | [`compress_from`](crate::PgCacheBuilder::compress_from) | stored as they are | `compression`: `without_a_thread…` |
//! | answers in a transaction | 32, and 1 % of `max_bytes`, `max_entries` | | the next one | `janitor`: `bounds` |
//! | waiting for room in the store | 2 s | | not stored | `janitor`: `disk` |
//! | changes being written | 4,096, each for [`change_deadline`](crate::PgCacheBuilder::change_deadline) | | overdue at once | `limits`: `beyond_so_many_that_write…` |
//! | overdue changes | 4,096 scopes, one task | | everything is overdue | `limits`: `beyond_so_many_overdue…` |
//! | background fills | 256 | | stale answers are served and refreshed later | `limits`: `so_many_answers…` |
//! | fills after `stale_if_error_after` | 256 | | given up with their request | `limits`: `of_the_fills…` |
//! | invalid entries known since when | 10,000, an hour if there are more | | not served invalidated | `refresh` |
//! | uses being counted | 1,000 keys | | not counted | `uses` |
//! | bodies on their way | 64 MiB, with 64 bytes for each chunk but the first 1,024 | [`fill_memory`](crate::PgCacheBuilder::fill_memory) | passed through | `bodies`: `memory_for_bodies…`, `limits`: `chunks_take_room…` |
//! | a body | 1 MiB | [`max_body`](crate::PgCacheLayer::max_body) | passed through | `bodies`: `a_body_that_is_too_big…` |
//! | a body that nobody reads | `store_deadline` | | given up | `faults`: `clients_that_leave…` |
//! | a question (QUERY, POST) | 64 KiB, and what it says of itself | [`safe_post`](crate::PgCacheLayer::safe_post) | passed through; 400 | `search`, `limits`: `a_question…` |
//! | dependencies of an answer | 64 | | not stored | `limits`: `an_answer_depends…` |
//! | transactions in a snapshot | 64 in progress | | sees less | `store::snapshot` |
//! | variants of a URI | 32 | | the oldest goes | `semantics`: `the_latest_32_variants…` |
//! | the name of a group (RFC 9875) | 1,024 bytes | | not stored | `http::structured`, `semantics`: `an_answer_of_a_group…` |
//! | parts of a range | 16 | | all of the answer | `http::range` |
//! | explanations of a layer | 256 | | none | `policy`: `a_layer_gives_so_many…` |
//! | parsers of the application's patterns | its routes | | | |
//! | what a handler says with `CacheScope` | its request | | | |
//! | entries, bytes, rows of the log in Postgres | 1,000,000, 1 GiB, 1,000,000 | [`max_entries`](crate::PgCacheBuilder::max_entries), [`max_bytes`](crate::PgCacheBuilder::max_bytes), [`max_log_rows`](crate::PgCacheBuilder::max_log_rows) | the least used go; the oldest rows go | `janitor`, `log`: `bound` |
//! | looks at a replica | 4, each for `lookup_deadline` | | not stored | `replicas`: `a_replica_that_hangs…` |
//! | housekeeping, vacuuming, listening, looking for the store, preparing | one task each | | | `faults`: `the_last_handle…` |

mod asking;
mod breaker;
mod capabilities;
mod changes;
mod clock;
mod entry;
mod feed;
mod fill;
mod flight;
mod gauge;
mod health;
mod housekeeping;
#[cfg(all(test, shuttle))]
mod interleaved;
mod lease;
mod limit;
mod listen;
mod memory;
mod readiness;
mod refresh;
mod replica;
mod room;
mod share;
mod stats;
mod unconfirmed;
mod uses;
mod writer;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::HeaderName;

pub(crate) use asking::{Asked, Question, Recalled};
pub use capabilities::Capabilities;
pub(crate) use changes::ChangeGuard;
pub(crate) use clock::Moment;
pub(crate) use entry::{Answer, Entry};
pub(crate) use fill::{Budget, Fill, Label, Reservation, StoredHead, Storing};
pub use housekeeping::Cleaned;
pub(crate) use limit::Place;
pub(crate) use listen::{Doorbell, Line};
pub(crate) use refresh::Refreshing;
pub(crate) use replica::Replica;
pub(crate) use share::Shared;
pub use stats::Stats;

use crate::domain::Scope;
use crate::error::{Error, ErrorKind};
use crate::http::reuse::Condition;
use crate::key::Key;
use crate::store::{Bounds, Creation, Database, Marker, Parameters, Record};
use crate::sync::timeout;
use breaker::Breaker;
use changes::Changes;
use feed::Feed;
use flight::Flights;
use gauge::{Gauge, Token};
use health::Health;
use lease::{GivingBack, Lease};
use limit::Limit;
use listen::Listener;
use memory::{Memory, Standing};
use readiness::Readiness;
use refresh::Refreshes;
use room::Room;
use stats::Counters;
use unconfirmed::Lookout;
use uses::Uses;
use writer::Writer;

/// For how many URIs an instance remembers what their answers vary with.
const VARYING_URIS: usize = 10_000;

/// How many fills may go on for nobody: as many as there are refreshes.
const MAX_LEFT_ALONE: usize = 256;

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
    /// Into how many tables a schema that is created splits its entries.
    pub(crate) partitions: Option<u32>,
    pub(crate) max_log_rows: i64,
    /// How much may be stored.
    pub(crate) bounds: Bounds,
    pub(crate) queue_entries: usize,
    pub(crate) queue_bytes: usize,
    pub(crate) fill_bytes: usize,
    /// Bodies of at least so many bytes are stored compressed.
    pub(crate) compress_from: Option<usize>,
    /// How long a request waits for somebody else's fill, and when the lease of such a fill expires.
    pub(crate) lease_wait: Duration,
    pub(crate) lease_life: Duration,
    /// A connection of its own that hears of commits.
    pub(crate) doorbell: Option<Arc<dyn Doorbell>>,
    /// Zero: nothing is kept in memory.
    pub(crate) memory_bytes: usize,
}

pub(crate) struct Engine {
    pub(crate) store: Arc<Database>,
    pub(crate) settings: Settings,
    pub(crate) budget: Arc<Budget>,
    readiness: Readiness,
    writer: Writer,
    changes: Changes,
    housekeeper: housekeeping::Housekeeper,
    room: Room,
    uses: Uses,
    /// What is still to be written, or may become so.
    pending: Gauge,
    reads: Breaker,
    lookout: Lookout,
    writes: Health,
    claims: Health,
    stats: Counters,
    /// The fields that the answers for a URI vary with, as far as this instance has met them.
    varying: quick_cache::sync::Cache<Key, Arc<[HeaderName]>>,
    refreshes: Refreshes,
    feed: Feed,
    memory: Memory,
    flights: Flights,
    giving_back: GivingBack,
    /// Fills that go on although their request has been answered with something else.
    left_alone: Limit<MAX_LEFT_ALONE>,
    listener: Listener,
    closed: AtomicBool,
    enabled: AtomicBool,
}

impl Engine {
    pub(crate) fn new(store: Arc<Database>, settings: Settings) -> Arc<Self> {
        let memory = Memory::new(settings.memory_bytes);
        Arc::new(Self {
            budget: Arc::new(Budget::new(settings.fill_bytes)),
            store,
            settings,
            readiness: Readiness::default(),
            writer: Writer::default(),
            changes: Changes::default(),
            housekeeper: housekeeping::Housekeeper::default(),
            room: Room::default(),
            uses: Uses::default(),
            pending: Gauge::default(),
            reads: Breaker::new("reading from the cache"),
            lookout: Lookout::default(),
            writes: Health::new("writing to the cache"),
            claims: Health::new("claiming leases (one fill over all instances)"),
            stats: Counters::default(),
            varying: quick_cache::sync::Cache::new(VARYING_URIS),
            refreshes: Refreshes::default(),
            feed: Feed::default(),
            flights: Flights::default(),
            giving_back: GivingBack::default(),
            left_alone: Limit::default(),
            listener: Listener::default(),
            memory,
            closed: AtomicBool::new(false),
            enabled: AtomicBool::new(true),
        })
    }

    /// Keeps an answer in memory that is also on its way into the store.
    fn remember(
        &self,
        answer: &Answer,
        marker: Option<&Marker>,
        condition: Condition,
        standing: Standing,
    ) {
        if !self.memory.is_on() || self.is_closed() || condition.fresh_for.is_zero() {
            return;
        }
        if let Some(Marker { key, fields }) = marker {
            // what stands there from before did not vary
            self.memory.remove(*key);
            self.varying.insert(*key, fields.as_slice().into());
        }
        self.memory.insert(answer, condition, standing);
    }

    fn push(self: &Arc<Self>, record: Record, lease: Option<Lease>) {
        if !self.is_closed() {
            self.writer.push(self, record, lease);
        }
    }

    /// Begins to refresh an entry in the background, unless that is going on.
    pub(crate) fn begin_refresh(self: &Arc<Self>, key: Key) -> Option<Refreshing> {
        self.refreshes.begin(key, self.pending.enter())
    }

    /// How long this instance has known that a commit has invalidated an entry; `None` if it cannot remember.
    pub(crate) fn known_invalid_for(&self, entry: &Entry) -> Option<Duration> {
        self.refreshes.known_invalid_for(entry.key, entry.checksum?)
    }

    /// A fill that may go on when nobody waits for it any more; `None`: there are too many of them.
    pub(crate) fn may_be_left_alone(&self) -> Option<Place> {
        self.left_alone.take()
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
            partitions: self.settings.partitions,
        });
        let partitions = self
            .store
            .prepare(creation, self.settings.store_deadline)
            .await?;
        if let Some(complaint) = self.partitioned_otherwise(partitions) {
            tracing::warn!("{complaint}");
        }
        self.readiness.set_ready();
        self.reads.hurry();
        Ok(())
    }

    /// Invalidates now; the caller gets to know.
    pub(crate) async fn invalidate(self: &Arc<Self>, scopes: Vec<Scope>) -> Result<(), Error> {
        if !self.usable().await? {
            return Ok(());
        }
        self.write_down(scopes, self.settings.store_deadline)
            .await
            .map(drop)
    }

    /// Commits invalidations. This instance knows of them from then on, the others find them in the feed.
    async fn write_down(
        self: &Arc<Self>,
        scopes: Vec<Scope>,
        within: Duration,
    ) -> Result<u64, Error> {
        let keys: Vec<i64> = scopes.iter().flat_map(Scope::invalidation_keys).collect();
        let xid = self.store.invalidate(scopes, within).await?;
        if self.memory.is_on() {
            self.feed.note(keys);
        }
        self.store_has_answered();
        self.stats.count(|s| &s.invalidations);
        Ok(xid)
    }

    async fn invalidate_all(self: &Arc<Self>, within: Duration) -> Result<(), Error> {
        self.store.clear(within).await?;
        self.feed.give_up();
        Ok(())
    }

    pub(crate) async fn clear(self: &Arc<Self>) -> Result<(), Error> {
        if !self.usable().await? {
            return Ok(());
        }
        self.invalidate_all(self.settings.store_deadline).await
    }

    pub(crate) async fn cleanup(self: &Arc<Self>) -> Result<Cleaned, Error> {
        if !self.usable().await? {
            return Ok(Cleaned::default());
        }
        housekeeping::clean_up(self).await
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
            self.memory.clear();
        }
        Ok(())
    }

    pub(crate) fn stats(&self) -> Stats {
        self.stats.read()
    }

    /// An entry has answered, which is found by way of `uri`, the key of its URI.
    pub(crate) fn count_hit(&self, uri: Key, entry: Key) {
        self.stats.count(|s| &s.hits);
        self.uses.count(entry);
        if uri != entry {
            self.uses.count(uri);
        }
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

/// Being late is an error like any other.
async fn in_time<T, E: From<Error>>(
    within: Duration,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    timeout(within, work).await.unwrap_or_else(|_| {
        let late = format!("no answer within {within:?}");
        Err(Error::new(ErrorKind::Timeout, late).into())
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

#[cfg(all(test, not(shuttle)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn of_so_many_uris_it_is_known_what_they_vary_with() {
        let varying = &crate::PgCache::disabled().engine.varying;
        for n in 0..3 * VARYING_URIS {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&n.to_be_bytes());
            let fields = [http::header::ACCEPT_ENCODING];
            varying.insert(Key::from_bytes(&bytes).unwrap(), fields.into());
        }
        let known = varying.len();
        assert!(
            (VARYING_URIS / 2..=VARYING_URIS).contains(&known),
            "{known}"
        );
    }
}
