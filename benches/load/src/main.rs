//! What a cached answer costs over HTTP: this crate, its peers and a handler without a cache, under the same load.
//!
//! `benches/load/run` builds this program and runs `drive`. That starts every candidate as a process of its own
//! (`serve`), each with the same axum handler, on one Postgres and one Redis that are gone afterwards; then it lets
//! `wrk` ask each of them in turn, for several rounds, so that what else the machine does falls on all of them.
//!
//! | module | what it does |
//! |---|---|
//! | [`app`] | the handler, and how often it was called |
//! | [`candidates`] | the caches around it |
//! | [`serve`] | one candidate behind a port |
//! | [`drive`] | the rounds |
//! | [`process`] | what the driver starts, and stops |
//! | [`warm`] | requests that fill a cache and check its answers |
//! | [`wrk`] | one round of load |
//! | [`report`] | medians and the table |
//! | [`machine`] | what it ran on |
//!
//! It reports and judges nothing. The handler calls show whether a candidate cached at all: they have to be 0 for
//! everything but `bare`. `wrk`, Postgres and Redis share the machine with the servers, so compare the ratios of
//! one run, and nothing else.

mod app;
mod candidates;
mod drive;
mod machine;
mod options;
mod process;
mod report;
mod serve;
mod warm;
mod wrk;

/// For the operator to read: nothing here is handled by its kind.
type Error = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("serve") => serve::serve(options::Serve::parse(arguments)?).await,
        Some("drive") => drive::until_interrupted(options::Drive::parse(arguments)?).await,
        _ => Err("usage: tower-pgcache-load drive [OPTIONS]; benches/load/run says which".into()),
    }
}
