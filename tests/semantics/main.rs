//! HTTP semantics as a client notices them, on a real database.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod conditionals;
mod errors;
mod groups;
mod invalidated;
mod nested;
mod partial;
mod ranges;
mod refresh;
mod requests;
mod revalidation;
mod stage;
mod storable;
mod vary;
