//! A model of the database, for the tests of interleavings: what `sql/schema_1/read.sql`, `sql/store.sql` and the rules of
//! MVCC say, and no SQL.
//!
//! 1. Transactions get their ids when they begin and are seen from when they commit, in whatever order. A snapshot is
//!    what Postgres would give: `xmax`, and what is in progress below it.
//! 2. Everything that is asked travels to the server, is done there in one step (what writes: in two, between which its
//!    transaction is in progress), and travels back. Anything may happen on the way, and either way may fail.
//! 3. The log may be cut, and the server may crash: with a new epoch, or in the same one with the ids of transactions
//!    handed out again.
//! 4. It also holds what the handlers read: the versions of some items. A version is *promised* once every request that
//!    arrives has to see it.

#![allow(clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shuttle::rand::{Rng, thread_rng};

use super::{
    Claimed, Creation, Expiring, FeedRead, Found, Keys, Lookup, Nowhere, Origin, Position, Record,
    SchemaName, Snapshot, Source, Store, Stored, StoredBody, Timer, Volume,
};
use crate::domain::Scope;
use crate::error::{Error, ErrorKind};
use crate::key::Key;
use crate::sync::{self, AtomicU64, Instant, yield_now};

/// A store whose statements go to a [`Model`]: those of requests, of stores and of invalidations.
#[derive(Debug)]
pub(crate) struct Database {
    rest: Arc<Store>,
    model: Arc<Model>,
}

/// For everything that is not modelled: there is no database.
impl Deref for Database {
    type Target = Arc<Store>;

    fn deref(&self) -> &Arc<Store> {
        &self.rest
    }
}

#[derive(Debug)]
pub(crate) struct Model {
    state: Mutex<State>,
    /// Others may go on wherever it is touched.
    steps: AtomicU64,
    /// How many transactions a read of the feed returns at most.
    feed_limit: usize,
}

#[derive(Debug)]
struct State {
    next_xid: u64,
    running: BTreeSet<u64>,
    /// What has committed: the transactions' keys.
    log: Vec<(u64, Vec<i64>)>,
    horizon: Snapshot,
    /// How many epochs there were, and whether there is one now.
    epochs: u64,
    has_epoch: bool,
    incarnation: u64,
    entries: BTreeMap<Key, Row>,
    leases: BTreeMap<Key, Lease>,
    items: Vec<Item>,
    /// How many of the next messages may be lost.
    faults: u32,
}

#[derive(Debug, Default)]
struct Item {
    version: u64,
    /// Versions, and when they were promised.
    promised: Vec<(u64, Duration)>,
}

#[derive(Debug)]
struct Row {
    epoch: Arc<str>,
    snapshot: Snapshot,
    probes: Vec<i64>,
    head: Vec<u8>,
    body: StoredBody,
    at: f64,
    ttl: Duration,
}

#[derive(Debug)]
struct Lease {
    holder: i64,
    expires_at: Duration,
    released: Option<u64>,
}

impl State {
    fn snapshot(&self) -> Snapshot {
        let xmin = self.running.first().unwrap_or(&self.next_xid);
        let xip: Vec<String> = self.running.iter().map(u64::to_string).collect();
        let text = format!("{xmin}:{}:{}", self.next_xid, xip.join(","));
        text.parse().expect("a snapshot")
    }

    fn origin(&self) -> Option<Origin> {
        self.has_epoch.then(|| Origin {
            epoch: self.epochs.to_string().into(),
            incarnation: self.incarnation.to_string().into(),
            snapshot: self.snapshot(),
            at: sync::now().as_secs_f64(),
        })
    }

    fn is_usable(&self, snapshot: &Snapshot) -> bool {
        let horizon = &self.horizon;
        snapshot.xmax() >= horizon.xmax() && !snapshot.xip.iter().any(|&xid| horizon.sees(xid))
    }

    /// The changes that `since` does not see.
    fn unseen_by<'a>(&'a self, since: &'a Snapshot) -> impl Iterator<Item = &'a (u64, Vec<i64>)> {
        self.log.iter().filter(|(xid, _)| !since.sees(*xid))
    }

    fn is_valid(&self, row: &Row) -> bool {
        let changed = |keys: &[i64]| keys.iter().any(|key| row.probes.contains(key));
        *row.epoch == *self.epochs.to_string()
            && self.is_usable(&row.snapshot)
            && !self.unseen_by(&row.snapshot).any(|(_, keys)| changed(keys))
    }

    fn found(&self, key: Key, invalid_too: bool) -> Option<(Key, Stored)> {
        let row = self.entries.get(&key)?;
        let valid = self.is_valid(row);
        let age = sync::now().as_secs_f64() - row.at;
        let age = Duration::try_from_secs_f64(age).unwrap_or_default();
        let found = Found {
            head: row.head.clone().into(),
            body: row.body.clone(),
            probes: row.probes.clone(),
            valid,
            age,
            fresh_for: row.ttl.saturating_sub(age),
            stale_for: age.saturating_sub(row.ttl),
            checksum: [1; 16],
            cost: Duration::ZERO,
            snapshot: row.snapshot.clone(),
        };
        (valid || invalid_too).then(|| (key, Stored::Answer(Box::new(found))))
    }

    fn begin(&mut self) -> u64 {
        let xid = self.next_xid;
        self.next_xid += 1;
        self.running.insert(xid);
        xid
    }

    /// False if it was aborted.
    fn end(&mut self, xid: u64, keys: Vec<i64>) -> bool {
        let committed = self.running.remove(&xid);
        if committed {
            self.log.push((xid, keys));
        }
        committed
    }

    fn store(&mut self, record: &Record, xid: u64) -> bool {
        if let Some((key, holder)) = record.lease {
            if let Some(lease) = self.leases.get_mut(&key).filter(|l| l.holder == holder) {
                lease.released = Some(xid);
            }
        }
        let Some(now) = self.origin() else {
            return false;
        };
        let Origin {
            epoch,
            incarnation,
            snapshot,
            at,
        } = record.origin.clone();
        let is_later = self.entries.get(&record.key).is_none_or(|known| {
            known.epoch != epoch
                || known.snapshot.xmax() <= snapshot.xmax()
                || known.snapshot.xmax() > now.snapshot.xmax()
        });
        let accepted = epoch == now.epoch
            && incarnation == now.incarnation
            && snapshot.xmax() <= now.snapshot.xmax()
            && self.is_usable(&snapshot)
            && is_later;
        if accepted {
            let row = Row {
                epoch,
                snapshot,
                probes: record.probes.clone(),
                head: record.head.clone(),
                body: record.body.clone(),
                at,
                ttl: record.ttl,
            };
            self.entries.insert(record.key, row);
        }
        accepted
    }

    fn claim(&mut self, key: Key, holder: i64, life: Duration, seen: &Snapshot) -> Claimed {
        let known = self.leases.get(&key);
        let released = known.and_then(|lease| lease.released);
        let is_held =
            known.is_some_and(|lease| lease.released.is_none() && lease.expires_at > sync::now());
        if released.is_some_and(|xid| xid < self.snapshot().xmax() && !seen.sees(xid)) {
            return Claimed::LookAgain;
        }
        if is_held {
            return Claimed::Held;
        }
        let lease = Lease {
            holder,
            expires_at: sync::now() + life,
            released: None,
        };
        self.leases.insert(key, lease);
        Claimed::Granted
    }
}

/// What happens in the database without the cache.
impl Model {
    pub(crate) fn new(items: usize, feed_limit: usize) -> Arc<Self> {
        let items = std::iter::repeat_with(Item::default).take(items);
        Arc::new(Self {
            state: Mutex::new(State {
                next_xid: 10,
                running: BTreeSet::new(),
                log: Vec::new(),
                horizon: "3:3:".parse().expect("a snapshot"),
                epochs: 0,
                has_epoch: false,
                incarnation: 0,
                entries: BTreeMap::new(),
                leases: BTreeMap::new(),
                items: items.collect(),
                faults: 0,
            }),
            steps: AtomicU64::new(0),
            feed_limit,
        })
    }

    /// Whatever happens to be on: this goes on later. Only after some of the steps can a task be dropped.
    pub(crate) async fn step(&self) {
        if thread_rng().gen_bool(0.3) {
            yield_now().await;
        } else {
            self.steps.load(std::sync::atomic::Ordering::SeqCst);
        }
    }

    /// So that what others do in many steps may come in between.
    pub(crate) async fn pause(&self) {
        for _ in 0..thread_rng().gen_range(0..8) {
            yield_now().await;
        }
    }

    async fn travel(&self) -> Result<(), Error> {
        if thread_rng().gen_bool(0.5) {
            self.step().await;
        } else {
            self.pause().await;
        }
        let is_lost = {
            let mut state = self.lock();
            let is_lost = state.faults > 0 && thread_rng().gen_bool(0.2);
            state.faults -= u32::from(is_lost);
            is_lost
        };
        if is_lost {
            return Err(Error::new(ErrorKind::Unavailable, "the connection is lost"));
        }
        Ok(())
    }

    pub(crate) fn begin(&self) -> u64 {
        self.lock().begin()
    }

    /// A transaction that has changed items, with its invalidations.
    pub(crate) fn commit(&self, xid: u64, items: &[usize], scopes: &[Scope]) {
        let mut state = self.lock();
        if state.end(xid, keys(scopes)) {
            for item in items {
                let item = &mut state.items[*item];
                item.version += 1;
                item.promised.push((item.version, sync::now()));
            }
        }
    }

    /// A change without its invalidation. Returns the version to be promised.
    pub(crate) fn change(&self, item: usize) -> u64 {
        let item = &mut self.lock().items[item];
        item.version += 1;
        item.version
    }

    pub(crate) fn promise(&self, item: usize, version: u64) {
        let item = &mut self.lock().items[item];
        item.promised.push((version, sync::now()));
    }

    pub(crate) fn version(&self, item: usize) -> u64 {
        self.lock().items[item].version
    }

    /// The oldest version that a request may get that arrives now.
    pub(crate) fn promised(&self, item: usize, max_staleness: Duration) -> u64 {
        let now = sync::now();
        let promised = &self.lock().items[item].promised;
        let binding = promised
            .iter()
            .filter(|(_, at)| max_staleness.is_zero() || *at + max_staleness < now);
        binding.map(|(version, _)| *version).max().unwrap_or(0)
    }

    /// Cuts the log: nobody who has not seen all of it can say what has changed.
    pub(crate) fn prune(&self) {
        let mut state = self.lock();
        let horizon = state.snapshot();
        state.log.retain(|(xid, _)| !horizon.sees(*xid));
        state.horizon = horizon;
    }

    /// What is not logged is lost.
    pub(crate) fn crash(&self) {
        let mut state = self.lock();
        state.running.clear();
        state.log.clear();
        state.entries.clear();
        state.leases.clear();
        state.incarnation += 1;
        state.has_epoch = false;
    }

    /// With tables that survive. Ids that were not committed with are handed out again.
    pub(crate) fn crash_of_a_durable_one(&self) {
        let mut state = self.lock();
        state.running.clear();
        state.leases.clear();
        state.incarnation += 1;
        let log = state.log.iter().map(|(xid, _)| *xid + 1);
        let entries = state.entries.values().map(|row| row.snapshot.xmax());
        let next = log.chain(entries).chain([state.horizon.xmax()]).max();
        state.next_xid = next.unwrap_or(10);
    }

    /// From now on, so many messages may be lost.
    pub(crate) fn lose(&self, faults: u32) {
        self.lock().faults = faults;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn transaction<T>(&self, commit: impl FnOnce(&mut State, u64) -> T) -> Result<T, Error> {
        self.travel().await?;
        let xid = self.begin();
        self.step().await;
        let done = {
            let mut state = self.lock();
            if !state.running.contains(&xid) {
                return Err(Error::new(ErrorKind::Unavailable, "the server has crashed"));
            }
            commit(&mut state, xid)
        };
        self.travel().await?;
        Ok(done)
    }
}

fn keys(scopes: &[Scope]) -> Vec<i64> {
    scopes.iter().flat_map(Scope::invalidation_keys).collect()
}

/// What the engine asks, as [`Store`] has it.
impl Database {
    pub(crate) fn new(
        source: Box<dyn Source>,
        schema: &SchemaName,
        lookup_connections: Option<usize>,
    ) -> Arc<Self> {
        Arc::new(Self {
            rest: Store::new(source, schema, lookup_connections),
            model: Model::new(0, 0),
        })
    }

    pub(crate) fn of(model: &Arc<Model>) -> Arc<Self> {
        Arc::new(Self {
            rest: Store::new(Box::new(Nowhere), &SchemaName::default(), None),
            model: model.clone(),
        })
    }

    pub(crate) async fn prepare(
        self: &Arc<Self>,
        _create: Option<Creation>,
        _within: Duration,
    ) -> Result<Option<u32>, Error> {
        self.model.travel().await?;
        {
            let mut state = self.model.lock();
            if !state.has_epoch {
                state.has_epoch = true;
                state.epochs += 1;
                state.horizon = state.snapshot();
            }
        }
        self.model.travel().await?;
        Ok(None)
    }

    pub(crate) async fn lookup(
        self: &Arc<Self>,
        keys: Keys,
        invalid_too: bool,
        _now: Instant,
        _until: Instant,
    ) -> Result<Lookup, Error> {
        self.model.travel().await?;
        let found = {
            let state = self.model.lock();
            let rows = keys.iter().filter_map(|key| state.found(*key, invalid_too));
            let stored = rows.collect();
            match state.origin() {
                Some(origin) => Lookup::Rows {
                    origin: Arc::new(origin),
                    stored,
                },
                None => Lookup::NoEpoch,
            }
        };
        self.model.travel().await?;
        Ok(found)
    }

    /// Nothing takes too long here.
    pub(crate) fn look_after(self: &Arc<Self>, _round: Arc<dyn Expiring>, _within: Duration) {}

    pub(crate) async fn read_feed(
        self: &Arc<Self>,
        _timer: &mut Timer,
        position: Option<&Position>,
        _within: Duration,
    ) -> Result<Option<FeedRead>, Error> {
        self.model.travel().await?;
        let read = {
            let state = self.model.lock();
            let past = position.map(|position| &position.snapshot);
            let changes = past.filter(|past| state.is_usable(past)).and_then(|past| {
                let transactions: Vec<_> = state.unseen_by(past).collect();
                let keys = || transactions.iter().flat_map(|(_, keys)| keys.clone());
                (transactions.len() <= self.model.feed_limit).then(|| keys().collect())
            });
            state.origin().map(|origin| FeedRead {
                position: Position::of(&origin),
                changes,
            })
        };
        self.model.travel().await?;
        Ok(read)
    }

    pub(crate) async fn claim_lease(
        self: &Arc<Self>,
        key: Key,
        holder: i64,
        life: Duration,
        seen: Snapshot,
        _within: Duration,
    ) -> Result<Claimed, Error> {
        let claim = |state: &mut State, xid| {
            state.running.remove(&xid);
            state.claim(key, holder, life, &seen)
        };
        self.model.transaction(claim).await
    }

    pub(crate) async fn give_back(
        self: &Arc<Self>,
        key: Key,
        holder: i64,
        _within: Duration,
    ) -> Result<(), Error> {
        let give_back = |state: &mut State, xid| {
            state.running.remove(&xid);
            state
                .leases
                .retain(|k, lease| *k != key || lease.holder != holder);
        };
        self.model.transaction(give_back).await
    }

    pub(crate) async fn unchanged_between(
        self: &Arc<Self>,
        probes: Vec<i64>,
        since: Snapshot,
        until: Snapshot,
        _within: Duration,
    ) -> Result<bool, Error> {
        self.model.travel().await?;
        let unchanged = {
            let state = self.model.lock();
            let changed = |keys: &[i64]| keys.iter().any(|key| probes.contains(key));
            state.has_epoch
                && state.is_usable(&since)
                && !state
                    .unseen_by(&since)
                    .any(|(xid, keys)| until.sees(*xid) && changed(keys))
        };
        self.model.travel().await?;
        Ok(unchanged)
    }

    pub(crate) async fn put(
        self: &Arc<Self>,
        records: Vec<Record>,
        _within: Duration,
    ) -> Result<(u64, Volume), Error> {
        let put = |state: &mut State, xid| {
            state.running.remove(&xid);
            let accepted = records.iter().filter(|record| state.store(record, xid));
            (accepted.count() as u64, Volume::default())
        };
        self.model.transaction(put).await
    }

    pub(crate) async fn invalidate(
        self: &Arc<Self>,
        scopes: Vec<Scope>,
        _within: Duration,
    ) -> Result<u64, Error> {
        let invalidate = |state: &mut State, xid| {
            state.end(xid, keys(&scopes));
            xid
        };
        self.model.transaction(invalidate).await
    }

    pub(crate) async fn clear(self: &Arc<Self>, _within: Duration) -> Result<(), Error> {
        let clear = |state: &mut State, xid| {
            state.running.remove(&xid);
            state.horizon = state.snapshot();
        };
        self.model.transaction(clear).await
    }
}
