//! Where the cases happen.
//!
//! - `app`: an instance, a process of its own: a few routes behind the cache, and what it uses of the machine
//! - `origin`: where the pages come from
//! - `load`: clients and writers, and the book of what was committed, which is that of `tests/freshness`
//! - `stage`: all of it together, and the checks at the end of each case
//! - `wire`: the way to Postgres, which can be cut
//! - `machine`: programs and file systems that a case needs

mod app;
#[path = "../../freshness/harness/http.rs"]
mod http;
#[allow(dead_code)] // nothing is rolled back here
#[path = "../../freshness/harness/ledger.rs"]
mod ledger;
mod load;
pub(crate) mod machine;
mod origin;
#[path = "../../freshness/harness/instance.rs"]
mod process;
mod stage;
#[allow(dead_code)] // a request that fails here has no good reason to
#[path = "../../freshness/harness/tally.rs"]
mod tally;
pub(crate) mod wire;

use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

pub(crate) use app::{Settings, instance_if_asked};
pub(crate) use stage::{PATIENCE, Stage, options, sql, superuser_of};

pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

/// One case after the other: each has several busy processes. What takes too long hangs.
pub(crate) fn case(work: impl Future<Output = ()>) {
    static TURN: Mutex<()> = Mutex::new(());

    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let hang = Duration::from_secs(180) + soak_time();
    runtime
        .block_on(async { tokio::time::timeout(hang, work).await })
        .expect("the end of the case");
}

/// How long the soak goes on.
pub(crate) fn soak_time() -> Duration {
    let seconds = std::env::var("CHAOS_SECONDS");
    Duration::from_secs(seconds.map_or(30, |seconds| seconds.parse().expect("CHAOS_SECONDS")))
}
