//! A deadline for one thing after another.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Poll, ready};

use tokio::time::{Instant, Sleep, sleep_until};

/// It is set anew when it has run out, and not each time: to set one wakes the thread that waits for I/O, which costs
/// more than all the rest of what has a deadline here.
#[derive(Debug, Default)]
pub(crate) struct Timer(Option<Pin<Box<Sleep>>>);

/// It is too late.
#[derive(Debug)]
pub(super) struct Late;

impl Timer {
    pub(super) async fn timeout_at<T>(
        &mut self,
        deadline: Instant,
        future: impl Future<Output = T>,
    ) -> Result<T, Late> {
        let mut future = pin!(future);
        poll_fn(|context| {
            if let Poll::Ready(output) = future.as_mut().poll(context) {
                return Poll::Ready(Ok(output));
            }
            let sleep = self
                .0
                .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
            if sleep.deadline() > deadline {
                sleep.as_mut().reset(deadline);
            }
            loop {
                ready!(sleep.as_mut().poll(context));
                if Instant::now() >= deadline {
                    return Poll::Ready(Err(Late));
                }
                sleep.as_mut().reset(deadline);
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::time::Duration;

    use tokio::task::yield_now;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_has_its_own_deadline() {
        let mut timer = Timer::default();
        let after = |millis| Instant::now() + Duration::from_millis(millis);
        let begun = Instant::now();
        assert_eq!(timer.timeout_at(after(10), ready(1)).await.ok(), Some(1));
        assert!(timer.timeout_at(after(10), yield_now()).await.is_ok());
        // later than what the timer is set to, and then earlier
        assert!(timer.timeout_at(after(100), pending::<()>()).await.is_err());
        assert_eq!(begun.elapsed().as_millis(), 100);
        assert!(timer.timeout_at(after(1000), yield_now()).await.is_ok());
        assert!(timer.timeout_at(after(20), pending::<()>()).await.is_err());
        assert_eq!(begun.elapsed().as_millis(), 120);
    }
}
