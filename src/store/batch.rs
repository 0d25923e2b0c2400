//! Lookups that one statement asks for, and who gets which row.

use std::sync::Arc;

use tokio_postgres::Row;

use super::Origin;
use super::lookup::{self, Asking, Brought, Fetched, Line, Shared};
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
    origin: Option<Arc<Origin>>,
}

struct Open {
    question: Question,
    rows: Fetched,
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
        let open = questions.into_iter().map(|question| Open {
            question,
            rows: Fetched::new(),
            missing: 0,
        });
        let mut open: Vec<_> = open.map(Some).collect();
        for (_, index) in &wanted {
            open[*index].iter_mut().for_each(|open| open.missing += 1);
        }
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
            None => Arc::new(lookup::origin(&row)?),
        };
        if let Some(key) = lookup::key(&row)? {
            let only_as_invalid = lookup::is_only_as_invalid(&row)?;
            let first = self.wanted.partition_point(|(wanted, _)| *wanted < key);
            let readers = self.wanted[first..].iter();
            let readers = readers.take_while(|(wanted, _)| *wanted == key).count();
            if readers == 1 {
                self.give(first, only_as_invalid, Line::Own(row), &origin);
            } else {
                let shared = Shared::new(row);
                for at in first..first + readers {
                    let line = Line::Shared(shared.clone());
                    self.give(at, only_as_invalid, line, &origin);
                }
            }
        }
        self.origin = Some(origin);
        Ok(())
    }

    /// To the one who wants it there.
    fn give(&mut self, at: usize, only_as_invalid: bool, line: Line, origin: &Arc<Origin>) {
        let (key, index) = self.wanted[at];
        let place = &mut self.open[index];
        let Some(open) = place else { return };
        open.missing = open.missing.saturating_sub(1);
        if open.question.invalid_too || !only_as_invalid {
            open.rows.push((key, line));
        }
        if open.missing == 0 {
            if let Some(open) = place.take() {
                open.tell(origin.clone());
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
    fn tell(self, origin: Arc<Origin>) {
        let rows = self.rows;
        self.question.tell(Ok(Brought::Rows { origin, rows }));
    }
}
