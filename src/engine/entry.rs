//! Stored answers, as the engine hands them out.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use crate::http::fields::add_length;
use crate::http::reuse::Condition;
use crate::http::stored_head::Head;
use crate::key::Key;
use crate::store::{Checksum, Snapshot, StoredBody};

/// A stored answer: the part that is the same for everybody who gets it.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) key: Key,
    pub(crate) head: Head,
    pub(crate) body: Bytes,
    /// What its validity is judged by.
    pub(crate) probes: Vec<i64>,
    /// How long its handler took.
    pub(crate) cost: Duration,
}

/// A stored answer as a request met it.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) answer: Arc<Answer>,
    pub(crate) condition: Condition,
    /// Tells it from one that replaces it in the store; of one that was read from there.
    pub(super) checksum: Option<Checksum>,
    /// Taken before its handler was called; of one that was read from the store.
    pub(super) snapshot: Option<Snapshot>,
    /// Its body as it stands in the store, if it is compressed there.
    pub(super) packed: Option<Box<StoredBody>>,
}

impl Entry {
    /// A part of an answer (206), which is not one by itself.
    pub(crate) fn is_part(&self) -> bool {
        self.head.status == StatusCode::PARTIAL_CONTENT
    }

    /// Whether it may be served as it is, for a while.
    pub(super) fn is_worth_remembering(&self) -> bool {
        self.condition.valid && !self.condition.fresh_for.is_zero() && !self.is_part()
    }

    /// What stands in the store for its body.
    pub(super) fn body_as_stored(&self) -> StoredBody {
        match &self.packed {
            Some(packed) => StoredBody::clone(packed),
            None => StoredBody::plain(self.body.clone()),
        }
    }

    /// The same after some time.
    pub(crate) fn later(&self, time: Duration) -> Self {
        Self {
            condition: self.condition.later(time),
            ..self.clone()
        }
    }

    /// The same with other fields.
    pub(crate) fn with_headers(&self, mut headers: HeaderMap) -> Self {
        let Head {
            status,
            etag_is_ours,
            ..
        } = self.head;
        add_length(status, &mut headers, self.body.len());
        let head = Head::new(status, &headers, etag_is_ours);
        let answer = Answer {
            head,
            ..Answer::clone(&self.answer)
        };
        Self {
            answer: Arc::new(answer),
            condition: self.condition,
            checksum: self.checksum,
            snapshot: self.snapshot.clone(),
            packed: self.packed.clone(),
        }
    }
}

impl Deref for Entry {
    type Target = Answer;

    fn deref(&self) -> &Answer {
        &self.answer
    }
}
