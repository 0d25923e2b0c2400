//! Two layers of one engine around one handler: the inner one's settings win.
//!
//! 1. Every layer leaves a mark on the request before it calls its inner service. A layer that finds a mark of
//!    its own engine claims the request; the outer one then passes the answer through. What an unsafe request
//!    changes is left to the inner layer only if that one takes it for unsafe too: something between the two may
//!    have made a GET of it.
//! 2. That the store cannot be asked is left with the mark, so that the inner layer need not find out again; and
//!    so is what the outer one needs in order to store the answer, if nobody claims the request.
//! 3. Preconditions and ranges that the outer layer took out of the request, to answer them itself, are put back
//!    for the inner one. Not where a layer of another engine is between the two and has done the same: what the request carries
//!    then is that layer's own question.
//! 4. An outer layer never serves what an inner one stored, even if both have the same settings: what is between
//!    the two may turn people away, know who they are, and correct what they say. The inner layer decides by what
//!    has become of the request there, and the outer one cannot know that. So the number of layers of the engine
//!    that are around a layer is part of its keys.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use http::{Extensions, HeaderMap, Request};

use crate::engine::{Engine, Fill};
use crate::http::cache_status::Bypass;
use crate::http::conditional::take_conditionals;

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

    /// How many layers of this engine the request has come through.
    pub(crate) fn depth(extensions: &Extensions, engine: &Arc<Engine>) -> u32 {
        let mut depth = 0;
        let mut mark = extensions.get::<Self>();
        while let Some(found) = mark {
            depth += u32::from(Arc::ptr_eq(&found.0.engine, engine));
            mark = found.0.outer.as_ref();
        }
        depth
    }

    /// Claims the request from the nearest outer layer of this engine; `changes`: as one that changes something.
    pub(crate) fn claim<B>(
        request: &mut Request<B>,
        engine: &Arc<Engine>,
        changes: bool,
    ) -> Option<Self> {
        let mut mark = request.extensions().get::<Self>().cloned();
        let mut is_untouched = true;
        while let Some(found) = mark {
            if Arc::ptr_eq(&found.0.engine, engine) {
                found.0.sees_to_changes.store(changes, Ordering::Release);
                found.0.claimed.store(true, Ordering::Release);
                if let Some(conditionals) = found.0.conditionals.as_ref().filter(|_| is_untouched) {
                    take_conditionals(request.headers_mut());
                    request.headers_mut().extend(conditionals.clone());
                }
                return Some(found);
            }
            is_untouched &= found.0.conditionals.is_none();
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

    /// Why the outer layer could not use the store, if so.
    pub(crate) fn unusable(&self) -> Option<Bypass> {
        match *self.lock() {
            Some(Learned::Unusable(reason)) => Some(reason),
            _ => None,
        }
    }

    /// The fill, of a request that no inner layer has claimed.
    pub(crate) fn take_back(&self) -> Option<Fill> {
        match self.lock().take() {
            Some(Learned::Known(fill)) => Some(fill),
            _ => None,
        }
    }

    /// To be told when the inner service has answered.
    pub(crate) fn unanswered(&self) -> Unanswered {
        Unanswered(Some(self.clone()))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Learned>> {
        self.0
            .learned
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// If it is dropped before there is an answer, nobody is going to fill any more, and those who wait have to know, though
/// the handler may have kept the request's extensions, and with them the mark.
pub(crate) struct Unanswered(Option<Mark>);

impl Unanswered {
    pub(crate) fn is_answered(&mut self) {
        self.0 = None;
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(mark) = &self.0 {
            let learned = mark.lock().take();
            drop(learned);
        }
    }
}
