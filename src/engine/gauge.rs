//! How much is going on, for those who want to wait until nothing is.

use std::sync::Arc;

use tokio::sync::watch;

#[derive(Debug, Clone)]
pub(crate) struct Gauge(Arc<watch::Sender<usize>>);

/// Counts as long as it lives.
#[derive(Debug)]
pub(crate) struct Token(Gauge);

impl Default for Gauge {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }
}

impl Gauge {
    pub(crate) fn enter(&self) -> Token {
        self.0.send_modify(|n| *n += 1);
        Token(self.clone())
    }

    pub(crate) async fn zero(&self) {
        // an error means that the sender is gone; we hold it
        let _ = self.0.subscribe().wait_for(|&n| n == 0).await;
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.0.0.send_modify(|n| *n -= 1);
    }
}
