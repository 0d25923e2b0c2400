//! How long a lookup waits: until it has had enough, a further lane is thought of; until its deadline, it is told that
//! there is no answer. One task sees to that for all of them, every few milliseconds while there are any.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::reply::Expiry;
use super::{Deadline, Store};

/// What a lookup bears before a further lane starts: some times what a batch takes when nothing is wrong, and
/// little of the deadline.
pub(super) const PATIENCE: Duration = Duration::from_millis(5);

/// Lookups that may still be without an answer.
#[derive(Debug, Default)]
pub(super) struct Outstanding {
    lookups: VecDeque<(Deadline, Expiry)>,
    /// Whether the task runs that looks after them.
    is_minded: bool,
}

impl Outstanding {
    /// Whether somebody has to be found who looks after them.
    pub(super) fn add(&mut self, deadline: Deadline, expiry: Expiry) -> bool {
        self.lookups.push_back((deadline, expiry));
        !std::mem::replace(&mut self.is_minded, true)
    }

    pub(super) fn nobody_minds(&mut self) {
        self.is_minded = false;
    }

    /// Forgets those that have an answer, and takes those out that will have none. When to look again; `None`: there is
    /// nothing to look after.
    fn review(&mut self, now: Instant, late: &mut Vec<(Deadline, Expiry)>) -> Option<Instant> {
        let mut next = now + PATIENCE;
        // mostly in the order of their deadlines, and few are open: the others are from the last few milliseconds
        for _ in 0..self.lookups.len() {
            let Some((deadline, expiry)) = self.lookups.pop_front() else {
                break;
            };
            if !expiry.is_open() {
                continue;
            }
            if deadline.at <= now {
                late.push((deadline, expiry));
            } else {
                next = next.min(deadline.at);
                self.lookups.push_back((deadline, expiry));
            }
        }
        self.is_minded = !self.lookups.is_empty();
        self.is_minded.then_some(next)
    }
}

/// Held by the task that looks after lookups. If that is dropped with its runtime, the next one starts another.
struct Minder(Option<Arc<Store>>);

impl Drop for Minder {
    fn drop(&mut self) {
        if let Some(store) = &self.0 {
            store.lanes.outstanding(Outstanding::nobody_minds);
        }
    }
}

impl Store {
    pub(super) fn mind(self: &Arc<Self>) {
        tokio::spawn(mind(Minder(Some(self.clone()))));
    }
}

async fn mind(mut minder: Minder) {
    let mut next = Instant::now() + PATIENCE;
    loop {
        sleep_until(next).await;
        let Some(store) = minder.0.take() else { return };
        let mut late = Vec::new();
        let review = |outstanding: &mut Outstanding| outstanding.review(Instant::now(), &mut late);
        let again = store.lanes.outstanding(review);
        for (deadline, expiry) in late {
            expiry.expire(|| deadline.no_answer());
        }
        store.start_lane_if_needed();
        match again {
            Some(at) => next = at,
            None => return,
        }
        minder.0 = Some(store);
    }
}
