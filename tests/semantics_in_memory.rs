//! The suite of `semantics` once more, with answers in memory; there they are in the database alone.

#[path = "semantics/main.rs"]
mod semantics;
