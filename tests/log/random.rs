//! Seeded randomness (SplitMix64): the seed is printed, and taken from `PGCACHE_TEST_SEED` if that is set.

use std::hash::{BuildHasher, RandomState};

#[derive(Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn of_this_run() -> Self {
        let seed = match std::env::var("PGCACHE_TEST_SEED") {
            Ok(seed) => seed.parse().expect("PGCACHE_TEST_SEED is a number"),
            Err(_) => RandomState::new().hash_one(0),
        };
        println!("PGCACHE_TEST_SEED={seed}");
        Self(seed)
    }

    /// Another sequence.
    pub(crate) fn fork(&mut self) -> Self {
        Self(self.next())
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub(crate) fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}
