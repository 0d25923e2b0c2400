//! Lookups, many to a statement.
//!
//! 1. A lookup is answered by a statement that was sent after the lookup was made, never by one that is under
//!    way already (or by two, the second for what the first could not judge): what it is told holds as of a snapshot that was taken after its request arrived. So a lookup
//!    enters the queue, a batch is what leaves it at one moment, and keys are compared within a batch only.
//! 2. A lookup that meets an idle cache is sent at once. What comes while a batch is under way is collected, since a statement
//!    for many costs little more than one for a few.
//! 3. Batches are carried by *lanes*. A lane is a task with a connection, and lasts while it has work. A further
//!    one starts only where the others do not do: each has been busy for longer than [`PATIENCE`], a lookup has
//!    waited for longer than that, or [as many](WORTHWHILE) wait as are under way: then it is no less work to let them wait, and
//!    the database and the service need not wait for each other in turn. It ends when that is over.
//! 4. A lane borrows its connection while there is work, and gives it back in between if somebody else waits for
//!    one (a handler may need the only one), and when there is something to prepare on it. It never gives it back while a statement is under way, however long
//!    that takes.
//! 5. A lookup waits until its own [deadline](super::patience) and is given up by dropping it. One that was given up before it was
//!    sent costs nothing any more.
//! 6. A lookup with its keys complete is answered as soon as their rows are there; a big body holds up only what
//!    comes after it.
//! 7. What makes one lookup fail does not fail its batch: where that may be the reason, they are sent anew, one by
//!    one.
//! 8. However a lane ends, the next lookup finds the queue in order. The last one takes along what waits.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::{Instant, timeout_at};
use tokio_postgres::Row;

use super::kept::Session;
use super::lookup::{self, Asking, Brought, Fetched};
use super::patience::{Outstanding, PATIENCE};
use super::reply::{Reply, Sender, reply};
use super::{Deadline, Lookup, Origin, Store};
use crate::error::{Error, ErrorKind};
use crate::key::Key;

/// How many lookups one statement answers at most. Beyond some dozens the statement itself costs next to nothing
/// for each, and a larger one only delays the first answer.
const BATCH: usize = 64;

/// For how many lookups at least a further statement is worth its cost while others are under way, which is that of some ten of
/// them.
const WORTHWHILE: usize = 16;

/// How many lookups may wait. What comes then has no answer.
const MAX_WAITING: usize = 8192;

/// How many lanes there are at most, unless the builder says so.
const MOST_LANES: u32 = 4;

#[derive(Debug)]
pub(super) struct Lanes {
    /// How many there may be; `None`: half of what the pool may have.
    limit: Option<usize>,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    /// The oldest first.
    waiting: VecDeque<Waiting>,
    lanes: Vec<Busy>,
    next_lane: u64,
    outstanding: Outstanding,
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
struct Waiting {
    question: Question,
    since: Instant,
    /// A batch with it has failed.
    alone: bool,
}

/// Until its answer is there.
#[derive(Debug)]
struct Question {
    keys: Vec<Key>,
    invalid_too: bool,
    /// Nobody waits for longer.
    until: Instant,
    answer: Sender,
}

impl Lanes {
    pub(super) fn new(limit: Option<usize>) -> Self {
        Self {
            limit,
            queue: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends lookups again, each by itself; before all others, since they came before.
    fn put_back(&self, questions: Vec<Question>) {
        let now = Instant::now();
        let mut queue = self.lock();
        for question in questions.into_iter().rev() {
            queue.waiting.push_front(Waiting {
                question,
                since: now,
                alone: true,
            });
        }
    }

    pub(super) fn outstanding<T>(&self, review: impl FnOnce(&mut Outstanding) -> T) -> T {
        review(&mut self.lock().outstanding)
    }
}

impl Queue {
    /// Lookups that were given up in the middle of the queue come to its front in time.
    fn forget_given_up(&mut self, now: Instant) {
        let given_up = |next: &Waiting| next.question.is_given_up(now);
        while self.waiting.front().is_some_and(given_up) {
            self.waiting.pop_front();
        }
    }

    /// Whether the lanes, or those beside `except`, are enough for what waits.
    fn is_served(&self, except: Option<u64>, now: Instant) -> bool {
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

    fn begin(&mut self, now: Instant) -> u64 {
        let lane = self.next_lane;
        self.next_lane += 1;
        self.lanes.push(Busy {
            lane,
            since: now,
            lookups: BATCH,
        });
        lane
    }

    fn end(&mut self, lane: u64) {
        self.lanes.retain(|busy| busy.lane != lane);
    }

    fn take_for(&mut self, lane: Option<u64>, now: Instant) -> Vec<Question> {
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
            if !next.question.is_given_up(now) {
                batch.push(next.question);
                if alone {
                    break;
                }
            }
        }
        batch
    }
}

impl Store {
    /// `invalid_too`: also entries that are invalid and have no validator.
    pub(crate) fn lookup(
        self: &Arc<Self>,
        keys: Vec<Key>,
        invalid_too: bool,
        within: Duration,
    ) -> impl Future<Output = Result<Lookup, Error>> + Send {
        let since = Instant::now();
        let deadline = Deadline::after(within);
        let (answer, reply) = reply();
        let question = Question {
            keys,
            invalid_too,
            until: deadline.at,
            answer,
        };
        let waiting = Waiting {
            question,
            since,
            alone: false,
        };
        let enqueued = self.enqueue(waiting, deadline, &reply);
        async move {
            enqueued?;
            reply.await?.read()
        }
    }

    fn enqueue(
        self: &Arc<Self>,
        lookup: Waiting,
        deadline: Deadline,
        reply: &Reply,
    ) -> Result<(), Error> {
        let mut queue = self.lanes.lock();
        queue.forget_given_up(lookup.since);
        if queue.waiting.len() >= MAX_WAITING {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "too many lookups wait for the database",
            ));
        }
        queue.waiting.push_back(lookup);
        let is_unminded = queue.outstanding.add(deadline, reply.expiry());
        drop(queue);
        if is_unminded {
            self.mind();
        }
        self.start_lane_if_needed();
        Ok(())
    }

    pub(super) fn start_lane_if_needed(self: &Arc<Self>) {
        let limit = || self.lanes.limit.unwrap_or_else(|| self.default_limit());
        let now = Instant::now();
        let mut queue = self.lanes.lock();
        queue.forget_given_up(now);
        if queue.is_served(None, now) || (!queue.lanes.is_empty() && queue.lanes.len() >= limit()) {
            return;
        }
        let lane = queue.begin(now);
        // a runtime that is shutting down drops the task here, and that takes the lock
        drop(queue);
        tokio::spawn(run(Lane {
            store: self.clone(),
            number: Some(lane),
        }));
    }

    /// Half of the pool is left to the application.
    fn default_limit(&self) -> usize {
        (self.source.most_connections() / 2).clamp(1, MOST_LANES) as usize
    }
}

/// Held by the task of a lane.
struct Lane {
    store: Arc<Store>,
    /// `None` when it has ended in order.
    number: Option<u64>,
}

impl Drop for Lane {
    fn drop(&mut self) {
        let Some(number) = self.number else {
            return;
        };
        let mut queue = self.store.lanes.lock();
        queue.end(number);
        if queue.lanes.is_empty() {
            let lost = std::mem::take(&mut queue.waiting);
            // whoever waits is woken without the lock
            drop(queue);
            drop(lost);
        }
    }
}

impl Lane {
    /// When the last of those who wait gives up; `None` if nobody waits: the lane has ended then.
    fn deadline(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let mut queue = self.store.lanes.lock();
        let questions = queue.waiting.iter().map(|lookup| &lookup.question);
        let deadline = questions
            .filter(|question| !question.is_given_up(now))
            .map(|question| question.until)
            .max();
        if deadline.is_none() {
            queue.end(self.number.take()?);
        }
        deadline
    }

    /// What to send next; `None` if the lane is not needed any more: it has ended then.
    fn next_batch(&mut self) -> Option<Batch> {
        let now = Instant::now();
        let mut queue = self.store.lanes.lock();
        queue.forget_given_up(now);
        if !queue.is_served(self.number, now) {
            let questions = queue.take_for(self.number, now);
            if !questions.is_empty() {
                drop(queue);
                return Some(Batch::new(questions));
            }
        }
        queue.end(self.number.take()?);
        None
    }

    /// A connection as long as anybody wants one; `None`: the lane has ended.
    async fn connect(&mut self) -> Option<Session> {
        if let Some(session) = self.store.idle.take() {
            return Some(session);
        }
        let store = self.store.clone();
        let mut getting = store.source.get();
        loop {
            let deadline = self.deadline()?;
            match timeout_at(deadline, &mut getting).await {
                Ok(Ok(connection)) => return Some(Session::new(connection, &store.shelf)),
                Ok(Err(error)) => {
                    self.end_without_connection(&error);
                    return None;
                }
                // those who have come since may have later deadlines, and it keeps its place
                Err(_) => {}
            }
        }
    }

    /// If there is another lane, it may be luckier.
    fn end_without_connection(&mut self, error: &Error) {
        let mut queue = self.store.lanes.lock();
        if let Some(number) = self.number.take() {
            queue.end(number);
        }
        if !queue.lanes.is_empty() {
            return;
        }
        let lost = std::mem::take(&mut queue.waiting);
        drop(queue);
        for lookup in lost {
            lookup.question.tell(Err(error.clone()));
        }
    }
}

async fn run(mut lane: Lane) {
    while let Some(mut session) = lane.connect().await {
        let end = lane.ask_by(&mut session).await;
        lane.store.put_by_prepared(session);
        match end {
            End::OfWork => return,
            End::OfSession => {
                // to whoever was waiting for it
                yield_now().await;
            }
        }
    }
}

/// Why a lane is done with a session.
enum End {
    /// Nobody waits.
    OfWork,
    /// It is closed, or somebody else wants it, or there is something to prepare on it.
    OfSession,
}

impl Lane {
    /// One batch after the other.
    async fn ask_by(&mut self, session: &mut Session) -> End {
        loop {
            let Some(batch) = self.next_batch() else {
                return End::OfWork;
            };
            ask(&self.store, session, batch).await;
            if self.is_done_with(session) {
                return End::OfSession;
            }
        }
    }

    fn is_done_with(&self, session: &mut Session) -> bool {
        session.shared().is_closed() || self.store.source.is_wanted() || self.store.has_due(session)
    }
}

/// Sends a batch and answers its lookups.
async fn ask(store: &Store, session: &mut Session, mut batch: Batch) {
    let asking = batch.asking();
    let asked = store.ask(session, &asking, &mut |row| batch.add(row)).await;
    match asked {
        Ok(()) => batch.end(),
        Err(error) if batch.open.len() > 1 && lookup::may_be_about_one(&error) => {
            store.lanes.put_back(batch.unanswered());
        }
        Err(error) => {
            for question in batch.unanswered() {
                question.tell(Err(error.clone()));
            }
        }
    }
}

/// Lookups that are under way together.
struct Batch {
    /// The lookups that it was sent for; `None` where the answer was given.
    open: Vec<Option<Open>>,
    /// Which lookups each key belongs to, in order.
    wanted: Vec<(Key, usize)>,
    /// Of the first statement.
    origin: Option<Origin>,
}

struct Open {
    question: Question,
    rows: Vec<(Key, Arc<Fetched>)>,
    /// How many of its keys have no row so far.
    missing: usize,
}

impl Batch {
    fn new(questions: Vec<Question>) -> Self {
        let mut wanted: Vec<(Key, usize)> = Vec::new();
        for (index, question) in questions.iter().enumerate() {
            wanted.extend(question.keys.iter().map(|key| (*key, index)));
        }
        wanted.sort_unstable();
        wanted.dedup();
        let open = questions.into_iter().enumerate().map(|(index, question)| {
            let missing = wanted.iter().filter(|(_, i)| *i == index).count();
            Some(Open {
                missing,
                rows: Vec::with_capacity(missing),
                question,
            })
        });
        let open: Vec<_> = open.collect();
        Self {
            open,
            wanted,
            origin: None,
        }
    }

    /// Each key once. Where only some of the lookups want invalid entries too, the others do not get them.
    fn asking(&self) -> Asking {
        let mut keys: Vec<Key> = self.wanted.iter().map(|(key, _)| *key).collect();
        keys.dedup();
        let mut open = self.open.iter().flatten();
        Asking {
            keys,
            invalid_too: open.any(|open| open.question.invalid_too),
        }
    }

    fn add(&mut self, row: Row) -> Result<(), Error> {
        let origin = match self.origin.take() {
            Some(origin) => origin,
            None => lookup::origin(&row)?,
        };
        if let Some(key) = lookup::key(&row)? {
            let only_as_invalid = lookup::is_only_as_invalid(&row)?;
            self.give(key, only_as_invalid, Fetched::new(row), &origin);
        }
        self.origin = Some(origin);
        Ok(())
    }

    fn give(&mut self, key: Key, only_as_invalid: bool, row: Arc<Fetched>, origin: &Origin) {
        let mut row = Some(row);
        let first = self.wanted.partition_point(|(wanted, _)| *wanted < key);
        let readers = self.wanted[first..].partition_point(|(wanted, _)| *wanted == key);
        for at in first..first + readers {
            let index = self.wanted[at].1;
            let Some(open) = &mut self.open[index] else {
                continue;
            };
            open.missing = open.missing.saturating_sub(1);
            if open.question.invalid_too || !only_as_invalid {
                let is_last = at + 1 == first + readers;
                let own = if is_last { row.take() } else { row.clone() };
                open.rows.extend(own.map(|row| (key, row)));
            }
            if open.missing == 0 {
                if let Some(open) = self.open[index].take() {
                    open.tell(origin.clone());
                }
            }
        }
    }

    /// There are no more rows.
    fn end(&mut self) {
        for open in self.open.iter_mut().filter_map(Option::take) {
            match &self.origin {
                Some(origin) => open.tell(origin.clone()),
                None => open.question.tell(Ok(Brought::NoEpoch)),
            }
        }
    }

    fn unanswered(&mut self) -> Vec<Question> {
        let open = self.open.iter_mut().filter_map(Option::take);
        open.map(|open| open.question).collect()
    }
}

impl Open {
    fn tell(self, origin: Origin) {
        let rows = self.rows;
        self.question.tell(Ok(Brought::Rows { origin, rows }));
    }
}

impl Question {
    fn is_given_up(&self, now: Instant) -> bool {
        self.answer.is_closed() || self.until <= now
    }

    /// Nobody listens if the lookup was given up.
    fn tell(self, result: Result<Brought, Error>) {
        self.answer.send(result);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(since: Instant) -> Waiting {
        let (answer, reply) = reply();
        // it waits for ever
        std::mem::forget(reply);
        Waiting {
            question: Question {
                keys: Vec::new(),
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
