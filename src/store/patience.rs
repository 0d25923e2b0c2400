//! How long whoever needs the database waits: until he has had enough, when a further lane is thought of; until his deadline,
//! when he is told that there is no answer. In each runtime one task sees to that for all, every few milliseconds while somebody
//! waits: a runtime that stands still, or ends, must not hold up those of another one.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::{Deadline, Store};
use crate::error::{Error, ErrorKind};
use crate::sync::{Runtime, runtime};

/// What a lookup bears before a further lane starts: some times what a batch takes when nothing is wrong, and
/// little of the deadline.
pub(super) const PATIENCE: Duration = Duration::from_millis(5);

/// Of those who wait for something.
pub(crate) trait Expiring: Debug + Send + Sync {
    fn is_over(&self) -> bool;

    /// Whether some may be in other runtimes, where somebody looks after them, too.
    fn is_shared(&self) -> bool {
        false
    }

    /// They are told that they will not get it, unless they have it.
    fn expire(&self, why: Error);
}

/// Those who may still be without an answer.
#[derive(Debug, Default)]
pub(super) struct Outstanding(Vec<Minded>);

/// Those of a runtime that somebody looks after.
#[derive(Debug)]
struct Minded {
    runtime: Runtime,
    waiting: VecDeque<(Deadline, Arc<dyn Expiring>)>,
}

impl Minded {
    /// Up to two of those that have an answer, so that they become fewer as others come: if all were left to the next review, an
    /// allocator would get back hundreds of one size at once, and keeps a few at hand.
    fn forget_some(&mut self) {
        for _ in 0..2 {
            if self.waiting.front().is_some_and(|(_, who)| who.is_over()) {
                self.waiting.pop_front();
            }
        }
    }
}

impl Outstanding {
    /// Whether somebody has to be found in this runtime who looks after them.
    #[must_use]
    pub(super) fn add(
        &mut self,
        runtime: Runtime,
        deadline: Deadline,
        waiting: Arc<dyn Expiring>,
    ) -> bool {
        let minded = self.0.iter_mut().find(|minded| minded.runtime == runtime);
        let is_unminded = minded.is_none();
        match minded {
            Some(minded) => {
                minded.forget_some();
                minded.waiting.push_back((deadline, waiting));
            }
            None => self.0.push(Minded {
                runtime,
                waiting: VecDeque::from([(deadline, waiting)]),
            }),
        }
        is_unminded
    }

    /// Takes out all of a runtime: nobody looks after it any more.
    fn take(&mut self, runtime: Runtime) -> VecDeque<(Deadline, Arc<dyn Expiring>)> {
        let at = self.0.iter().position(|minded| minded.runtime == runtime);
        at.map(|at| self.0.swap_remove(at).waiting)
            .unwrap_or_default()
    }

    /// Forgets those that have an answer, and takes those out that will have none. When to look again; `None`: there is
    /// nothing to look after.
    fn review(
        &mut self,
        runtime: Runtime,
        now: Instant,
        late: &mut Vec<(Deadline, Arc<dyn Expiring>)>,
    ) -> Option<Instant> {
        let at = self.0.iter().position(|minded| minded.runtime == runtime)?;
        let waiting = &mut self.0[at].waiting;
        let mut next = now + PATIENCE;
        // mostly in the order of their deadlines, and few are open: the others are from the last few milliseconds
        for _ in 0..waiting.len() {
            let Some((deadline, who)) = waiting.pop_front() else {
                break;
            };
            if who.is_over() {
                continue;
            }
            if deadline.at <= now {
                late.push((deadline, who));
            } else {
                next = next.min(deadline.at);
                waiting.push_back((deadline, who));
            }
        }
        if waiting.is_empty() {
            self.0.swap_remove(at);
            return None;
        }
        Some(next)
    }
}

/// Held by the task that looks after those of a runtime. If that is dropped with it, they get to know.
struct Minder {
    store: Option<Arc<Store>>,
    runtime: Runtime,
}

impl Drop for Minder {
    fn drop(&mut self) {
        let Some(store) = &self.store else { return };
        let lost = store
            .lanes
            .outstanding(|outstanding| outstanding.take(self.runtime));
        for (_, who) in lost.into_iter().filter(|(_, who)| !who.is_shared()) {
            who.expire(Error::new(
                ErrorKind::Closed,
                "the runtime is shutting down",
            ));
        }
    }
}

impl Store {
    /// They are told within this time that it is too late, unless they have what they wait for. To be called in their runtime.
    pub(crate) fn look_after(self: &Arc<Self>, waiting: Arc<dyn Expiring>, within: Duration) {
        let runtime = runtime();
        let deadline = Deadline::after(within);
        let add = |outstanding: &mut Outstanding| outstanding.add(runtime, deadline, waiting);
        if self.lanes.outstanding(add) {
            self.mind(runtime);
        }
    }

    pub(super) fn mind(self: &Arc<Self>, runtime: Runtime) {
        tokio::spawn(mind(Minder {
            store: Some(self.clone()),
            runtime,
        }));
    }
}

async fn mind(mut minder: Minder) {
    let mut next = Instant::now() + PATIENCE;
    loop {
        sleep_until(next).await;
        let Some(store) = minder.store.take() else {
            return;
        };
        let mut late = Vec::new();
        let now = Instant::now();
        let review =
            |outstanding: &mut Outstanding| outstanding.review(minder.runtime, now, &mut late);
        let again = store.lanes.outstanding(review);
        for (deadline, who) in late {
            who.expire(deadline.no_answer());
        }
        store.start_lane_if_needed();
        match again {
            Some(at) => next = at,
            None => return,
        }
        minder.store = Some(store);
    }
}
