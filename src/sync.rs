//! What tasks and threads share, wait for and are measured by: of std and Tokio.
//!
//! Under `--cfg shuttle` it comes from shuttle and from `simulated`, so that a scheduler decides who goes on at each
//! step: see `engine::interleaved`. What is taken from here is what a protocol rests on: the locks and atomics of the feed
//! and of memory, the locks under which tasks are spawned, tasks, and time. Channels stay Tokio's (they wake whoever drives
//! them), as do the locks within `quick_cache` and mere counters: each operation on them is one step.

#[cfg(all(test, shuttle))]
mod simulated;

#[cfg(all(test, shuttle))]
pub(crate) use simulated::*;

#[cfg(not(all(test, shuttle)))]
pub(crate) use {
    std::sync::atomic::AtomicU64,
    std::sync::{Mutex, MutexGuard, RwLock},
    tokio::runtime::Handle,
    tokio::task::{JoinHandle, spawn},
    tokio::time::{Instant, sleep, timeout, timeout_at},
};

/// Tells one runtime from another.
#[cfg(not(all(test, shuttle)))]
pub(crate) type Runtime = Option<tokio::runtime::Id>;

/// The one that this is called in.
#[cfg(not(all(test, shuttle)))]
pub(crate) fn runtime() -> Runtime {
    Handle::try_current().ok().map(|handle| handle.id())
}
