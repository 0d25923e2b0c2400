//! Letting those come along who are on their way: a statement costs nearly the same for one and for twenty.

use crate::sync::yield_now;

/// How many times at most, so that an endless stream of newcomers does not keep the first one waiting.
const TURNS: usize = 8;

/// Returns when, while everything else that was ready had its turn, the number of those who wait did not change.
pub(crate) async fn gather(waiting: impl Fn() -> usize) {
    let mut before = 0;
    for _ in 0..TURNS {
        let now = waiting();
        if now == before {
            return;
        }
        before = now;
        yield_now().await;
    }
}
