//! [`ConfigError`] for mistakes in the configuration, [`Error`] for what methods of the engine report. The
//! layer itself never fails a request.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

pub(crate) type BoxError = Box<dyn StdError + Send + Sync>;

/// Mistakes in the configuration, all at once, each with its place and its mend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    mistakes: Vec<String>,
}

impl ConfigError {
    pub(crate) fn one(mistake: String) -> Self {
        Self {
            mistakes: vec![mistake],
        }
    }

    /// `Ok` if there are none.
    pub(crate) fn check(mistakes: Vec<String>) -> Result<(), Self> {
        if mistakes.is_empty() {
            Ok(())
        } else {
            Err(Self { mistakes })
        }
    }

    /// One line per mistake.
    pub fn mistakes(&self) -> impl Iterator<Item = &str> {
        self.mistakes.iter().map(String::as_str)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.mistakes.join("; "))
    }
}

impl StdError for ConfigError {}

/// What went wrong in a method of [`PgCache`](crate::PgCache).
#[derive(Debug, Clone)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    /// Shared: what fails a statement fails all who wait for it.
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

/// The sort of an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The database cannot be reached, or no connection became free within the deadline.
    Unavailable,
    /// The database did not answer within the deadline. Whether a write took effect is unknown.
    Timeout,
    /// The database refused: missing rights, read-only, out of space, …
    Database,
    /// The schema is missing, older or newer than this version of the crate.
    Schema,
    /// The cache was closed.
    Closed,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    pub(crate) fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into().into());
        self
    }

    /// The sort of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The SQLSTATE, where Postgres itself reported the error.
    pub(crate) fn sql_state(&self) -> Option<&tokio_postgres::error::SqlState> {
        self.source
            .as_deref()?
            .downcast_ref::<tokio_postgres::Error>()?
            .code()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        // tokio_postgres says only "db error" of what the server reports; the message is in the source
        match error.as_db_error().map(|e| match e.hint() {
            None => format!("{} ({})", e.message(), e.code().code()),
            Some(hint) => format!("{} ({}). {hint}", e.message(), e.code().code()),
        }) {
            Some(message) => Self::new(ErrorKind::Database, message),
            None => Self::new(ErrorKind::Unavailable, error.to_string()),
        }
        .with_source(error)
    }
}
