//! From a miss to an entry.
//!
//! A [`Fill`] knows where the computation of an answer began. It becomes a [`Storing`] when the head is known
//! to be storable, and a record in the writer's queue when the body is complete. Dropped before: nothing is
//! stored.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, ETAG};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::clock::Moment;
use super::entry::{Answer, Entry};
use super::flight::{Landed, Pilot};
use super::gauge::Token;
use super::lease::Lease;
use super::memory::Standing;
use super::replica::{Replica, Seen};
use super::{Engine, Settings};
use crate::domain::Scope;
use crate::http::conditional;
use crate::http::fields::add_length;
use crate::http::reuse::Condition;
use crate::http::storable::Freshness;
use crate::http::stored_head::Head;
use crate::key::Key;
use crate::policy::GeneratedEtag;
use crate::store::{Checksum, Marker, Origin, Position, Record, Snapshot, StoredBody};
use crate::sync::Handle;

/// An answer that is being computed.
pub(crate) struct Fill {
    engine: Arc<Engine>,
    /// Of the URI; an answer that varies is stored under another one.
    pub(super) key: Key,
    standing: Standing,
    origin: Origin,
    stored: Option<Arc<Entry>>,
    /// Those who wait for it on this instance, and on others.
    pilot: Option<Pilot>,
    lease: Option<Lease>,
    /// The handler reads from another server.
    seen: Option<Box<Seen>>,
    /// It was called before this transaction of ours, which the answer has to see.
    change: Option<u64>,
    /// Of a body that has just come, as long as it is not known whether the answer is good.
    room: Option<Arc<Reservation>>,
}

/// What is written next to an answer.
#[derive(Debug)]
pub(crate) struct Label {
    pub(crate) scopes: Vec<Scope>,
    /// Of the scopes of a body that is taken over from a stored answer.
    pub(crate) probes: Vec<i64>,
    pub(crate) authority: String,
    pub(crate) path: String,
    /// The pattern that the request matched.
    pub(crate) route: Option<String>,
    pub(crate) tenant: Option<String>,
    /// The fields that the answer varies with, and the key of this variant.
    pub(crate) variant: Option<(Vec<HeaderName>, Key)>,
    /// The key of a part of the answer.
    pub(crate) part: Option<Key>,
}

impl Label {
    /// What the validity of the answer is judged by.
    fn all_probes(&self) -> Vec<i64> {
        let of_scopes = self.scopes.iter().flat_map(Scope::probes);
        let mut probes: Vec<i64> = self.probes.iter().copied().chain(of_scopes).collect();
        probes.sort_unstable();
        probes.dedup();
        probes
    }
}

/// The head of an answer as it is stored.
#[derive(Debug)]
pub(crate) struct StoredHead {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// How the validator is made that the handler did not give.
    pub(crate) etag: GeneratedEtag,
}

/// The stored entry that an answer has the body of.
#[derive(Debug)]
struct Freshened {
    checksum: Checksum,
    /// Every byte as it stands there: the checksum covers it.
    body: StoredBody,
}

impl Settings {
    /// Whether the body of this answer is stored compressed, if that is worth it.
    fn packs(&self, answer: &Answer) -> bool {
        self.compress_from
            .is_some_and(|least| answer.body.len() >= least)
            && !answer.head.contains(&CONTENT_ENCODING)
    }
}

impl Fill {
    pub(super) fn new(
        engine: Arc<Engine>,
        key: Key,
        standing: Standing,
        origin: Origin,
        stored: Option<Entry>,
    ) -> Self {
        let stored = stored.map(Arc::new);
        Self {
            engine,
            key,
            standing,
            origin,
            stored,
            pilot: None,
            lease: None,
            seen: None,
            change: None,
            room: None,
        }
    }

    /// Others wait for it.
    pub(super) fn lead(&mut self, pilot: Pilot, lease: Option<Lease>) {
        (self.pilot, self.lease) = (Some(pilot), lease);
    }

    /// Other instances leave it to this one.
    pub(super) fn hold(&mut self, lease: Lease) {
        self.lease = Some(lease);
    }

    /// What the lookup saw from which it begins: the arrival of its request.
    pub(super) fn snapshot(&self) -> &Snapshot {
        &self.origin.snapshot
    }

    pub(super) fn position(&self) -> Position {
        Position::of(&self.origin)
    }

    /// The inner service has answered: if nothing is stored, nobody has to try the same.
    pub(crate) fn has_answer(&mut self) {
        if let Some(pilot) = &mut self.pilot {
            pilot.has_answer();
        }
    }

    /// The fill of an answer that this transaction of ours has just made room for.
    pub(crate) fn after(mut self, xid: u64) -> Self {
        self.change = Some(xid);
        self
    }

    /// The handler, which is about to run, reads from this server. False: the answer cannot be stored.
    pub(crate) async fn look_at(&mut self, replica: &Arc<Replica>) -> bool {
        self.seen = self.engine.see(replica, &self.origin).await.map(Box::new);
        self.seen.is_some()
    }

    /// When it was looked up what is stored.
    pub(crate) fn asked_at(&self) -> Moment {
        self.standing.asked_at
    }

    /// Room for a body of which some is stored already; `None`: too much is on its way.
    pub(crate) fn reserve(&self, bytes: usize) -> Option<Arc<Reservation>> {
        let reservation = Reservation::new(self.engine.budget.clone());
        reservation.grow(bytes).then(|| Arc::new(reservation))
    }

    /// What is stored already, and may be stale or invalid.
    pub(crate) fn stored(&self) -> Option<Arc<Entry>> {
        self.stored.clone()
    }

    /// The head is storable; the body is to come.
    pub(crate) fn begin(mut self, label: Label, freshness: Freshness, head: StoredHead) -> Storing {
        self.stored = None;
        let pending = self.engine.pending.enter();
        Storing {
            fill: self,
            label,
            freshness,
            head,
            _pending: pending,
        }
    }

    /// The stored answer is the current one (RFC 9111 §4.3.4): it gets this fill's snapshot, scopes and times.
    /// Where the news is that it varies in another way, it is stored anew.
    pub(crate) fn freshen(self, entry: &Entry, mut label: Label, freshness: Freshness) {
        let (key, marker) = self.place(&mut label);
        let checksum = entry.checksum.filter(|_| key == entry.key);
        let freshens = checksum.map(|checksum| Freshened {
            checksum,
            body: entry.body_as_stored(),
        });
        let answer = Answer {
            key,
            ..Answer::clone(&entry.answer)
        };
        self.store(label, freshness, marker, answer, freshens);
    }

    /// The stored answer has turned out to be of no use.
    pub(crate) fn discard(self, entry: &Entry, label: Label) {
        let of_no_use = Freshness {
            remaining: Duration::ZERO,
            overdue: Duration::ZERO,
            age: entry.condition.age,
            keep: Duration::ZERO,
            revalidatable: false,
        };
        self.freshen(entry, label, of_no_use);
    }

    /// Keeps the answer; one that was made from what a replica has, or before a change of ours, if it is good all the same.
    fn store(
        mut self,
        label: Label,
        freshness: Freshness,
        marker: Option<Marker>,
        answer: Answer,
        freshens: Option<Freshened>,
    ) {
        if self.seen.is_none() && self.change.is_none() {
            return self.keep(label, freshness, marker, answer, freshens);
        }
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let pending = self.engine.pending.enter();
        runtime.spawn(async move {
            let engine = self.engine.clone();
            if let Some(snapshot) = self.confirmed(label.all_probes()).await {
                self.origin.snapshot = snapshot;
                self.keep(label, freshness, marker, answer, freshens);
            } else {
                engine.stats.count(|s| &s.dropped);
            }
            drop(pending);
        });
    }

    /// A snapshot as of which the answer is good; `None`: it may be good as of none.
    async fn confirmed(&mut self, probes: Vec<i64>) -> Option<Snapshot> {
        let (engine, since) = (&self.engine, self.origin.clone());
        match (self.seen.take(), self.change.take()) {
            (Some(seen), None) => engine.vouches_for(&seen, probes, since.snapshot).await,
            (None, Some(xid)) => {
                let within = engine.settings.lookup_deadline;
                let unchanged = engine.store.unchanged_but_by(probes, since, xid, within);
                unchanged.await.unwrap_or_else(|error| {
                    engine.note_read_failure(&error);
                    None
                })
            }
            // what a replica had before a change of ours
            (Some(_), Some(_)) => None,
            (None, None) => Some(since.snapshot),
        }
    }

    /// Hands the answer to the store, to memory, and to those who wait for it.
    fn keep(
        mut self,
        label: Label,
        freshness: Freshness,
        marker: Option<Marker>,
        mut answer: Answer,
        freshens: Option<Freshened>,
    ) {
        let (engine, standing) = (self.engine.clone(), self.standing);
        let (pilot, lease) = (self.pilot.take(), self.lease.take());
        let position = self.position();
        let condition = freshness.condition();
        answer.cost = standing.asked_at.elapsed();
        let is_part = label.part.is_some();
        let record = self.record(label, freshness, marker, &answer, freshens);
        answer.probes.clone_from(&record.probes);
        if !is_part {
            let answer = Arc::new(answer);
            engine.remember(&answer, record.marker.as_ref(), condition, standing);
            if let Some(pilot) = pilot {
                pilot.land(Landed {
                    answer,
                    condition,
                    standing,
                    position,
                });
            }
        }
        engine.push(record, lease);
    }

    /// Under which key the answer is stored, and what leads there.
    fn place(&self, label: &mut Label) -> (Key, Option<Marker>) {
        if let Some(part) = label.part {
            return (part, None);
        }
        match label.variant.take() {
            Some((fields, variant)) => {
                let key = self.key;
                (variant, Some(Marker { key, fields }))
            }
            None => (self.key, None),
        }
    }

    fn record(
        self,
        label: Label,
        freshness: Freshness,
        marker: Option<Marker>,
        answer: &Answer,
        freshens: Option<Freshened>,
    ) -> Record {
        let probes = label.all_probes();
        let packs = freshens.is_none() && self.engine.settings.packs(answer);
        let (body, freshens) = match freshens {
            Some(Freshened { body, checksum }) => (body, Some(checksum)),
            None => (StoredBody::plain(answer.body.clone()), None),
        };
        let Label {
            scopes,
            probes: _,
            authority,
            path,
            route,
            tenant,
            variant: _,
            part: _,
        } = label;
        let Freshness {
            remaining,
            overdue,
            age,
            keep,
            revalidatable,
        } = freshness;
        Record {
            key: answer.key,
            origin: self.origin,
            scopes,
            probes,
            age,
            ttl: remaining,
            overdue,
            keep,
            revalidatable,
            authority,
            path,
            route,
            cost: answer.cost,
            tenant,
            head: answer.head.write(),
            body,
            packs,
            freshens,
            marker,
            lease: None,
        }
    }
}

impl Freshness {
    /// Of an answer that has just been made.
    fn condition(&self) -> Condition {
        Condition {
            age: self.age,
            fresh_for: self.remaining,
            stale_for: self.overdue,
            valid: true,
        }
    }
}

impl std::fmt::Debug for Fill {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fill")
            .field("key", &self.key)
            .field("origin", &self.origin)
            .finish_non_exhaustive()
    }
}

/// A storable answer whose body is on its way.
#[derive(Debug)]
pub(crate) struct Storing {
    fill: Fill,
    label: Label,
    freshness: Freshness,
    head: StoredHead,
    _pending: Token,
}

impl Storing {
    /// The body is complete. Returns the validator that was made for it. `room`: what the body takes of the [`Budget`], as long as
    /// it is not known whether the answer is good.
    pub(crate) fn finish(self, body: Bytes, room: Arc<Reservation>) -> Option<HeaderValue> {
        let Self {
            mut fill,
            mut label,
            freshness,
            mut head,
            _pending,
        } = self;
        fill.room = Some(room);
        let etag = generated_etag(&head, &body);
        if let Some(etag) = &etag {
            head.headers.insert(ETAG, etag.clone());
        }
        add_length(head.status, &mut head.headers, body.len());
        let head = Head::new(head.status, &head.headers, etag.is_some());
        let (key, marker) = fill.place(&mut label);
        let answer = Answer {
            key,
            head,
            body,
            probes: Vec::new(),
            cost: Duration::ZERO,
        };
        fill.store(label, freshness, marker, answer, None);
        etag
    }

    /// How long a body may go on when nobody reads it any more.
    pub(crate) fn patience(&self) -> Duration {
        self.fill.engine.settings.store_deadline
    }

    pub(crate) fn budget(&self) -> Arc<Budget> {
        self.fill.engine.budget.clone()
    }
}

/// The validator of an answer whose handler gave none; of a 200 only, the one that is asked for conditionally.
fn generated_etag(head: &StoredHead, body: &[u8]) -> Option<HeaderValue> {
    let wanted = head.status == StatusCode::OK && !head.headers.contains_key(ETAG);
    match head.etag {
        GeneratedEtag::Weak if wanted => Some(conditional::generated_etag(body, false)),
        GeneratedEtag::Strong if wanted => Some(conditional::generated_etag(body, true)),
        _ => None,
    }
}

/// How many bytes of bodies may be on their way at once.
#[derive(Debug)]
pub(crate) struct Budget {
    free: AtomicUsize,
}

impl Budget {
    pub(crate) const fn new(bytes: usize) -> Self {
        Self {
            free: AtomicUsize::new(bytes),
        }
    }
}

/// A part of the [`Budget`], given back when dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    budget: Arc<Budget>,
    bytes: AtomicUsize,
}

impl Reservation {
    pub(crate) const fn new(budget: Arc<Budget>) -> Self {
        Self {
            budget,
            bytes: AtomicUsize::new(0),
        }
    }

    /// Whether there was room for so many more.
    pub(crate) fn grow(&self, bytes: usize) -> bool {
        let take = |free: usize| free.checked_sub(bytes);
        let taken = self
            .budget
            .free
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .is_ok();
        if taken {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        taken
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget
            .free
            .fetch_add(*self.bytes.get_mut(), Ordering::Relaxed);
    }
}
