//! The queue of answers to be stored: bounded, and worked off in the background.
//!
//! A full queue drops what comes. An answer that waits gives way to a later one with the same key: under load an
//! older one would often be invalid before it is stored. One task at a time works; it begins with the first answer and ends with the
//! last one.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, PoisonError};

use super::Engine;
use super::gauge::Token;
use super::lease::Lease;
use crate::error::Error;
use crate::key::Key;
use crate::store::{Record, pack};
use crate::sync::{Mutex, MutexGuard, spawn};

/// How many answers one transaction stores at most.
const BATCH: usize = 32;

#[derive(Debug, Default)]
pub(crate) struct Writer(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    waiting: HashMap<Key, Job>,
    /// The keys of `waiting`, oldest first.
    order: VecDeque<Key>,
    bytes: usize,
    working: bool,
}

impl Queue {
    fn remove(&mut self, key: Key) -> Option<Job> {
        let job = self.waiting.remove(&key)?;
        self.bytes -= job.bytes();
        Some(job)
    }

    /// In the place of the one that it supersedes, or at the end.
    fn add(&mut self, job: Job, supersedes: bool) {
        let key = job.record.key;
        self.bytes += job.bytes();
        self.waiting.insert(key, job);
        if !supersedes {
            self.order.push_back(key);
        }
    }
}

#[derive(Debug)]
struct Job {
    record: Record,
    /// Given back with the answer.
    lease: Option<Lease>,
    _pending: Token,
}

impl Job {
    fn bytes(&self) -> usize {
        self.record.head.len() + self.record.body.len() + self.record.path.len()
    }
}

impl Writer {
    pub(crate) fn push(&self, engine: &Arc<Engine>, mut record: Record, lease: Option<Lease>) {
        record.lease = lease.as_ref().map(|lease| (lease.key(), lease.holder()));
        let job = Job {
            record,
            lease,
            _pending: engine.pending.enter(),
        };
        let mut queue = self.lock();
        let supersedes = queue.remove(job.record.key).is_some();
        let is_full = queue.waiting.len() >= engine.settings.queue_entries
            || queue.bytes + job.bytes() > engine.settings.queue_bytes
            || job.bytes() > most_bytes(engine) * 10;
        if is_full {
            drop(queue);
            engine.stats.count(|s| &s.dropped);
            return;
        }
        queue.add(job, supersedes);
        let idle = !std::mem::replace(&mut queue.working, true);
        // a runtime that is shutting down drops the task here, and that takes the lock
        drop(queue);
        if idle {
            spawn(work(Working(Some(engine.clone()))));
        }
    }

    /// The next batch; none, and the task is no longer working.
    fn take(&self, most: usize, most_bytes: usize) -> Vec<Job> {
        let mut queue = self.lock();
        let mut batch = Vec::new();
        let bytes = queue.bytes;
        while batch.len() < most && bytes - queue.bytes < most_bytes {
            let Some(key) = queue.order.pop_front() else {
                break;
            };
            batch.extend(queue.remove(key));
        }
        queue.working = !batch.is_empty();
        batch
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Held by the task. If it is dropped with its runtime, what was waiting is lost, and another task may begin.
struct Working(Option<Arc<Engine>>);

impl Drop for Working {
    fn drop(&mut self) {
        if let Some(engine) = &self.0 {
            *engine.writer.lock() = Queue::default();
        }
    }
}

async fn work(mut working: Working) {
    while let Some(engine) = &working.0 {
        let mut records = Vec::new();
        let mut held = Vec::new();
        for Job {
            record,
            lease,
            _pending,
        } in engine.writer.take(most(engine), most_bytes(engine))
        {
            records.push(record);
            held.push((lease, _pending));
        }
        if records.is_empty() {
            // a regular end: what is pushed from here on has a task of its own
            working.0 = None;
        } else {
            if write(engine, records).await {
                held.iter_mut()
                    .filter_map(|(lease, _)| lease.as_mut())
                    .for_each(Lease::is_over);
            }
        }
    }
}

/// How many answers one transaction stores, and how many bytes, before somebody looks whether there is room for more: one
/// percent of what there may be.
fn most(engine: &Engine) -> usize {
    usize::try_from(engine.settings.bounds.entries / 100)
        .unwrap_or(usize::MAX)
        .clamp(1, BATCH)
}

/// A tenth of the largest answer.
fn most_bytes(engine: &Engine) -> usize {
    usize::try_from(engine.settings.bounds.bytes / 100)
        .unwrap_or(usize::MAX)
        .clamp(1, usize::MAX / 10)
}

/// Returns whether the transaction was committed.
async fn write(engine: &Arc<Engine>, mut records: Vec<Record>) -> bool {
    let count = records.len() as u64;
    if !engine.has_room().await {
        engine.stats.add(count, |s| &s.dropped);
        return false;
    }
    pack(&mut records, engine.settings.store_deadline).await;
    let written = match engine
        .store
        .put(records, engine.settings.store_deadline)
        .await
    {
        Ok((accepted, volume)) => {
            engine.writes.is_well();
            engine.room.add(volume);
            Some(accepted)
        }
        Err(error) => {
            engine.note_write_failure(&error);
            None
        }
    };
    let accepted = written.unwrap_or_default();
    engine.stats.add(accepted, |s| &s.stored);
    engine.stats.add(count - accepted, |s| &s.dropped);
    written.is_some()
}

impl Engine {
    pub(super) fn note_write_failure(&self, error: &Error) {
        self.stats.count(|s| &s.errors);
        self.writes.is_ill(error);
        self.readiness.doubt(error);
    }
}
