//! Waiting for what nobody reports.

use std::future::Future;
use std::time::Duration;

use tokio::time::{sleep, timeout};

/// Waits for something that is about to happen, and panics if it does not happen `within` that time.
pub async fn until<F: Future<Output = bool>>(
    within: Duration,
    what: &str,
    mut done: impl FnMut() -> F,
) {
    let work = async {
        while !done().await {
            sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(timeout(within, work).await.is_ok(), "never: {what}");
}
