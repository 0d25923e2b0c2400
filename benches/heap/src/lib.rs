//! The system's allocator, and how much of what it gave out lives. What it needs itself to keep order is not counted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::array;
use std::sync::atomic::{AtomicI64, Ordering};

/// Smaller allocations are told apart by their size, larger ones by the power of two above.
const SMALL: usize = 2048;
const CLASSES: usize = SMALL + usize::BITS as usize;

static COUNTS: [AtomicI64; CLASSES] = [const { AtomicI64::new(0) }; CLASSES];
static BYTES: AtomicI64 = AtomicI64::new(0);

/// To be the `#[global_allocator]`.
#[derive(Debug)]
pub struct Counted;

// SAFETY: everything is the system's; counting allocates nothing.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout, 1);
        // SAFETY: the caller's promise
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(layout, -1);
        // SAFETY: the caller's promise
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn count(layout: Layout, times: i64) {
    let size = layout.size();
    let class = match size {
        0..SMALL => size,
        _ => SMALL + size.next_power_of_two().trailing_zeros() as usize,
    };
    COUNTS[class].fetch_add(times, Ordering::Relaxed);
    BYTES.fetch_add(times * size as i64, Ordering::Relaxed);
}

/// What lives at a moment, or has come since another.
#[derive(Debug, Clone)]
pub struct Living {
    pub bytes: i64,
    counts: [i64; CLASSES],
}

/// What lives now.
#[must_use]
pub fn living() -> Living {
    Living {
        bytes: BYTES.load(Ordering::Relaxed),
        counts: array::from_fn(|class| COUNTS[class].load(Ordering::Relaxed)),
    }
}

impl Living {
    /// What is there more than there was.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            bytes: self.bytes - earlier.bytes,
            counts: array::from_fn(|class| self.counts[class] - earlier.counts[class]),
        }
    }

    /// How many there are of each size below 2 KiB, with those sizes.
    pub fn small(&self) -> impl Iterator<Item = (usize, i64)> {
        self.counts[..SMALL].iter().copied().enumerate()
    }
}
