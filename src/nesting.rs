//! Two layers of one engine around one handler: the inner one's settings win.
//!
//! 1. Every layer leaves a mark on the request before it calls its inner service. A layer that finds a mark of
//!    its own engine claims the request; the outer one then passes the answer through. What an unsafe request
//!    changes is left to the inner layer only if that one takes it for unsafe too: something between the two may
//!    have made a GET of it.
//! 2. What the outer layer learned of the store is left with the mark, so that the inner one need not ask
//!    again, if both have one key.
//! 3. Preconditions and ranges that the outer layer took out of the request, to answer them itself, are put back
//!    for the inner one.
//! 4. An answer that the outer layer finds in the store is one that it may serve: whatever keeps answers apart
//!    is in the key.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use http::{Extensions, HeaderMap, Request};

use crate::engine::{Engine, Fill};
use crate::http::cache_status::Bypass;
use crate::http::conditional::take_conditionals;
use crate::key::Key;

#[derive(Debug, Clone)]
pub(crate) struct Mark(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    engine: Arc<Engine>,
    claimed: AtomicBool,
    sees_to_changes: AtomicBool,
    learned: Mutex<Option<Learned>>,
    /// The preconditions and ranges of the request, if the outer layer has replaced them.
    conditionals: Option<HeaderMap>,
    /// The mark that was there before, perhaps of another engine.
    outer: Option<Mark>,
}

/// What the outer layer knows of the store.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // moved, not kept
pub(crate) enum Learned {
    Known(Fill),
    Unusable(Bypass),
}

impl Mark {
    /// Leaves a mark; it says later whether an inner layer has claimed the request.
    pub(crate) fn leave(
        extensions: &mut Extensions,
        engine: &Arc<Engine>,
        learned: Option<Learned>,
        conditionals: Option<HeaderMap>,
    ) -> Self {
        let outer = extensions.remove::<Self>();
        let mark = Self(Arc::new(Inner {
            engine: engine.clone(),
            claimed: AtomicBool::new(false),
            sees_to_changes: AtomicBool::new(false),
            learned: Mutex::new(learned),
            conditionals,
            outer,
        }));
        extensions.insert(mark.clone());
        mark
    }

    /// Claims the request from the nearest outer layer of this engine; `changes`: as one that changes something.
    pub(crate) fn claim<B>(
        request: &mut Request<B>,
        engine: &Arc<Engine>,
        changes: bool,
    ) -> Option<Self> {
        let mut mark = request.extensions().get::<Self>().cloned();
        while let Some(found) = mark {
            if Arc::ptr_eq(&found.0.engine, engine) {
                found.0.sees_to_changes.store(changes, Ordering::Release);
                found.0.claimed.store(true, Ordering::Release);
                if let Some(conditionals) = &found.0.conditionals {
                    take_conditionals(request.headers_mut());
                    request.headers_mut().extend(conditionals.clone());
                }
                return Some(found);
            }
            mark = found.0.outer.clone();
        }
        None
    }

    pub(crate) fn is_claimed(&self) -> bool {
        self.0.claimed.load(Ordering::Acquire)
    }

    /// Whether an inner layer sees to what the request changes.
    pub(crate) fn is_claimed_as_change(&self) -> bool {
        self.is_claimed() && self.0.sees_to_changes.load(Ordering::Acquire)
    }

    /// What the outer layer learned, if it is of use for this key.
    pub(crate) fn learned(&self, key: Key) -> Option<Learned> {
        let mut learned = self.lock();
        match &*learned {
            Some(Learned::Known(fill)) if fill.key() != key => None,
            _ => learned.take(),
        }
    }

    /// The fill, if no inner layer took it.
    pub(crate) fn take_back(&self) -> Option<Fill> {
        match self.lock().take() {
            Some(Learned::Known(fill)) => Some(fill),
            _ => None,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Learned>> {
        self.0
            .learned
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
