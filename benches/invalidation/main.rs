//! What invalidation costs those who write, and what it buys those who read; `cargo bench --bench invalidation`.
//!
//! | module | what it measures or does |
//! |---|---|
//! | [`candidates`] | the same table with different triggers, each in a database of its own |
//! | [`writers`] | 32 connections that write at once |
//! | [`statements`] | one statement that changes 1, 100 or 10,000 rows |
//! | [`hits`] | how much of what is read comes from the cache, and is still true, while others write |
//! | [`report`] | medians, and the tables |
//! | [`options`] | the command line |
//! | [`machine`] | what it ran on |
//!
//! It reports and judges nothing. The server and its clients share the machine, and the candidates take turns, so
//! compare the ratios of one run, and nothing else.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod candidates;
mod hits;
mod machine;
mod options;
mod report;
mod statements;
mod writers;

use test_support::Server;

use crate::candidates::Candidate;
use crate::options::{Options, Section};

#[tokio::main]
async fn main() {
    let options = Options::parse(std::env::args().skip(1)).unwrap_or_else(|error| {
        eprintln!("{error}");
        std::process::exit(2);
    });
    let server = tokio::task::spawn_blocking(Server::start)
        .await
        .unwrap()
        .unwrap();
    println!("`{}`\n", options.command());
    println!("{}", machine::describe(&server).await);
    if options.has(Section::Writers) || options.has(Section::Statements) {
        let tables = Candidate::set_up_all(&server).await;
        if options.has(Section::Writers) {
            println!("{}", writers::measure(&tables, &options).await);
        }
        if options.has(Section::Statements) {
            println!("{}", statements::measure(&tables, &options).await);
        }
    }
    if options.has(Section::Hits) {
        println!("{}", hits::measure(&server, &options).await);
    }
}
