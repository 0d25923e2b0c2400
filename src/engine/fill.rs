//! From a miss to an entry.
//!
//! A [`Fill`] knows where the computation of an answer began. It becomes a [`Storing`] when the head is known
//! to be storable, and a record in the writer's queue when the body is complete. Dropped before: nothing is
//! stored.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::Engine;
use super::gauge::Token;
use crate::domain::Scope;
use crate::http::storable::Freshness;
use crate::key::Key;
use crate::store::{Origin, Record};

/// An answer that is being computed.
pub(crate) struct Fill {
    engine: Arc<Engine>,
    key: Key,
    origin: Origin,
}

/// What is written next to an answer.
#[derive(Debug)]
pub(crate) struct Label {
    pub(crate) scopes: Vec<Scope>,
    pub(crate) authority: String,
    pub(crate) path: String,
    pub(crate) tenant: Option<String>,
}

impl Fill {
    pub(super) fn new(engine: Arc<Engine>, key: Key, origin: Origin) -> Self {
        Self {
            engine,
            key,
            origin,
        }
    }

    pub(crate) fn key(&self) -> Key {
        self.key
    }

    pub(crate) fn begin(self, label: Label, freshness: Freshness, head: Vec<u8>) -> Storing {
        let pending = self.engine.pending.enter();
        Storing {
            fill: self,
            label,
            freshness,
            head,
            _pending: pending,
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
    head: Vec<u8>,
    _pending: Token,
}

impl Storing {
    /// The body is complete.
    pub(crate) fn finish(self, body: Bytes) {
        let Self {
            fill,
            label,
            freshness,
            head,
            _pending,
        } = self;
        let Label {
            scopes,
            authority,
            path,
            tenant,
        } = label;
        let record = Record {
            key: fill.key,
            origin: fill.origin,
            scopes,
            age: freshness.age,
            ttl: freshness.remaining,
            authority,
            path,
            tenant,
            head,
            body,
        };
        if !fill.engine.is_closed() {
            fill.engine.writer.push(&fill.engine, record);
        }
    }

    /// How long a body may go on when nobody reads it any more.
    pub(crate) fn patience(&self) -> Duration {
        self.fill.engine.settings.store_deadline
    }

    pub(crate) fn budget(&self) -> Arc<Budget> {
        self.fill.engine.budget.clone()
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
