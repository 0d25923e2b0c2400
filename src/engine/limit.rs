//! How many of something may go on at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Debug, Default)]
pub(super) struct Limit<const MOST: usize>(Arc<AtomicUsize>);

/// One of those that go on, as long as it lives.
#[derive(Debug)]
pub(crate) struct Place(Arc<AtomicUsize>);

impl<const MOST: usize> Limit<MOST> {
    /// `None`: that are as many as there may be.
    pub(super) fn take(&self) -> Option<Place> {
        let one_more = |n: usize| (n < MOST).then_some(n + 1);
        let taken = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        taken.ok().map(|_| Place(self.0.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_at_once_and_no_more() {
        let limit = Limit::<2>::default();
        let (one, two) = (limit.take(), limit.take());
        assert!(one.is_some() && two.is_some());
        assert!(limit.take().is_none());
        drop(one);
        assert!(limit.take().is_some());
        drop(two);
    }
}
