//! Whether the database is known to hold a schema and an epoch that this crate can use.
//!
//! Nothing is known at first. The first request starts finding out, in a task of its own, and waits for it as
//! for any lookup. After a failure nobody asks again for a while.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio_postgres::error::SqlState;

use super::Engine;
use crate::error::{Error, ErrorKind};
use crate::sync::{Instant, Mutex, MutexGuard, spawn};

const RETRY_AFTER: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct Readiness(Mutex<State>);

#[derive(Debug, Default)]
enum State {
    #[default]
    Unknown,
    /// The channel closes when the state has changed.
    Preparing(watch::Receiver<()>),
    Ready,
    Failed {
        kind: ErrorKind,
        message: String,
        retry_at: Instant,
    },
}

impl Readiness {
    pub(crate) async fn ensure(&self, engine: &Arc<Engine>) -> Result<(), Error> {
        loop {
            let mut preparing = match self.now(engine) {
                Ok(None) => return Ok(()),
                Ok(Some(preparing)) => preparing,
                Err(error) => return Err(error),
            };
            // the sender sends nothing: this ends when it is dropped
            let _ = preparing.changed().await;
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        matches!(*self.lock(), State::Ready)
    }

    /// `Some`: wait for this.
    fn now(&self, engine: &Arc<Engine>) -> Result<Option<watch::Receiver<()>>, Error> {
        let mut state = self.lock();
        match &*state {
            State::Ready => Ok(None),
            State::Preparing(preparing) if preparing.has_changed().is_ok() => {
                Ok(Some(preparing.clone()))
            }
            State::Failed {
                kind,
                message,
                retry_at,
            } if Instant::now() < *retry_at => Err(Error::new(*kind, message.clone())),
            // never tried, tried long ago, or the task was dropped with its runtime
            _ => {
                let (done, preparing) = watch::channel(());
                *state = State::Preparing(preparing.clone());
                spawn(prepare(engine.clone(), done));
                Ok(Some(preparing))
            }
        }
    }

    pub(crate) fn set_ready(&self) {
        *self.lock() = State::Ready;
    }

    /// The next request finds out anew.
    pub(crate) fn forget(&self) {
        let mut state = self.lock();
        if matches!(*state, State::Ready) {
            *state = State::Unknown;
        }
    }

    /// An error that may mean that the schema is gone; whether it does.
    pub(crate) fn doubt(&self, error: &Error) -> bool {
        let gone = [
            SqlState::UNDEFINED_TABLE,
            SqlState::INVALID_SCHEMA_NAME,
            SqlState::UNDEFINED_FUNCTION,
            SqlState::UNDEFINED_COLUMN,
        ];
        let is_gone = error.sql_state().is_some_and(|state| gone.contains(state));
        if is_gone {
            self.forget();
        }
        is_gone
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn prepare(engine: Arc<Engine>, done: watch::Sender<()>) {
    if let Err(error) = engine.prepare(engine.settings.auto_migrate).await {
        let (kind, message) = (error.kind(), error.to_string());
        *engine.readiness.lock() = State::Failed {
            kind,
            message,
            retry_at: Instant::now() + RETRY_AFTER,
        };
    }
    drop(done);
}
