//! Lookups that one statement asks for, and who gets which row.

use std::sync::Arc;

use tokio_postgres::Row;

use super::Origin;
use super::lookup::{self, Asking, Brought, Fetched};
use super::queue::Question;
use crate::error::Error;
use crate::key::Key;

/// Lookups that are under way together.
pub(super) struct Batch {
    /// The lookups that it was sent for; `None` where the answer was given.
    open: Vec<Option<Open>>,
    /// Which lookups each key belongs to, in order.
    wanted: Vec<(Key, usize)>,
    /// Of the first statement.
    origin: Option<Origin>,
}

struct Open {
    question: Question,
    rows: Vec<(Key, Arc<Fetched>)>,
    /// How many of its keys have no row so far.
    missing: usize,
}

impl Batch {
    pub(super) fn new(questions: Vec<Question>) -> Self {
        let mut wanted: Vec<(Key, usize)> = Vec::new();
        for (index, question) in questions.iter().enumerate() {
            wanted.extend(question.keys.iter().map(|key| (*key, index)));
        }
        wanted.sort_unstable();
        wanted.dedup();
        let open = questions.into_iter().enumerate().map(|(index, question)| {
            let missing = wanted.iter().filter(|(_, i)| *i == index).count();
            Some(Open {
                missing,
                rows: Vec::with_capacity(missing),
                question,
            })
        });
        let open: Vec<_> = open.collect();
        Self {
            open,
            wanted,
            origin: None,
        }
    }

    /// Of how many lookups it is.
    pub(super) fn lookups(&self) -> usize {
        self.open.len()
    }

    /// Each key once. Where only some of the lookups want invalid entries too, the others do not get them.
    pub(super) fn asking(&self) -> Asking {
        let mut keys: Vec<Key> = self.wanted.iter().map(|(key, _)| *key).collect();
        keys.dedup();
        let mut open = self.open.iter().flatten();
        Asking {
            keys,
            invalid_too: open.any(|open| open.question.invalid_too),
        }
    }

    pub(super) fn add(&mut self, row: Row) -> Result<(), Error> {
        let origin = match self.origin.take() {
            Some(origin) => origin,
            None => lookup::origin(&row)?,
        };
        if let Some(key) = lookup::key(&row)? {
            let only_as_invalid = lookup::is_only_as_invalid(&row)?;
            self.give(key, only_as_invalid, Fetched::new(row), &origin);
        }
        self.origin = Some(origin);
        Ok(())
    }

    fn give(&mut self, key: Key, only_as_invalid: bool, row: Arc<Fetched>, origin: &Origin) {
        let mut row = Some(row);
        let first = self.wanted.partition_point(|(wanted, _)| *wanted < key);
        let readers = self.wanted[first..].partition_point(|(wanted, _)| *wanted == key);
        for at in first..first + readers {
            let index = self.wanted[at].1;
            let Some(open) = &mut self.open[index] else {
                continue;
            };
            open.missing = open.missing.saturating_sub(1);
            if open.question.invalid_too || !only_as_invalid {
                let is_last = at + 1 == first + readers;
                let own = if is_last { row.take() } else { row.clone() };
                open.rows.extend(own.map(|row| (key, row)));
            }
            if open.missing == 0 {
                if let Some(open) = self.open[index].take() {
                    open.tell(origin.clone());
                }
            }
        }
    }

    /// There are no more rows.
    pub(super) fn end(&mut self) {
        for open in self.open.iter_mut().filter_map(Option::take) {
            match &self.origin {
                Some(origin) => open.tell(origin.clone()),
                None => open.question.tell(Ok(Brought::NoEpoch)),
            }
        }
    }

    pub(super) fn unanswered(&mut self) -> Vec<Question> {
        let open = self.open.iter_mut().filter_map(Option::take);
        open.map(|open| open.question).collect()
    }
}

impl Open {
    fn tell(self, origin: Origin) {
        let rows = self.rows;
        self.question.tell(Ok(Brought::Rows { origin, rows }));
    }
}
