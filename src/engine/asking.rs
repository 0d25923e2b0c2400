//! Asking for an entry: in memory, and in the store.
//!
//! What is in memory is served only after a read of the [feed](super::feed) that is young enough for the request. If that
//! cannot be had, the store cannot either, and the inner service is asked, unless the route would rather have what is
//! [unconfirmed](super::unconfirmed).

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::HeaderName;

use super::clock::Moment;
use super::entry::{Answer, Entry};
use super::memory::{Remembered, Standing};
use super::{Engine, Fill, in_time};
use crate::error::Error;
use crate::http::cache_status::Bypass;
use crate::http::reuse::Condition;
use crate::http::stored_head::Head;
use crate::key::Key;
use crate::store::{Found, Keyed, Keys, Lookup, Origin, Stored};
use crate::sync::{Handle, Instant};

/// What to ask for: the key of a URI, and how the key of a variant comes about.
#[derive(Clone, Copy)]
pub(crate) struct Question<'a> {
    pub(crate) key: Key,
    pub(crate) variant: &'a (dyn Fn(&[HeaderName]) -> Key + Sync),
    /// Under which key a part of the answer would stand, if parts are stored.
    pub(crate) part: Option<Key>,
    /// Also answers that are invalid and cannot be revalidated.
    pub(crate) invalid_too: bool,
}

/// The outcome of looking in memory.
#[derive(Debug)]
pub(crate) enum Recalled {
    Entry(Entry),
    /// The store has to be asked.
    Nothing,
    /// The inner service is to be asked.
    Unusable(Bypass),
}

/// The outcome of asking for an entry.
#[derive(Debug)]
pub(crate) enum Asked {
    /// What there is, perhaps nothing; if the inner service is asked, its answer may be stored.
    Known(Box<Fill>),
    /// The inner service is to be asked.
    Unusable(Bypass),
}

impl Engine {
    /// An entry in memory that `is_of_use`, if the feed was read less than `max_staleness` ago.
    pub(crate) fn recall_at_once(
        self: &Arc<Self>,
        key: Key,
        variant: &(dyn Fn(&[HeaderName]) -> Key + Sync),
        max_staleness: Duration,
        is_of_use: impl Fn(&Entry) -> bool,
    ) -> Option<Entry> {
        let now = Moment::now();
        let age = self.feed.age(now).filter(|age| *age < max_staleness)?;
        let (remembered, entry) = self.remembered(key, variant, now, is_of_use)?;
        if age > max_staleness / 2 {
            // the next read begins before this one is too old
            self.want_read_unless_reading();
        }
        match self.confirmed(&remembered, entry) {
            Recalled::Entry(entry) => Some(entry),
            Recalled::Nothing | Recalled::Unusable(_) => None,
        }
    }

    /// Whether there is anything in memory to look for.
    pub(crate) fn remembers(&self) -> bool {
        self.memory.is_on()
    }

    /// Looks for an entry in memory that `is_of_use`, and that holds as of the request's arrival, or of `max_staleness`
    /// before. Takes at most the lookup deadline.
    pub(crate) async fn recall(
        self: &Arc<Self>,
        key: Key,
        variant: &(dyn Fn(&[HeaderName]) -> Key + Sync),
        max_staleness: Duration,
        is_of_use: impl Fn(&Entry) -> bool,
    ) -> Recalled {
        let now = Moment::now();
        let Some((remembered, entry)) = self.remembered(key, variant, now, is_of_use) else {
            return Recalled::Nothing;
        };
        // another request may have seen to it
        let is_young = self.feed.age(now).is_some_and(|age| age < max_staleness);
        if !is_young && (self.feed.is_held_up() || !self.catch_up().await) {
            // who cannot read on may look it up
            return match self.feed.is_held_up() {
                true => Recalled::Nothing,
                false => Recalled::Unusable(Bypass::Store),
            };
        }
        self.confirmed(&remembered, entry)
    }

    pub(super) fn remembered(
        &self,
        key: Key,
        variant: &(dyn Fn(&[HeaderName]) -> Key + Sync),
        now: Moment,
        is_of_use: impl Fn(&Entry) -> bool,
    ) -> Option<(Arc<Remembered>, Entry)> {
        if !self.memory.is_on() || self.refusal().is_some() {
            return None;
        }
        let remembered = self.memory.get(key).or_else(|| {
            let fields = self.varying.get(&key)?;
            self.memory.get(variant(&fields))
        })?;
        let entry = remembered.entry(now);
        is_of_use(&entry).then_some((remembered, entry))
    }

    /// What was in memory before the last read of the feed, as of that read.
    fn confirmed(self: &Arc<Self>, remembered: &Arc<Remembered>, entry: Entry) -> Recalled {
        self.housekeeper.note_traffic();
        self.changes.keep_trying(self);
        if self.changes.concern(&entry.probes) {
            return Recalled::Unusable(Bypass::Store);
        }
        if remembered.holds(&self.feed) {
            Recalled::Entry(entry)
        } else {
            self.memory.forget(remembered);
            Recalled::Nothing
        }
    }

    /// Waits for a read of the feed that begins now, or later.
    pub(super) async fn catch_up(self: &Arc<Self>) -> bool {
        let now = Instant::now();
        let catching_up = pin!(async {
            self.prepared(now).await?;
            Ok(self.barrier().await?.then_some(()))
        });
        self.consult(now, catching_up).await.is_some()
    }

    /// Returns what time it is then.
    async fn prepared(self: &Arc<Self>, now: Instant) -> Result<Instant, Fault> {
        if self.readiness.is_ready() {
            return Ok(now);
        }
        // boxed: hardly ever needed, and large
        let within = self.settings.lookup_deadline;
        Box::pin(in_time(within, self.readiness.ensure(self)))
            .await
            .map_err(Fault::Unprepared)?;
        Ok(Instant::now())
    }

    /// Asks the database, unless it is known not to answer; `None`: there is no answer. `asking` returns `None` where
    /// there is no epoch. (It is pinned by the caller, since a future that is handed over takes its room twice.)
    async fn consult<T>(
        self: &Arc<Self>,
        now: Instant,
        asking: Pin<&mut impl Future<Output = Result<Option<T>, Fault>>>,
    ) -> Option<T> {
        let attempt = self.reads.admit(now)?;
        match asking.await {
            Ok(Some(answer)) => {
                attempt.succeeded();
                return Some(answer);
            }
            Ok(None) => {
                self.readiness.forget();
                self.feed.lose_touch();
            }
            // that says nothing about the database
            Err(Fault::HeldUp) => {}
            // it is tried again in its own time, and costs nothing until then
            Err(Fault::Unprepared(error)) => self.note_read_failure(&error),
            Err(Fault::Unanswered(error)) => {
                self.note_read_failure(&error);
                if self.readiness.doubt(&error) {
                    self.feed.lose_touch();
                }
                attempt.failed(&error);
            }
        }
        None
    }

    /// Why there is nothing to ask, if so.
    fn refusal(&self) -> Option<Bypass> {
        if !self.settings.has_database || !self.enabled.load(Ordering::Relaxed) {
            return Some(Bypass::Disabled);
        }
        (self.is_closed() || Handle::try_current().is_err()).then_some(Bypass::Closed)
    }

    /// Looks for an entry in the store. Takes at most the lookup deadline.
    pub(crate) async fn ask(self: &Arc<Self>, question: Question<'_>) -> Asked {
        self.find(&question)
            .await
            .map_or_else(Asked::Unusable, |found| found.into_asked(self))
    }

    /// The same, but for an entry that `is_of_use`: there is nothing to fill.
    #[allow(clippy::manual_async_fn)] // that has room for its arguments twice
    pub(crate) fn look_for(
        self: &Arc<Self>,
        question: &Question<'_>,
        is_of_use: impl Fn(&Entry) -> bool + Send,
    ) -> impl Future<Output = Result<Entry, Asked>> + Send {
        async move {
            let mut found = self.find(question).await.map_err(Asked::Unusable)?;
            match found.entry.take_if(|entry| is_of_use(entry)) {
                Some(entry) => Ok(entry),
                None => Err(found.into_asked(self)),
            }
        }
    }

    #[allow(clippy::manual_async_fn)] // as above
    fn find(
        self: &Arc<Self>,
        question: &Question<'_>,
    ) -> impl Future<Output = Result<Finding, Bypass>> + Send {
        async move {
            if let Some(reason) = self.refusal() {
                return Err(reason);
            }
            self.housekeeper.start(self);
            self.housekeeper.note_traffic();
            self.start_listening();
            let standing = Standing::now(&self.feed);
            let now = Instant::now();
            let deadline = now + self.settings.lookup_deadline;
            let looking_up = pin!(async {
                let now = self.prepared(now).await?;
                Ok(self.look_up(question, now, deadline).await?)
            });
            let Some((origin, found)) = self.consult(now, looking_up).await else {
                return Err(Bypass::Store);
            };
            self.changes.keep_trying(self);
            self.judge(question.key, standing, origin, found)
        }
    }

    pub(super) fn note_read_failure(&self, error: &Error) {
        self.stats.count(|s| &s.errors);
        self.reads.is_ill(error);
    }

    /// One statement where the fields that a URI's answers vary with are known or there are none; else two.
    #[allow(clippy::manual_async_fn)] // as above
    fn look_up(
        self: &Arc<Self>,
        question: &Question<'_>,
        now: Instant,
        deadline: Instant,
    ) -> impl Future<Output = Result<Option<Seen>, Error>> + Send {
        async move {
            let known = self.known_variant(question);
            let keys = [Some(question.key), known, question.part];
            let keys = keys.into_iter().flatten().collect();
            let invalid_too = question.invalid_too;
            let lookup = self.store.lookup(keys, invalid_too, now, deadline);
            let Lookup::Rows { origin, stored } = lookup.await? else {
                return Ok(None);
            };
            match self.selected(question, known, origin, stored) {
                Ok(seen) => Ok(Some(seen)),
                // boxed: seldom needed, and a hit does not need the room
                Err(sought) => Box::pin(self.look_up_variant(sought, invalid_too, deadline)).await,
            }
        }
    }

    fn known_variant(&self, question: &Question<'_>) -> Option<Key> {
        let fields = self.varying.get(&question.key)?;
        Some((question.variant)(&fields))
    }

    /// What the request selects, of what there is; or the variant that was not asked for, since it was not known.
    fn selected(
        &self,
        question: &Question<'_>,
        known: Option<Key>,
        origin: Arc<Origin>,
        mut stored: Keyed,
    ) -> Result<Seen, Sought> {
        // only where there is nothing more
        let part = question
            .part
            .and_then(|part| match take(&mut stored, part) {
                Some(Stored::Answer(found)) => Some((part, found)),
                _ => None,
            });
        let fields = match take(&mut stored, question.key) {
            Some(Stored::Answer(found)) => return Ok((origin, Some((question.key, found)))),
            Some(Stored::Varies(fields)) => fields,
            None => return Ok((origin, part)),
        };
        let variant = (question.variant)(&fields);
        let sought = Sought { variant, part };
        if known == Some(variant) {
            return Ok((origin, sought.or_part(stored)));
        }
        self.varying.insert(question.key, fields.into());
        Err(sought)
    }

    async fn look_up_variant(
        self: &Arc<Self>,
        sought: Sought,
        invalid_too: bool,
        deadline: Instant,
    ) -> Result<Option<Seen>, Error> {
        let keys = Keys::from_elem(sought.variant, 1);
        let lookup = self
            .store
            .lookup(keys, invalid_too, Instant::now(), deadline);
        Ok(match lookup.await? {
            Lookup::Rows { origin, stored } => Some((origin, sought.or_part(stored))),
            Lookup::NoEpoch => None,
        })
    }

    fn judge(
        self: &Arc<Self>,
        key: Key,
        mut standing: Standing,
        origin: Arc<Origin>,
        found: Option<(Key, Box<Found>)>,
    ) -> Result<Finding, Bypass> {
        if self.memory.is_on() {
            let position = self.feed.meet(&origin, standing.asked_at);
            standing.applied = position.unwrap_or(standing.applied);
        }
        if found
            .as_ref()
            .is_some_and(|(_, found)| self.changes.concern(&found.probes))
        {
            // a change that we know of and could not write down yet
            return Err(Bypass::Store);
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
                snapshot,
                cost,
                probes,
            } = *found;
            // a head that does not decode was stored by a program that wrote it in another way
            let head = Head::read(&head)?;
            let packed = body.is_packed().then(|| Box::new(body.clone()));
            let body = body.unpack()?;
            let condition = Condition {
                age,
                fresh_for,
                stale_for,
                valid,
            };
            let answer = Answer {
                key,
                head,
                body,
                probes,
                cost,
            };
            Some(Entry {
                answer: Arc::new(answer),
                condition,
                checksum: Some(checksum),
                snapshot: Some(snapshot),
                packed,
            })
        });
        if let Some(entry) = entry.as_ref().filter(|entry| entry.is_worth_remembering()) {
            self.memory.insert(&entry.answer, entry.condition, standing);
        }
        Ok(Finding {
            key,
            standing,
            origin,
            entry,
        })
    }
}

/// Where and when a lookup looked, and what it found.
type Seen = (Arc<Origin>, Option<(Key, Box<Found>)>);

/// What a lookup says.
struct Finding {
    key: Key,
    standing: Standing,
    origin: Arc<Origin>,
    entry: Option<Entry>,
}

impl Finding {
    fn into_asked(self, engine: &Arc<Engine>) -> Asked {
        let Self {
            key,
            standing,
            origin,
            entry,
        } = self;
        let origin = Arc::unwrap_or_clone(origin);
        let fill = Fill::new(engine.clone(), key, standing, origin, entry);
        Asked::Known(Box::new(fill))
    }
}

/// Why a question has no answer.
pub(super) enum Fault {
    /// There is no schema that could be asked.
    Unprepared(Error),
    Unanswered(Error),
    /// Who asks for all stands still.
    HeldUp,
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Unanswered(error)
    }
}

/// A variant that a request selects.
struct Sought {
    variant: Key,
    /// What does if there is none.
    part: Option<(Key, Box<Found>)>,
}

impl Sought {
    fn or_part(self, mut stored: Keyed) -> Option<(Key, Box<Found>)> {
        match take(&mut stored, self.variant) {
            Some(Stored::Answer(found)) => Some((self.variant, found)),
            _ => self.part,
        }
    }
}

/// What stands under a key.
fn take(stored: &mut Keyed, key: Key) -> Option<Stored> {
    let at = stored.iter().position(|(k, _)| *k == key)?;
    Some(stored.swap_remove(at).1)
}
