//! What is known to be committed, and what an answer may therefore show.
//!
//! 1. Every change of a row gives it a new version, larger than all before; a deletion counts as one.
//! 2. A writer notes its changes before it commits, and that they are committed when it has learned so. A change
//!    whose commit never answered stays in between: an answer may show it or not.
//! 3. The floor of a request is, for each row, the last version that was known to be committed when the request
//!    began (or, in bounded mode, so long before). What is older is stale.
//! 4. An answer that lacks a row is right if some version from the floor on is not of this tenant.
//! 5. What was rolled back, or belongs to another tenant, may not be seen at all.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Table {
    Product,
    Price,
    Order,
}

pub(super) type RowId = (Table, i64);

/// A version of a row, and whose it is then; `None`: it is deleted.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) row: RowId,
    pub(super) version: i64,
    pub(super) tenant: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Outcome {
    Unknown,
    /// Known since then.
    Committed(Instant),
    RolledBack,
}

#[derive(Debug)]
struct Event {
    tenant: Option<String>,
    outcome: Outcome,
}

/// So many versions of a row are remembered.
const MEMORY: usize = 4000;

#[derive(Debug, Default)]
pub(super) struct Ledger(Mutex<HashMap<RowId, BTreeMap<i64, Event>>>);

/// The versions that a request may rely on.
#[derive(Debug)]
pub(super) struct Floor(HashMap<RowId, i64>);

/// What an answer showed.
#[derive(Debug, Default)]
pub(super) struct Shown {
    /// Rows with their versions, and the tenant that the answer says, or that asked.
    pub(super) rows: Vec<(RowId, i64, String)>,
    /// The answer has all rows of these for the tenant; `None`: for all tenants.
    pub(super) complete: Vec<(Table, Option<String>)>,
    /// As `complete`, for single rows.
    pub(super) single: Vec<(RowId, String)>,
}

impl Ledger {
    pub(super) fn note(&self, changes: &[Change]) {
        self.record(changes, Outcome::Unknown);
    }

    pub(super) fn committed(&self, changes: &[Change]) {
        self.record(changes, Outcome::Committed(Instant::now()));
    }

    pub(super) fn rolled_back(&self, changes: &[Change]) {
        self.record(changes, Outcome::RolledBack);
    }

    fn record(&self, changes: &[Change], outcome: Outcome) {
        let mut rows = self.lock();
        for change in changes {
            let events = rows.entry(change.row).or_default();
            let tenant = change.tenant.clone();
            events.insert(change.version, Event { tenant, outcome });
            if events.len() > MEMORY {
                events.pop_first();
            }
        }
    }

    /// What was known to be committed at that time, of the rows that `wanted` selects.
    pub(super) fn floor(&self, at: Instant, wanted: impl Fn(RowId) -> bool) -> Floor {
        let last = |events: &BTreeMap<i64, Event>| {
            let mut known = events.iter().rev();
            known
                .find(|(_, event)| matches!(event.outcome, Outcome::Committed(when) if when <= at))
                .map(|(version, _)| *version)
        };
        let rows = self.lock();
        let wanted = rows.iter().filter(|(row, _)| wanted(**row));
        Floor(
            wanted
                .filter_map(|(row, events)| Some((*row, last(events)?)))
                .collect(),
        )
    }

    /// What is wrong with an answer; nothing, as a rule.
    pub(super) fn judge(&self, floor: &Floor, shown: &Shown) -> Vec<String> {
        let mut wrong = Vec::new();
        let rows = self.lock();
        let mut present = HashMap::new();
        for (row, version, tenant) in &shown.rows {
            present.insert(*row, ());
            if let Some(floor) = floor.0.get(row).filter(|floor| *floor > version) {
                wrong.push(format!(
                    "{row:?} in version {version}, {floor} was committed"
                ));
            }
            match rows.get(row).and_then(|events| events.get(version)) {
                Some(event) if event.outcome == Outcome::RolledBack => {
                    wrong.push(format!(
                        "{row:?} in version {version}, which was rolled back"
                    ));
                }
                Some(event) if event.tenant.as_ref() != Some(tenant) => wrong.push(format!(
                    "{row:?} in version {version} for {tenant}, it was of {:?}",
                    event.tenant
                )),
                _ => {}
            }
        }
        for (row, floor) in floor.0.iter().filter(|(row, _)| !present.contains_key(row)) {
            let whose = shown.complete.iter().filter(|(table, _)| *table == row.0);
            let whose = whose.map(|(_, tenant)| tenant.as_deref());
            let single = shown.single.iter().filter(|(single, _)| single == row);
            for tenant in whose.chain(single.map(|(_, tenant)| Some(tenant.as_str()))) {
                let may_lack = |event: &Event| {
                    event.outcome != Outcome::RolledBack
                        && match tenant {
                            Some(tenant) => event.tenant.as_deref() != Some(tenant),
                            None => event.tenant.is_none(),
                        }
                };
                let mut later = rows[row].range(floor..);
                if !later.any(|(_, event)| may_lack(event)) {
                    wrong.push(format!("{row:?} is missing for {tenant:?} since {floor}"));
                }
            }
        }
        wrong
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RowId, BTreeMap<i64, Event>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
