//! What each setting does, as a user would notice it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod changes;
mod freshness;
mod keys;
mod run_time;
mod stage;
mod switches;
