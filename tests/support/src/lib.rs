//! Throw-away Postgres servers for the tests, examples and benches of `tower-pgcache`.
//!
//! [`database`] is what nearly everything here needs: a fresh, empty database. Where it lives is decided once:
//!
//! 1. on the server of `DATABASE_URL`, if that is set;
//! 2. else on a private server of this process, run from the installed server binaries;
//! 3. else on the same, run from binaries that are fetched once, visibly, into `target/` (npm packages);
//! 4. else nowhere, with an error that says what to install.
//!
//! A test that crashes, pauses or configures its server starts one of its own with [`Server`].
//!
//! However the process ends, SIGKILL included, no process and no file stays behind outside `target/`: a watchdog
//! process, which notices the end of its owner, stops the server and removes its directory.
//!
//! # Environment
//!
//! | variable | meaning |
//! |---|---|
//! | `DATABASE_URL` | use this server for [`database`]; the role needs `CREATEDB` |
//! | `PG_MAJOR` | the major version of private servers; fetched if it is not installed |
//! | `PG_BIN` | bin directories to look into first, separated like those of `PATH` |
//! | `PGTMP_DIR` | where private servers keep their data; defaults to `/dev/shm` if it has 2 GB free, else `/tmp` |
// Tests and examples want a panic that says what went wrong, not an error to pass on.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[cfg(not(unix))]
compile_error!(
    "the tests and examples of tower-pgcache start PostgreSQL the Unix way: run them on Linux or macOS (WSL will do)"
);

mod database;
mod entry;
mod error;
mod external;
mod fetch;
pub mod http;
mod install;
pub mod logs;
pub mod processes;
pub mod random;
mod server;
mod shared;
mod standby;
mod target;
mod template;
mod until;
mod user;
mod watchdog;
pub mod wire;

pub use database::Database;
pub use entry::{copies_of_an_entry, seal};
pub use error::Error;
pub use server::{Options, Server};
pub use shared::{database, try_database};
pub use until::until;
