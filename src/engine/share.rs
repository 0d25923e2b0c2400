//! One fill for all who ask for the same: those on this instance wait for its [flight](super::flight), the instances
//! for its [lease](super::lease).
//!
//! 1. Whoever waited judges what has come as of its own arrival: nothing that the answer depends on may have been
//!    committed between the answer's snapshot and that of the lookup with which it arrived. ("Is it good now" would let
//!    those who wait starve while others write.) An answer whose snapshot sees all that the arrival saw is good without
//!    asking.
//! 2. A request is disappointed at most twice, and waits no longer than `lease_wait` in all. Then it asks the
//!    inner service.
//! 3. Whoever fills after it has waited looks once more before: for what was stored meanwhile, and for a young snapshot.

use std::sync::Arc;
use std::time::Duration;

use super::entry::Entry;
use super::flight::{Boarded, Landed, Outcome, Pilot, outcome};
use super::lease::Claim;
use super::{Asked, Engine, Fill, Question};
use crate::http::cache_status::Bypass;
use crate::key::Key;
use crate::store::{Position, Snapshot};
use crate::sync::{Instant, sleep, timeout_at};

/// How long an instance waits before it looks whether another one has stored the answer: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// How often what somebody else has filled may turn out not to do.
const DISAPPOINTMENTS: usize = 2;

/// How a request that found nothing goes on.
#[derive(Debug)]
pub(crate) enum Shared {
    /// It asks the inner service.
    Fill(Fill),
    /// Somebody else has.
    Entry(Entry),
    Unusable(Bypass),
}

/// A request that waits, or lets others wait.
struct Sharer<'a> {
    question: &'a Question<'a>,
    is_of_use: &'a (dyn Fn(&Entry) -> bool + Sync),
    /// Of the lookup with which it arrived.
    arrival: Position,
    deadline: Instant,
}

impl Engine {
    /// `is_of_use`: whether a valid entry can be served to this request.
    pub(crate) async fn share(
        self: &Arc<Self>,
        mut fill: Fill,
        question: &Question<'_>,
        is_of_use: &(dyn Fn(&Entry) -> bool + Sync),
    ) -> Shared {
        if self.settings.lease_wait.is_zero() {
            return Shared::Fill(fill);
        }
        let key = self.shared_key(question);
        let sharer = Sharer {
            question,
            is_of_use,
            arrival: fill.position(),
            deadline: Instant::now() + self.settings.lease_wait,
        };
        let mut disappointments = 0;
        loop {
            let flight = match self.flights.board(key) {
                Boarded::Alone => return Shared::Fill(fill),
                Boarded::Pilot(pilot) => return self.lead(key, pilot, fill, &sharer).await,
                Boarded::Follower(flight) => flight,
            };
            let _waiting = self.stats.begin_to_wait();
            match timeout_at(sharer.deadline, outcome(flight)).await {
                Ok(Outcome::Landed(landed)) => {
                    if let Some(entry) = self.accept_landed(&landed, &sharer).await {
                        return Shared::Entry(entry);
                    }
                    disappointments += 1;
                    if disappointments == DISAPPOINTMENTS {
                        return Shared::Fill(fill);
                    }
                }
                Ok(Outcome::Abandoned) => {}
                Ok(Outcome::NotStored | Outcome::Flying) | Err(_) => return Shared::Fill(fill),
            }
            match self.look_again(&sharer).await {
                Shared::Fill(anew) => fill = anew,
                other => return other,
            }
        }
    }

    /// The first one here: claims the lease, or waits for the instance that has it.
    async fn lead(
        self: &Arc<Self>,
        key: Key,
        pilot: Pilot,
        mut fill: Fill,
        sharer: &Sharer<'_>,
    ) -> Shared {
        let mut pause = FIRST_PAUSE;
        let mut waiting = None;
        loop {
            match self.claim(key, fill.snapshot()).await {
                Claim::Granted(lease) => {
                    fill.lead(pilot, Some(lease));
                    return Shared::Fill(fill);
                }
                // mostly the next look finds it
                Claim::LookAgain if waiting.is_none() => {
                    waiting = Some(self.stats.begin_to_wait());
                }
                // what was released by a transaction that no snapshot sees is not waited for any longer than the rest
                Claim::Held | Claim::LookAgain if Instant::now() + pause < sharer.deadline => {
                    waiting.get_or_insert_with(|| self.stats.begin_to_wait());
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Claim::Held | Claim::LookAgain | Claim::Failed => {
                    fill.lead(pilot, None);
                    return Shared::Fill(fill);
                }
            }
            match self.look_again(sharer).await {
                Shared::Fill(anew) => fill = anew,
                other => {
                    // the others find it as well
                    pilot.abandon();
                    return other;
                }
            }
        }
    }

    /// For a background fill: false if another instance has it in hand.
    pub(crate) async fn lead_in_the_background(self: &Arc<Self>, fill: &mut Fill) -> bool {
        if self.settings.lease_wait.is_zero() {
            return true;
        }
        match self.claim(fill.key, fill.snapshot()).await {
            Claim::Granted(lease) => {
                fill.hold(lease);
                true
            }
            Claim::Failed => true,
            Claim::Held | Claim::LookAgain => false,
        }
    }

    /// What is stored by now, if it will do.
    async fn look_again(self: &Arc<Self>, sharer: &Sharer<'_>) -> Shared {
        let question = Question {
            // what a commit has invalidated since may have been good when the request arrived
            invalid_too: true,
            ..*sharer.question
        };
        let fill = match self.ask(question).await {
            Asked::Known(fill) => *fill,
            Asked::Unusable(reason) => return Shared::Unusable(reason),
        };
        match fill.stored().filter(|entry| !entry.is_part()) {
            Some(stored) => match self.accept_stored(&stored, sharer).await {
                Some(entry) => Shared::Entry(entry),
                None => Shared::Fill(fill),
            },
            None => Shared::Fill(fill),
        }
    }

    async fn accept_stored(self: &Arc<Self>, stored: &Entry, sharer: &Sharer<'_>) -> Option<Entry> {
        let mut entry = stored.clone();
        entry.condition.valid = true;
        if !(sharer.is_of_use)(&entry) {
            return None;
        }
        let is_good = stored.condition.valid
            || match &stored.snapshot {
                Some(snapshot) => {
                    let arrival = sharer.arrival.snapshot();
                    self.was_good(&entry, snapshot, arrival).await
                }
                None => false,
            };
        is_good.then_some(entry)
    }

    async fn accept_landed(
        self: &Arc<Self>,
        landed: &Landed,
        sharer: &Sharer<'_>,
    ) -> Option<Entry> {
        let entry = landed.entry();
        if !(sharer.is_of_use)(&entry) || self.changes.concern(&entry.probes) {
            return None;
        }
        // after a crash ids of transactions are given out again: snapshots of two lives say nothing about each other
        let is_comparable = landed.position.is_of_the_life_of(&sharer.arrival);
        let (snapshot, arrival) = (landed.position.snapshot(), sharer.arrival.snapshot());
        let is_good = is_comparable && snapshot.covers(arrival)
            || self.is_good(landed).await
            || is_comparable && self.was_good(&entry, snapshot, arrival).await;
        is_good.then_some(entry)
    }

    /// Whether it holds now, which one read of the feed tells all who wait.
    async fn is_good(self: &Arc<Self>, landed: &Landed) -> bool {
        self.memory.is_on()
            && self.catch_up().await
            && self
                .feed
                .unchanged_since(landed.standing.applied, &landed.answer.probes)
                .is_some()
    }

    /// Whether an answer with this snapshot was good for a request that arrived with that one.
    async fn was_good(
        self: &Arc<Self>,
        entry: &Entry,
        snapshot: &Snapshot,
        arrival: &Snapshot,
    ) -> bool {
        if snapshot.covers(arrival) {
            return true;
        }
        let unchanged = self.store.unchanged_between(
            entry.probes.clone(),
            snapshot.clone(),
            arrival.clone(),
            self.settings.lookup_deadline,
        );
        unchanged.await.unwrap_or_else(|error| {
            self.note_read_failure(&error);
            false
        })
    }

    /// Of the variant, where it is known that there are some.
    fn shared_key(&self, question: &Question<'_>) -> Key {
        let fields = self.varying.get(&question.key);
        fields.map_or(question.key, |fields| (question.variant)(&fields))
    }
}
