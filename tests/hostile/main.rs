//! Hostile clients: what they try, and what other clients notice of it. `SECURITY.md` has a row for each threat.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod claims;
mod connections;
mod deception;
mod floods;
mod names;
mod paths;
mod site;
mod sizes;

/// What the floods may leave behind in memory is measured.
#[global_allocator]
static HEAP: heap::Counted = heap::Counted;
