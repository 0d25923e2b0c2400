//! No client sees an error and none is served something stale, and nothing is left behind, whatever happens to Postgres,
//! to the way there, to the schema, to the settings and to the clock.
//!
//! Each case has two instances in processes of their own, clients that read from both, and writers that commit
//! changes. The pages come from an origin that no case disturbs: what fails is the cache. See `harness`.
//!
//! `CHAOS_SECONDS` is how long the soak goes on, `CHAOS_SEED` repeats its draws.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod clock;
mod database;
mod harness;
mod network;
mod replacement;
mod server;
mod settings;
mod soak;

/// No test: what the others run in processes of their own.
#[test]
fn instance() {
    harness::instance_if_asked();
}
