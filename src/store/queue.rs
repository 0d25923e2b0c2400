//! Lookups that wait to be sent, and the [lanes](super::lanes) that send them: what goes into the next statement, and when a
//! further lane is needed.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::lookup::{Brought, Keys};
use super::patience::{Outstanding, PATIENCE};
use super::reply::Sender;
use crate::error::Error;

/// How many lookups one statement answers at most. Beyond some dozens the statement itself costs next to nothing
/// for each, and a larger one only delays the first answer.
const BATCH: usize = 64;

/// For how many lookups at least a further statement is worth its cost while others are under way, which is that of some ten of
/// them.
const WORTHWHILE: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Queue {
    /// The oldest first.
    pub(super) waiting: VecDeque<Waiting>,
    lanes: Vec<Busy>,
    next_lane: u64,
    pub(super) outstanding: Outstanding,
}

/// A lane that exists.
#[derive(Debug)]
struct Busy {
    lane: u64,
    /// When it began with what it does: getting a connection, or a batch.
    since: Instant,
    /// How many lookups it has under way, or has room for.
    lookups: usize,
}

/// A lookup that was not sent yet.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) question: Question,
    pub(super) since: Instant,
    /// A batch with it has failed.
    pub(super) alone: bool,
}

/// Until its answer is there.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) keys: Keys,
    pub(super) invalid_too: bool,
    /// Nobody waits for longer.
    pub(super) until: Instant,
    pub(super) answer: Sender,
}

impl Queue {
    /// Lookups that were given up in the middle of the queue come to its front in time.
    pub(super) fn forget_given_up(&mut self, now: Instant) {
        let given_up = |next: &Waiting| next.question.is_given_up(now);
        while self.waiting.front().is_some_and(given_up) {
            let next = self.waiting.pop_front();
            next.into_iter().for_each(|next| next.question.leave());
        }
    }

    /// Whether the lanes, or those beside `except`, are enough for what waits.
    pub(super) fn is_served(&self, except: Option<u64>, now: Instant) -> bool {
        let Some(oldest) = self.waiting.front() else {
            return true;
        };
        let others = self.lanes.iter();
        let prompt = others.filter(|busy| Some(busy.lane) != except && busy.since + PATIENCE > now);
        let (lanes, under_way) =
            prompt.fold((0, 0), |(lanes, sum), busy| (lanes + 1, sum + busy.lookups));
        let is_worthwhile = self.waiting.len() >= under_way.clamp(WORTHWHILE, BATCH);
        lanes > 0 && !is_worthwhile && oldest.since + PATIENCE > now
    }

    /// How many there are.
    pub(super) fn lanes(&self) -> usize {
        self.lanes.len()
    }

    pub(super) fn begin(&mut self, now: Instant) -> u64 {
        let lane = self.next_lane;
        self.next_lane += 1;
        self.lanes.push(Busy {
            lane,
            since: now,
            lookups: BATCH,
        });
        lane
    }

    pub(super) fn end(&mut self, lane: u64) {
        self.lanes.retain(|busy| busy.lane != lane);
    }

    pub(super) fn take_for(&mut self, lane: Option<u64>, now: Instant) -> Vec<Question> {
        let batch = self.take(now);
        let own = self.lanes.iter_mut();
        own.filter(|busy| Some(busy.lane) == lane)
            .for_each(|busy| (busy.since, busy.lookups) = (now, batch.len()));
        batch
    }

    /// The next batch, in the order of arrival.
    fn take(&mut self, now: Instant) -> Vec<Question> {
        let mut batch = Vec::new();
        while batch.len() < BATCH {
            let alone = self.waiting.front().is_some_and(|next| next.alone);
            if alone && !batch.is_empty() {
                break;
            }
            let Some(next) = self.waiting.pop_front() else {
                break;
            };
            if next.question.is_given_up(now) {
                next.question.leave();
                continue;
            }
            batch.push(next.question);
            if alone {
                break;
            }
        }
        batch
    }
}

impl Question {
    pub(super) fn is_given_up(&self, now: Instant) -> bool {
        self.answer.is_closed() || self.until <= now
    }

    /// Nobody waits any more, or is to be told by whoever looks after the deadline.
    fn leave(self) {
        self.answer.leave();
    }

    /// Nobody listens if the lookup was given up.
    pub(super) fn tell(self, result: Result<Brought, Error>) {
        self.answer.send(result);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::reply::reply;
    use super::*;
    use crate::error::ErrorKind;

    fn waiting(since: Instant) -> Waiting {
        let (answer, reply) = reply();
        // it waits for ever
        std::mem::forget(reply);
        Waiting {
            question: Question {
                keys: Keys::new(),
                invalid_too: false,
                until: since + Duration::from_secs(60),
                answer,
            },
            since,
            alone: false,
        }
    }

    /// How many have to wait for a further lane beside those that have so many lookups under way.
    fn enough_beside(under_way: &[usize], now: Instant, of: Instant) -> usize {
        let mut queue = Queue::default();
        for &lookups in under_way {
            let lane = queue.begin(of);
            queue.waiting.extend((0..lookups).map(|_| waiting(of)));
            assert_eq!(queue.take_for(Some(lane), of).len(), lookups);
        }
        while queue.is_served(None, now) {
            queue.waiting.push_back(waiting(now));
        }
        queue.waiting.len()
    }

    #[tokio::test]
    async fn one_that_is_late_is_told_by_whoever_looks_after_the_deadline() {
        let then = Instant::now();
        let (answer, reply) = reply();
        let mut late = waiting(then);
        late.question.answer = answer;
        let deadline = late.question.until;
        let expiring = reply.expiring();
        let mut queue = Queue::default();
        queue.waiting.push_back(late);
        queue.forget_given_up(deadline);
        assert!(queue.waiting.is_empty() && !expiring.is_over());
        expiring.expire(Error::new(ErrorKind::Timeout, "late"));
        let told = reply.await.err().map(|error| error.kind());
        assert_eq!(told, Some(ErrorKind::Timeout));
    }

    #[test]
    fn a_further_lane_starts_when_it_is_worth_it_and_at_once_where_the_others_do_not_do() {
        let then = Instant::now();
        let later = then + PATIENCE;
        for (under_way, enough) in [
            (&[][..], 1),
            (&[1], WORTHWHILE),
            (&[20], 20),
            (&[20, 30], 50),
            (&[BATCH, 30], BATCH),
        ] {
            assert_eq!(enough_beside(under_way, then, then), enough);
            assert_eq!(enough_beside(under_way, later, then), 1);
        }
        // who has waited for too long does not wait for more
        let mut queue = Queue::default();
        queue.waiting.push_back(waiting(then));
        queue.begin(later);
        assert!(!queue.is_served(None, later));
        assert!(queue.is_served(None, later - Duration::from_nanos(1)));
        // a lane that has ended what it did does not count
        let mut queue = Queue::default();
        let lane = queue.begin(then);
        queue.waiting.push_back(waiting(then));
        assert!(queue.is_served(None, then) && !queue.is_served(Some(lane), then));
    }
}
