//! The queue of answers to be stored: bounded, and worked off in the background.
//!
//! A full queue drops what comes. An answer that waits gives way to a later one with the same key: under load an
//! older one would often be invalid before it is stored. One task at a time works; it begins with the first answer and ends with the
//! last one.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Engine;
use super::gauge::Token;
use crate::key::Key;
use crate::store::Record;

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
    _pending: Token,
}

impl Job {
    fn bytes(&self) -> usize {
        self.record.head.len() + self.record.body.len() + self.record.path.len()
    }
}

impl Writer {
    pub(crate) fn push(&self, engine: &Arc<Engine>, record: Record) {
        let job = Job {
            record,
            _pending: engine.pending.enter(),
        };
        let mut queue = self.lock();
        let supersedes = queue.remove(job.record.key).is_some();
        let is_full = queue.waiting.len() >= engine.settings.queue_entries
            || queue.bytes + job.bytes() > engine.settings.queue_bytes;
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
            tokio::spawn(work(Working(Some(engine.clone()))));
        }
    }

    /// The next batch; none, and the task is no longer working.
    fn take(&self) -> Vec<Job> {
        let mut queue = self.lock();
        let mut batch = Vec::new();
        while batch.len() < BATCH {
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
        let (records, _pending): (Vec<_>, Vec<_>) = engine
            .writer
            .take()
            .into_iter()
            .map(|Job { record, _pending }| (record, _pending))
            .unzip();
        if records.is_empty() {
            // a regular end: what is pushed from here on has a task of its own
            working.0 = None;
        } else {
            write(engine, records).await;
        }
    }
}

async fn write(engine: &Arc<Engine>, records: Vec<Record>) {
    let count = records.len() as u64;
    let accepted = match engine
        .store
        .put(records, engine.settings.store_deadline)
        .await
    {
        Ok(accepted) => {
            engine.writes.is_well();
            accepted
        }
        Err(error) => {
            engine.stats.count(|s| &s.errors);
            engine.writes.is_ill(&error);
            engine.readiness.doubt(&error);
            0
        }
    };
    engine.stats.add(accepted, |s| &s.stored);
    engine.stats.add(count - accepted, |s| &s.dropped);
}
