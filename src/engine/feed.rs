//! What has changed in the database, as far as this instance has read: the feed, and the barrier in front of it.
//!
//! 1. The instance remembers one snapshot, its *position*. A read returns the changes that were committed
//!    between the position and now, each once and none left out, and the new position. Nothing is lost by a broken
//!    connection, and nothing is read while nobody asks.
//! 2. Reads are numbered. Per key, the number of the last read that brought a change of it is remembered: not the
//!    transaction's id, since commits do not come in the order of ids. An answer that was looked up when read *n* was
//!    the last one holds as of read *m* iff none of its keys has changed in a read after *n* up to *m*.
//! 3. The changes of a read are in the map before its number is published; whoever judges takes the number first and
//!    looks at the map then.
//! 4. The map is bounded, and a read has a limit. Beyond either, and where the epoch, the incarnation or the server's
//!    history is another one, the *floor* rises: whatever is held from before counts as changed.
//! 5. The barrier: a request is judged by a read that began after it arrived. One read at a time; those who arrive
//!    while it is under way wait together for the next, and nobody is woken for a read that is not his. A read has
//!    half of the lookup deadline, so that he who waits for the second has an answer within the whole. The task that reads may
//!    be in a runtime that stands still: nobody waits for it for longer than the deadline, and until it goes on, lookups do.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::Engine;
use super::asking::Fault;
use super::clock::Moment;
use crate::error::{Error, ErrorKind};
use crate::store::{Expiring, FeedRead, Origin, Position, Timer};
use crate::sync::{AtomicU64, Mutex, MutexGuard, Runtime, RwLock, runtime, spawn};

/// How many changed keys are remembered. Beyond that all that is held in memory is given up, once.
const MAX_KEYS: usize = 200_000;

/// How many requests may wait for a read; what comes then has no answer.
const MAX_WAITING: usize = 65_536;

#[derive(Debug)]
pub(crate) struct Feed {
    /// The number of the last read that is applied; zero before the first one.
    applied: AtomicU64,
    /// What is held from before this read counts as changed.
    floor: AtomicU64,
    changed: RwLock<HashMap<i64, u64>>,
    /// When the last read began, in nanoseconds of [`Moment`]; zero: there was none.
    begun_at: AtomicU64,
    /// When the database last said that it has no epoch, likewise.
    lost_at: AtomicU64,
    held_up: AtomicBool,
    reading: Mutex<Reading>,
}

#[derive(Debug, Default)]
struct Reading {
    position: Option<Position>,
    /// Those who wait for the next read, and how many they are.
    waiting: Arc<Round>,
    number: usize,
    /// In which runtimes somebody sees to it that they do not wait for too long.
    minded: Vec<Runtime>,
    /// Whether there shall be a next read, even if nobody waits for it.
    wanted: bool,
    /// Whether the task runs that reads.
    running: bool,
}

/// Whether there was an epoch.
type ReadOutcome = Result<bool, Error>;

/// Those who wait for one read. One allocation for all of them: each would be freed by another thread than made it.
#[derive(Debug, Default)]
struct Round {
    outcome: OnceLock<ReadOutcome>,
    over: Notify,
}

impl Round {
    /// What the read came to.
    async fn outcome(&self) -> ReadOutcome {
        loop {
            // in this order: whoever is there before the end is told
            let over = self.over.notified();
            if let Some(outcome) = self.outcome.get() {
                return outcome.clone();
            }
            over.await;
        }
    }

    fn end(&self, outcome: ReadOutcome) {
        // the first one does: the read, or whoever sees that it takes too long
        let _ = self.outcome.set(outcome);
        self.over.notify_waiters();
    }
}

impl Expiring for Round {
    fn is_over(&self) -> bool {
        self.outcome.get().is_some()
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn expire(&self, why: Error) {
        self.end(Err(why));
    }
}

impl Default for Feed {
    fn default() -> Self {
        Self {
            applied: AtomicU64::new(0),
            floor: AtomicU64::new(1),
            changed: RwLock::default(),
            begun_at: AtomicU64::new(0),
            lost_at: AtomicU64::new(0),
            held_up: AtomicBool::new(false),
            reading: Mutex::default(),
        }
    }
}

impl Feed {
    /// Whether the runtime stands still that has the task that reads.
    pub(super) fn is_held_up(&self) -> bool {
        self.held_up.load(Ordering::Acquire)
    }

    /// The number of the last read. To be taken before a lookup is sent, for what the lookup finds.
    pub(crate) fn applied(&self) -> u64 {
        self.applied.load(Ordering::Acquire)
    }

    /// Whether what held as of read `checked` still holds: returns the read that it holds as of now.
    pub(crate) fn unchanged_since(&self, checked: u64, probes: &[i64]) -> Option<u64> {
        let applied = self.applied();
        if checked < self.floor.load(Ordering::Acquire) {
            return None;
        }
        if checked >= applied {
            return Some(checked);
        }
        let changed = self.changed.read().unwrap_or_else(PoisonError::into_inner);
        let is_new = |probe| changed.get(probe).is_some_and(|&last| last > checked);
        // the floor may have risen since, and the map lost what it is about
        let holds = !probes.iter().any(is_new) && checked >= self.floor.load(Ordering::Acquire);
        holds.then_some(applied)
    }

    /// Where there is no position yet, that of a lookup is one; where there is, the lookup may show that the
    /// database has begun anew. If the lookup's snapshot is the position now, returns the number of that read.
    pub(super) fn meet(&self, origin: &Origin, asked_at: Moment) -> Option<u64> {
        let mut reading = self.lock();
        let known = reading
            .position
            .as_ref()
            .is_some_and(|position| position.is_of(origin));
        if known {
            return None;
        }
        reading.position = Some(Position::of(origin));
        self.begin_anew();
        self.begun_at.store(asked_at.as_nanos(), Ordering::Release);
        Some(self.applied())
    }

    /// All that is held counts as changed.
    pub(super) fn give_up(&self) {
        let _reading = self.lock();
        self.begin_anew();
    }

    /// Changes of this instance's own, which have just been committed.
    pub(super) fn note(&self, keys: impl IntoIterator<Item = i64>) {
        let _reading = self.lock();
        self.publish(keys);
    }

    pub(super) fn has_begun(&self) -> bool {
        self.begun_at.load(Ordering::Acquire) > 0
    }

    /// How long ago the last read began.
    pub(super) fn age(&self, now: Moment) -> Option<Duration> {
        let begun_at = self.begun_at.load(Ordering::Acquire);
        (begun_at > 0).then(|| now.since(Moment::from_nanos(begun_at)))
    }

    /// The database was asked, and what is held may be of a life that is over: nobody takes it for valid until a read says
    /// so.
    pub(super) fn lose_touch(&self) {
        let now = Moment::now().as_nanos();
        self.lost_at.fetch_max(now, Ordering::AcqRel);
    }

    /// For how long nothing is known of what was looked up at `asked_at` and has not changed as far as was read: since the
    /// last read, or since that lookup.
    pub(super) fn unknown_for(&self, asked_at: Moment, now: Moment) -> Option<Duration> {
        let read_at = Moment::from_nanos(self.begun_at.load(Ordering::Acquire));
        let known_at = asked_at.max(read_at);
        let lost_at = Moment::from_nanos(self.lost_at.load(Ordering::Acquire));
        (known_at > lost_at).then(|| now.since(known_at))
    }

    /// Under the lock of `reading`.
    fn begin_anew(&self) {
        let next = self.applied() + 1;
        self.floor.store(next, Ordering::Release);
        self.changed
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        self.applied.store(next, Ordering::Release);
    }

    /// Under the lock of `reading`.
    fn publish(&self, keys: impl IntoIterator<Item = i64>) {
        let next = self.applied() + 1;
        let mut changed = self.changed.write().unwrap_or_else(PoisonError::into_inner);
        changed.extend(keys.into_iter().map(|key| (key, next)));
        let too_many = changed.len() > MAX_KEYS;
        drop(changed);
        if too_many {
            self.begin_anew();
        } else {
            self.applied.store(next, Ordering::Release);
        }
    }

    /// Applies what a read brought that began at `begun_at` and went on from `past`.
    fn apply(&self, past: Option<&Position>, read: FeedRead, begun_at: Moment) {
        let mut reading = self.lock();
        let FeedRead { position, changes } = read;
        let goes_on =
            past.is_some_and(|past| past.leads_to(&position)) && reading.position.as_ref() == past;
        match changes {
            Some(keys) if goes_on && keys.is_empty() => {}
            Some(keys) if goes_on => self.publish(keys),
            _ => self.begin_anew(),
        }
        reading.position = Some(position);
        self.begun_at.store(begun_at.as_nanos(), Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Reading> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A round whose read is under way. If that is dropped with its runtime, those who wait get to know.
struct Departed(Arc<Round>);

impl Drop for Departed {
    fn drop(&mut self) {
        if self.0.outcome.get().is_none() {
            let lost = Error::new(ErrorKind::Closed, "the runtime is shutting down");
            self.0.end(Err(lost));
        }
    }
}

impl Reading {
    fn wait(&mut self) -> Result<Arc<Round>, Error> {
        if self.number >= MAX_WAITING {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "too many requests wait for news from the database",
            ));
        }
        self.number += 1;
        Ok(self.waiting.clone())
    }

    /// Whoever comes now waits for another read.
    fn depart(&mut self) -> Departed {
        self.number = 0;
        self.minded.clear();
        Departed(std::mem::take(&mut self.waiting))
    }
}

impl Engine {
    /// Returns when a read of the feed that began after this call is applied; false if the database has no epoch. Takes
    /// at most the lookup deadline.
    pub(super) async fn barrier(self: &Arc<Self>) -> Result<bool, Fault> {
        let round = self.next_read()?;
        Ok(round.outcome().await?)
    }

    fn next_read(self: &Arc<Self>) -> Result<Arc<Round>, Fault> {
        let runtime = runtime();
        let mut reading = self.feed.lock();
        if reading.waiting.is_over() {
            self.feed.held_up.store(true, Ordering::Release);
            return Err(Fault::HeldUp);
        }
        let round = reading.wait()?;
        let is_unminded = !reading.minded.contains(&runtime);
        if is_unminded {
            reading.minded.push(runtime);
        }
        self.begin_reading(reading);
        if is_unminded {
            let within = self.settings.lookup_deadline;
            self.store.look_after(round.clone(), within);
        }
        Ok(round)
    }

    /// Begins a read, if none is under way.
    pub(super) fn want_read_unless_reading(self: &Arc<Self>) {
        let mut reading = self.feed.lock();
        if !reading.running {
            reading.wanted = true;
            self.begin_reading(reading);
        }
    }

    fn begin_reading(self: &Arc<Self>, mut reading: MutexGuard<'_, Reading>) {
        if !std::mem::replace(&mut reading.running, true) {
            // a runtime that is shutting down drops the task here, and that takes the lock
            drop(reading);
            spawn(read_on(Reader(Some(self.clone()))));
        }
    }
}

/// Held by the task that reads. If that is dropped with its runtime, those who wait get to know, and the next one starts
/// another.
struct Reader(Option<Arc<Engine>>);

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(engine) = &self.0 {
            let mut reading = engine.feed.lock();
            reading.running = false;
            engine.feed.held_up.store(false, Ordering::Release);
            let lost = reading.depart();
            drop(reading);
            drop(lost);
        }
    }
}

impl Reader {
    /// Who waits for the read that begins now, and from where it reads; `None`: nobody wants one, and the task has ended.
    fn next(&mut self) -> Option<(Departed, Option<Position>)> {
        let engine = self.0.take()?;
        let mut reading = engine.feed.lock();
        if reading.number == 0 && !reading.wanted {
            reading.running = false;
            return None;
        }
        reading.wanted = false;
        engine.feed.held_up.store(false, Ordering::Release);
        let next = (reading.depart(), reading.position.clone());
        drop(reading);
        self.0 = Some(engine);
        Some(next)
    }
}

async fn read_on(mut reader: Reader) {
    let mut timer = Timer::default();
    loop {
        let Some((round, position)) = reader.next() else {
            return;
        };
        let Some(engine) = &reader.0 else { return };
        let begun_at = Moment::now();
        let within = engine.settings.lookup_deadline / 2;
        let read = engine
            .store
            .read_feed(&mut timer, position.as_ref(), within)
            .await;
        let outcome = read.map(|read| match read {
            Some(read) => {
                engine.feed.apply(position.as_ref(), read, begun_at);
                true
            }
            None => {
                engine.feed.lose_touch();
                false
            }
        });
        round.0.end(outcome);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str, epoch: &str) -> Origin {
        Origin {
            epoch: epoch.into(),
            incarnation: "i".into(),
            snapshot: text.parse().expect("a snapshot"),
            at: 0.0,
        }
    }

    fn position(text: &str, epoch: &str) -> Position {
        Position::of(&origin(text, epoch))
    }

    fn read(feed: &Feed, text: &str, epoch: &str, changes: Option<Vec<i64>>) {
        let past = feed.lock().position.clone();
        let position = position(text, epoch);
        feed.apply(past.as_ref(), FeedRead { position, changes }, Moment::now());
    }

    #[test]
    fn what_did_not_change_holds_and_what_did_does_not() {
        let feed = Feed::default();
        feed.meet(&origin("5:5:", "e"), Moment::now());
        let checked = feed.applied();
        read(&feed, "7:7:", "e", Some(vec![1, 2]));
        assert_eq!(feed.unchanged_since(checked, &[3]), Some(checked + 1));
        assert_eq!(feed.unchanged_since(checked, &[3, 2]), None);
        let later = feed.applied();
        assert_eq!(feed.unchanged_since(later, &[2]), Some(later));
    }

    #[test]
    fn a_new_epoch_a_gap_or_a_history_that_goes_back_gives_up_what_is_held() {
        for (text, epoch, changes) in [
            ("7:7:", "another", Some(vec![])),
            ("7:7:", "e", None),
            ("4:4:", "e", Some(vec![])),
        ] {
            let feed = Feed::default();
            feed.meet(&origin("5:5:", "e"), Moment::now());
            let checked = feed.applied();
            read(&feed, text, epoch, changes);
            assert_eq!(feed.unchanged_since(checked, &[]), None);
            assert!(feed.unchanged_since(feed.applied(), &[]).is_some());
        }
    }

    #[test]
    fn a_lookup_of_another_epoch_gives_up_what_is_held() {
        let feed = Feed::default();
        feed.meet(&origin("5:5:", "e"), Moment::now());
        let checked = feed.applied();
        feed.meet(&origin("9:9:", "e"), Moment::now());
        assert!(feed.unchanged_since(checked, &[]).is_some());
        feed.meet(&origin("9:9:", "f"), Moment::now());
        assert_eq!(feed.unchanged_since(checked, &[]), None);
    }

    #[test]
    fn so_many_may_wait_for_a_read_and_no_more() {
        let feed = Feed::default();
        let mut reading = feed.lock();
        let waiting: Vec<_> = (0..MAX_WAITING).map(|_| reading.wait()).collect();
        assert!(waiting.iter().all(Result::is_ok));
        assert!(reading.wait().is_err());
        // the next read takes all of them along
        drop(reading.depart());
        assert!(reading.wait().is_ok());
    }

    /// As it is when the task that reads is dropped with its runtime.
    #[tokio::test]
    async fn who_waits_for_a_read_that_is_given_up_gets_to_know() {
        let feed = Feed::default();
        let (first, under_way) = {
            let mut reading = feed.lock();
            (reading.wait().expect("room"), reading.depart())
        };
        let later = feed.lock().wait().expect("room");
        let waiting = tokio::spawn(async move { first.outcome().await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(under_way);
        let told = tokio::time::timeout(Duration::from_secs(10), waiting).await;
        let told = told.expect("nobody is told").expect("no panic");
        assert!(told.is_err());
        assert!(later.outcome.get().is_none(), "that is another read");
        feed.lock().depart().0.end(Ok(true));
        assert_eq!(later.outcome().await.ok(), Some(true));
    }

    #[test]
    fn the_map_is_bounded() {
        let feed = Feed::default();
        feed.meet(&origin("5:5:", "e"), Moment::now());
        let checked = feed.applied();
        feed.note(0..=MAX_KEYS as i64);
        assert_eq!(feed.unchanged_since(checked, &[-1]), None);
        assert!(feed.changed.read().expect("no panic").is_empty());
    }
}
