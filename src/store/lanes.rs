//! Lookups, many to a statement.
//!
//! 1. A lookup is answered by a statement that was sent after the lookup was made, never by one that is under
//!    way already (or by two, the second for what the first could not judge): what it is told holds as of a snapshot that was
//!    taken after its request arrived. So a lookup enters the [queue](super::queue), a [batch](super::batch) is what leaves it at
//!    one moment, and keys are compared within a batch only.
//! 2. A lookup that meets an idle cache is sent at once. What comes while a batch is under way is collected, since a statement
//!    for many costs little more than one for a few.
//! 3. Batches are carried by *lanes*. A lane is a task with a connection, and lasts while it has work. A further
//!    one starts only where the others do not do: each has been busy for longer than [`PATIENCE`](super::patience), a lookup has
//!    waited for longer than that, or [as many](super::queue) wait as are under way: then it is no less work to let them wait, and
//!    the database and the service need not wait for each other in turn. It ends when that is over.
//! 4. A lane borrows its connection while there is work, and gives it back in between if somebody else waits for
//!    one (a handler may need the only one), and when there is something to prepare on it. It never gives it back while a
//!    statement is under way, however long that takes.
//! 5. A lookup waits until its own [deadline](super::patience) and is given up by dropping it. One that was given up before it was
//!    sent costs nothing any more.
//! 6. A lookup with its keys complete is answered as soon as their rows are there; a big body holds up only what
//!    comes after it.
//! 7. What makes one lookup fail does not fail its batch: where that may be the reason, they are sent anew, one by
//!    one.
//! 8. However a lane ends, the next lookup finds the queue in order. The last one takes along what waits.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::task::yield_now;
use tokio::time::{Instant, timeout_at};

use super::batch::Batch;
use super::kept::Session;
use super::lookup::{self, Keys};
use super::patience::Outstanding;
use super::queue::{Question, Queue, Waiting};
use super::reply::{Reply, reply};
use super::{Deadline, Lookup, Store};
use crate::error::{Error, ErrorKind};
use crate::sync::runtime;

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

impl Store {
    /// `invalid_too`: also entries that are invalid and have no validator. `now`: so that the clock is read once for all that a
    /// request does.
    pub(crate) fn lookup(
        self: &Arc<Self>,
        keys: Keys,
        invalid_too: bool,
        now: Instant,
        until: Instant,
    ) -> Looking {
        let deadline = Deadline {
            at: until,
            within: until.saturating_duration_since(now),
        };
        let (answer, reply) = reply();
        let question = Question {
            keys,
            invalid_too,
            until,
            answer,
        };
        let waiting = Waiting {
            question,
            since: now,
            alone: false,
        };
        self.enqueue(waiting, deadline, &reply);
        Looking(reply)
    }

    fn enqueue(self: &Arc<Self>, lookup: Waiting, deadline: Deadline, reply: &Reply) {
        let now = lookup.since;
        let mut queue = self.lanes.lock();
        queue.forget_given_up(now);
        if queue.waiting.len() >= MAX_WAITING {
            drop(queue);
            let error = "too many lookups wait for the database";
            let error = Error::new(ErrorKind::Unavailable, error);
            return lookup.question.tell(Err(error));
        }
        queue.waiting.push_back(lookup);
        let runtime = runtime();
        let is_unminded = queue.outstanding.add(runtime, deadline, reply.expiring());
        let lane = self.begin_lane_if_needed(&mut queue, now);
        drop(queue);
        if is_unminded {
            self.mind(runtime);
        }
        self.start_lane(lane);
    }

    pub(super) fn start_lane_if_needed(self: &Arc<Self>) {
        let now = Instant::now();
        let mut queue = self.lanes.lock();
        queue.forget_given_up(now);
        let lane = self.begin_lane_if_needed(&mut queue, now);
        drop(queue);
        self.start_lane(lane);
    }

    /// The number of the lane to be started.
    fn begin_lane_if_needed(&self, queue: &mut Queue, now: Instant) -> Option<u64> {
        let limit = || self.lanes.limit.unwrap_or_else(|| self.default_limit());
        let is_enough =
            queue.is_served(None, now) || (queue.lanes() > 0 && queue.lanes() >= limit());
        (!is_enough).then(|| queue.begin(now))
    }

    /// Without the lock: a runtime that is shutting down drops the task here, and that takes it.
    fn start_lane(self: &Arc<Self>, lane: Option<u64>) {
        if lane.is_some() {
            tokio::spawn(run(Lane {
                store: self.clone(),
                number: lane,
            }));
        }
    }

    /// Half of the pool is left to the application.
    fn default_limit(&self) -> usize {
        (self.source.most_connections() / 2).clamp(1, MOST_LANES) as usize
    }
}

/// A lookup that waits for its answer; dropping it gives up.
pub(crate) struct Looking(Reply);

impl Future for Looking {
    type Output = Result<Lookup, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|told| told?.read())
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
        if queue.lanes() == 0 {
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
        if queue.lanes() > 0 {
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
        Err(error) if batch.lookups() > 1 && lookup::may_be_about_one(&error) => {
            store.lanes.put_back(batch.unanswered());
        }
        Err(error) => {
            for question in batch.unanswered() {
                question.tell(Err(error.clone()));
            }
        }
    }
}
