//! HTTP semantics as a client notices them, on a real database.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod invalidated;
mod nested;
mod stage;
