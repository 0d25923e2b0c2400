//! Watched tables: what each kind of statement invalidates, on tables of every shape; cascades; rights; what happens to
//! the watched table itself. Mostly by what appears in the log.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod adoption;
mod cascades;
mod definitions;
mod http;
mod limits;
mod messages;
mod partitions;
mod refusals;
mod rights;
mod settings;
mod shapes;
mod stage;
mod statements;
mod storm;
mod transactions;
mod views;
