//! [`Layout`]: the names of the fields of a stored head, read, hashed and laid out once for all heads that have them.
//!
//! 1. A layout is a map with values that say nothing. To copy it and put the values in takes less than to build a map.
//! 2. It has room for what is added to each answer. To let a map grow costs more than all the rest of a hit.
//! 3. A process shares [`MOST_SHARED`] layouts: half a megabyte as heads usually are, four or five at most. When there are as
//!    many, those that no head has make room. What finds none, and what is large, belongs to its head alone and counts there,
//!    for as long as the head is kept.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, OnceLock, PoisonError, RwLock};

use http::HeaderMap;
use http::header::{AGE, CACHE_CONTROL, HeaderName, HeaderValue};

use super::cache_status::CACHE_STATUS;

/// How many layouts are shared.
const MOST_SHARED: usize = 256;

/// How many lines a shared layout has at most, and how many bytes their names.
const MOST_LINES: usize = 48;
const MOST_BYTES: usize = 2048;

/// While there is room for so many at most, one in so many looks whether that is still so.
const LOOK_AGAIN: usize = 64;

/// A head with more lines has no room for others: the map might be full. (Below some 6,500 it is not, whatever the names.)
const MOST_WITH_ROOM: usize = 4096;

/// What a line takes in a map.
const LINE: usize = 120;

pub(super) const EMPTY: HeaderValue = HeaderValue::from_static("");

/// Names in their order. What is said of a map here relies on this: it is iterated in the order in which its names came
/// first, with all lines of a name together, and so is a copy.
#[derive(Debug)]
pub(super) struct Layout {
    /// The lines of the head, and then, if there is room, those of `Age` and of `Cache-Status` unless that is there.
    map: HeaderMap,
    /// The same with room for `Cache-Control`; made when it is wanted.
    with_cache_control: OnceLock<HeaderMap>,
    /// How many there are of the head.
    pub(super) lines: usize,
    /// Hardly any head has so many lines that it has none.
    pub(super) has_room: bool,
    pub(super) has_cache_status: bool,
    pub(super) has_cache_control: bool,
    is_shared: bool,
}

impl Layout {
    /// That of a head with these fields; `Age` is not among them.
    fn of(mut map: HeaderMap) -> Self {
        let lines = map.len();
        let has_cache_status = map.contains_key(CACHE_STATUS);
        let has_cache_control = map.contains_key(CACHE_CONTROL);
        let has_room = lines <= MOST_WITH_ROOM;
        if has_room {
            map.append(AGE, EMPTY);
        }
        if has_room && !has_cache_status {
            map.append(CACHE_STATUS, EMPTY);
        }
        Self {
            // a copy has just the room that it takes
            map: map.clone(),
            with_cache_control: OnceLock::new(),
            lines,
            has_room,
            has_cache_status,
            has_cache_control,
            is_shared: false,
        }
    }

    /// The fields to put values into: those of the head, and what is added, in the order of [`map`](Self::map).
    /// `with_cache_control`: of a head that has room.
    pub(super) fn fields(&self, with_cache_control: bool) -> HeaderMap {
        if !with_cache_control {
            return self.map.clone();
        }
        let with_it = self.with_cache_control.get_or_init(|| {
            let mut map = self.map.clone();
            map.append(CACHE_CONTROL, EMPTY);
            map.clone()
        });
        with_it.clone()
    }

    /// Of the lines of the head.
    pub(super) fn names(&self) -> impl Iterator<Item = &HeaderName> {
        self.map.iter().map(|(name, _)| name).take(self.lines)
    }

    /// What it adds to the weight of a head.
    pub(super) fn weight(&self) -> usize {
        if self.is_shared {
            return 0;
        }
        let names: usize = self.names().map(|name| name.as_str().len()).sum();
        // two maps
        size_of::<Self>() + names + 2 * (self.map.len() + 1) * LINE
    }
}

/// The shared ones, by their names as they are written.
#[derive(Debug, Default)]
pub(super) struct Layouts {
    /// Compared, not hashed: there are few.
    known: RwLock<BTreeMap<Box<[u8]>, Arc<Layout>>>,
    is_full: AtomicBool,
    refused: AtomicUsize,
}

pub(super) static LAYOUTS: LazyLock<Layouts> = LazyLock::new(Layouts::default);

impl Layouts {
    pub(super) fn get(&self, names: &[u8]) -> Option<Arc<Layout>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(names).cloned()
    }

    /// The layout of a head with these fields, whose values say nothing; shared from now on, if there is room.
    pub(super) fn add(&self, names: &[u8], fields: HeaderMap) -> Arc<Layout> {
        let layout = Layout::of(fields);
        let is_small = layout.lines <= MOST_LINES && names.len() <= MOST_BYTES;
        let was_full = self.is_full.load(Ordering::Relaxed);
        let looks = !was_full || self.refused.fetch_add(1, Ordering::Relaxed) % LOOK_AGAIN == 0;
        if is_small && looks {
            self.share(names, layout, was_full)
        } else {
            Arc::new(layout)
        }
    }

    fn share(&self, names: &[u8], layout: Layout, was_full: bool) -> Arc<Layout> {
        // freed when the others may go on
        let mut unused = Vec::new();
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get(names) {
            return known.clone();
        }
        if was_full || known.len() >= MOST_SHARED {
            known.retain(|_, layout| {
                let is_used = Arc::strong_count(layout) > 1;
                if !is_used {
                    unused.push(layout.clone());
                }
                is_used
            });
            let is_full = known.len() + LOOK_AGAIN > MOST_SHARED;
            self.is_full.store(is_full, Ordering::Relaxed);
        }
        let is_shared = known.len() < MOST_SHARED;
        let layout = Arc::new(Layout {
            is_shared,
            ..layout
        });
        if is_shared {
            known.insert(names.into(), layout.clone());
        }
        layout
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(names: &[String]) -> HeaderMap {
        let name = |name: &String| name.parse::<HeaderName>().expect("a name");
        names.iter().map(|n| (name(n), EMPTY)).collect()
    }

    fn add(layouts: &Layouts, name: &str) -> Arc<Layout> {
        layouts.add(name.as_bytes(), fields(&[name.to_owned()]))
    }

    #[test]
    fn heads_with_the_same_names_share_a_layout() {
        let layouts = Layouts::default();
        assert!(layouts.get(b"x-a").is_none());
        let first = add(&layouts, "x-a");
        assert!(Arc::ptr_eq(&first, &add(&layouts, "x-a")));
        assert!(Arc::ptr_eq(&first, &layouts.get(b"x-a").expect("one")));
        assert_eq!(first.weight(), 0);
    }

    #[test]
    fn those_that_are_not_used_make_room_and_no_others() {
        let layouts = Layouts::default();
        let used: Vec<_> = (0..MOST_SHARED)
            .map(|n| add(&layouts, &format!("x-{n}")))
            .collect();
        let count = || layouts.known.read().expect("no panic").len();
        for n in 0..3 * LOOK_AGAIN {
            let alone = add(&layouts, &format!("y-{n}"));
            assert!(alone.weight() > 2 * 2 * LINE);
            assert_eq!(alone.names().count(), 1);
        }
        assert_eq!(count(), MOST_SHARED);
        drop(used);
        // that is noticed after a while
        let is_shared = |n: &usize| add(&layouts, &format!("z-{n}")).weight() == 0;
        let noticed = (0..=LOOK_AGAIN).find(is_shared);
        assert!(noticed.is_some());
        assert!(add(&layouts, "z").weight() == 0);
        assert!(count() < 4);
    }

    #[test]
    fn large_ones_are_not_shared() {
        let names: Vec<String> = (0..=MOST_LINES).map(|n| format!("x-{n}")).collect();
        let layouts = Layouts::default();
        assert!(layouts.add(b"large", fields(&names)).weight() > 2 * MOST_LINES * LINE);
        assert!(layouts.get(b"large").is_none());
        assert_eq!(layouts.add(b"small", fields(&names[1..])).weight(), 0);
        let long = "x".repeat(MOST_BYTES + 1);
        assert!(add(&layouts, &long).weight() > MOST_BYTES);
    }
}
