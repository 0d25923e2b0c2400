//! Statements that a session keeps, so that Postgres does not parse and plan them each time: for the smallest ones that
//! costs more than to run them.
//!
//! 1. They are a matter of speed and nothing else. Whatever the database has against a kept statement, the plain one is sent
//!    instead, and what that says counts.
//! 2. The name is a hash of the text. Under one name there is one statement, whoever prepared it and for whom: behind a
//!    pooler a session may be anybody's.
//! 3. A connection that is only borrowed for a moment is not worth it: the first [`PLAINLY`] statements are sent as they are.
//! 4. Where a statement is gone that was prepared in the same borrowing, something gives the session away between two
//!    transactions, as PgBouncer does. That would happen again and again, with an error in the server's log each time, so
//!    nothing is prepared any more.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::Connection;
use crate::error::Error;

/// How many statements are sent in a borrowing before one is prepared.
const PLAINLY: u32 = 8;

/// A statement that can be kept.
#[derive(Debug)]
pub(super) struct Kept {
    name: String,
    /// Prepares it, unless the session has it.
    prepare: String,
}

impl Kept {
    /// `types`: of its parameters, as a list.
    pub(super) fn new(types: &str, text: &str) -> Self {
        let hash = blake3::hash(format!("{types} {text}").as_bytes()).to_hex();
        let name = format!("pgcache_{}", &hash.as_str()[..32]);
        let text = text.trim().trim_end_matches(';');
        let prepare = format!(
            "DO $do$ BEGIN IF NOT EXISTS (SELECT FROM pg_catalog.pg_prepared_statements WHERE name = '{name}') THEN \
             EXECUTE $prepare$ PREPARE {name} ({types}) AS {text} $prepare$; END IF; END $do$"
        );
        Self { name, prepare }
    }

    /// Runs it with literals, which are not escaped here.
    pub(super) fn execute(&self, literals: &str) -> String {
        format!("EXECUTE {} ({literals})", self.name)
    }
}

/// Whether sessions keep what was prepared; they do until one shows that it does not.
#[derive(Debug)]
pub(super) struct Keeping(AtomicBool);

impl Default for Keeping {
    fn default() -> Self {
        Self(AtomicBool::new(true))
    }
}

/// A connection that is in use for one statement after another.
pub(super) struct Session {
    pub(super) connection: Connection,
    sent: u32,
    prepared: bool,
}

impl Session {
    pub(super) fn new(connection: Connection) -> Self {
        Self {
            connection,
            sent: 0,
            prepared: false,
        }
    }

    pub(super) fn client(&mut self) -> &mut Client {
        self.connection.client()
    }

    /// Whether `statement` is there to be executed.
    pub(super) async fn has(&mut self, statement: &Kept, keeping: &Keeping) -> bool {
        if !keeping.0.load(Ordering::Relaxed) {
            return false;
        }
        if !self.prepared {
            self.sent += 1;
            if self.sent == PLAINLY {
                let prepared = self.client().batch_execute(&statement.prepare).await;
                self.prepared = prepared.is_ok();
            }
        }
        self.prepared
    }

    /// It was executed, with this error. Returns the error if it is not the database's: the connection is broken.
    pub(super) fn refused(
        &mut self,
        error: tokio_postgres::Error,
        keeping: &Keeping,
    ) -> Result<(), Error> {
        let Some(code) = error.code() else {
            return Err(error.into());
        };
        if *code == SqlState::INVALID_SQL_STATEMENT_NAME {
            keeping.0.store(false, Ordering::Relaxed);
        }
        self.prepared = false;
        Ok(())
    }
}
