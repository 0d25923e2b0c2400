//! Random numbers that a seed repeats: a small generator of our own (`SplitMix64`), so that a run is the same for a
//! seed whatever the version of a crate.

use std::hash::{BuildHasher, RandomState};

/// A sequence of random numbers.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// One of many sequences of a seed. The leak hunt's old seeds rely on how they begin.
    #[must_use]
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut random = Self(seed ^ stream.wrapping_mul(0xd134_2543_de82_ef95));
        random.next();
        random
    }

    /// The seed is taken from the environment variable, or else new each time; it is printed.
    ///
    /// # Panics
    ///
    /// If the variable is not a number.
    #[must_use]
    pub fn of_this_run(variable: &str) -> Self {
        let seed = match std::env::var(variable) {
            Ok(seed) => seed.parse().expect(variable),
            Err(_) => RandomState::new().hash_one(0),
        };
        println!("{variable}={seed}");
        Self::new(seed, 0)
    }

    /// Another sequence.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self(self.next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to less than `n`.
    ///
    /// # Panics
    ///
    /// Unless `n` is positive.
    pub fn below<N: TryInto<u64> + TryFrom<u64>>(&mut self, n: N) -> N {
        let n = n.try_into().ok().expect("a positive number");
        N::try_from(self.next() % n).ok().expect("less than n")
    }

    /// True in one of `n` cases.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }

    /// [`pick`](Self::pick), by value.
    pub fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        *self.pick(choices)
    }

    /// One of the others in one of six cases.
    pub fn usually<T: Copy>(&mut self, usual: T, others: &[T]) -> T {
        if self.one_in(6) {
            self.of(others)
        } else {
            usual
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Random;

    /// Seeds that were noted down go on to mean the same.
    #[test]
    fn the_sequence_of_a_seed_does_not_change() {
        let mut random = Random::new(12345, 7);
        let numbers: Vec<u64> = (0..4).map(|_| random.below(1000)).collect();
        assert_eq!(numbers, [378, 367, 588, 148]);
    }
}
