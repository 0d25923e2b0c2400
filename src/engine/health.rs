//! Faults are logged when they begin and when they end, not each time.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::Error;

#[derive(Debug)]
pub(crate) struct Health {
    what: &'static str,
    ill: AtomicBool,
}

impl Health {
    pub(crate) const fn new(what: &'static str) -> Self {
        Self {
            what,
            ill: AtomicBool::new(false),
        }
    }

    pub(crate) fn is_ill(&self, error: &Error) {
        if !self.ill.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "{} fails; requests are answered without it until it works again", self.what);
        }
    }

    pub(crate) fn is_well(&self) {
        if self.ill.load(Ordering::Relaxed) && self.ill.swap(false, Ordering::Relaxed) {
            tracing::info!("{} works again", self.what);
        }
    }
}
