//! What a lookup is told: by the lane that carries it, or, when its deadline has passed, by whoever looks after those.
//!
//! A `oneshot` with a third party. A timer for each lookup would do the same; to set and to cancel one costs more than all
//! else that a waiting lookup does.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::lookup::Brought;
use super::patience::Expiring;
use crate::error::{Error, ErrorKind};

type Told = Result<Brought, Error>;

#[derive(Debug)]
enum State {
    /// With who waits.
    Open(Option<Waker>),
    Told(Told),
    /// It was read, or nobody wants to know any more.
    Closed,
}

#[derive(Debug)]
struct Slot {
    /// Whether the state is `Open`: that is asked more often than it changes. Written with the lock.
    open: AtomicBool,
    state: Mutex<State>,
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// The first one who knows is heard.
    fn tell(&self, what: impl FnOnce() -> Told) {
        if !self.is_open() {
            return;
        }
        let mut state = self.lock();
        if let State::Open(waker) = &mut *state {
            let waker = waker.take();
            self.open.store(false, Ordering::Release);
            *state = State::Told(what());
            drop(state);
            waker.into_iter().for_each(Waker::wake);
        }
    }

    fn close(&self) {
        let mut state = self.lock();
        self.open.store(false, Ordering::Release);
        let before = std::mem::replace(&mut *state, State::Closed);
        drop(state);
        // without the lock
        drop(before);
    }
}

/// Where the answer is expected.
pub(super) fn reply() -> (Sender, Reply) {
    let slot = Arc::new(Slot {
        open: AtomicBool::new(true),
        state: Mutex::new(State::Open(None)),
    });
    let reply = Reply {
        slot: slot.clone(),
        is_read: false,
    };
    (Sender(Some(slot)), reply)
}

/// Of who finds the answer; dropping it tells that there will be none.
#[derive(Debug)]
pub(super) struct Sender(Option<Arc<Slot>>);

impl Sender {
    /// Whether nobody waits any more.
    pub(super) fn is_closed(&self) -> bool {
        !self.0.as_ref().is_some_and(|slot| slot.is_open())
    }

    pub(super) fn send(mut self, told: Told) {
        if let Some(slot) = self.0.take() {
            slot.tell(|| told);
        }
    }

    /// To whoever tells that it is too late.
    pub(super) fn leave(mut self) {
        self.0 = None;
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let Some(slot) = &self.0 else { return };
        slot.tell(|| {
            Err(Error::new(
                ErrorKind::Unavailable,
                "the task that asks the database has ended early",
            ))
        });
    }
}

/// Of who waits; dropping it gives up.
#[derive(Debug)]
pub(super) struct Reply {
    slot: Arc<Slot>,
    is_read: bool,
}

impl Reply {
    /// Those who have to be told when it is too late.
    pub(super) fn expiring(&self) -> Arc<dyn Expiring> {
        self.slot.clone()
    }
}

impl Future for Reply {
    type Output = Told;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Told> {
        let Self { slot, is_read } = &mut *self;
        let mut state = slot.lock();
        match &mut *state {
            State::Open(waker) => {
                waker
                    .get_or_insert_with(|| context.waker().clone())
                    .clone_from(context.waker());
                Poll::Pending
            }
            State::Told(_) => match std::mem::replace(&mut *state, State::Closed) {
                State::Told(told) => {
                    *is_read = true;
                    Poll::Ready(told)
                }
                State::Open(_) | State::Closed => unreachable!("it was told"),
            },
            State::Closed => panic!("polled after it was ready"),
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.is_read {
            self.slot.close();
        }
    }
}

impl Expiring for Slot {
    fn is_over(&self) -> bool {
        !self.is_open()
    }

    fn expire(&self, why: Error) {
        self.tell(|| Err(why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn late() -> Error {
        Error::new(ErrorKind::Timeout, "late")
    }

    #[tokio::test]
    async fn the_first_one_tells() {
        let (sender, reply) = reply();
        let deadline = reply.expiring();
        let waiting = tokio::spawn(reply);
        tokio::task::yield_now().await;
        assert!(!sender.is_closed() && !deadline.is_over());
        sender.send(Ok(Brought::NoEpoch));
        deadline.expire(late());
        assert!(deadline.is_over());
        assert!(matches!(waiting.await, Ok(Ok(Brought::NoEpoch))));
    }

    #[tokio::test]
    async fn who_waits_is_told_that_it_is_too_late_or_that_nobody_will_answer() {
        let (sender, waiting) = reply();
        waiting.expiring().expire(late());
        assert!(sender.is_closed());
        drop(sender);
        assert_eq!(
            waiting.await.err().map(|e| e.kind()),
            Some(ErrorKind::Timeout)
        );

        let (sender, waiting) = reply();
        drop(sender);
        let kind = waiting.await.err().map(|e| e.kind());
        assert_eq!(kind, Some(ErrorKind::Unavailable));
    }

    #[test]
    fn who_gives_up_is_not_waited_for() {
        let (sender, waiting) = reply();
        let deadline = waiting.expiring();
        drop(waiting);
        assert!(sender.is_closed() && deadline.is_over());
        sender.send(Ok(Brought::NoEpoch));
        deadline.expire(late());
    }
}
