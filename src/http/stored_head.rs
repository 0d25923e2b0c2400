//! The head of a stored answer: how it is written down, and how it becomes the head of an answer to a client.
//!
//! 1. It is written with the names of all fields first, then the values. The names are the same in most answers of a route,
//!    so they are read once, and a head is a [`Layout`] and its values: a field takes 40 bytes and what its value has, and not the
//!    104 of a map's and what its name has.
//! 2. Several lines of one field, their order and every byte of their values are kept.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::header::{AGE, CACHE_CONTROL, HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};

use super::cache_status::CACHE_STATUS;
use super::layout::{EMPTY, LAYOUTS, Layout};

/// Says in the status that the cache made the `ETag`.
const ETAG_IS_OURS: u16 = 1 << 15;

/// Status and fields of a stored answer.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) status: StatusCode,
    /// Whether the cache made the `ETag`, so that the handler does not know it.
    pub(crate) etag_is_ours: bool,
    layout: Arc<Layout>,
    /// In the order of the layout.
    values: Box<[HeaderValue]>,
}

/// What an answer says besides what is stored.
#[derive(Debug, Default)]
pub(crate) struct Added {
    pub(crate) age: Option<HeaderValue>,
    /// If it is not stored with one.
    pub(crate) cache_control: Option<HeaderValue>,
    /// The last member.
    pub(crate) cache_status: Option<HeaderValue>,
}

impl Added {
    /// Nothing but what is said of this cache.
    pub(crate) fn status(cache_status: Option<HeaderValue>) -> Self {
        Self {
            cache_status,
            ..Self::default()
        }
    }

    /// To fields that have no room laid out for it.
    pub(crate) fn append_to(self, headers: &mut HeaderMap) {
        let cache_control = self.cache_control;
        let cache_control = cache_control.filter(|_| !headers.contains_key(CACHE_CONTROL));
        // what says who may keep the answer comes first: with too many lines already, the answer matters more than the rest
        for (name, value) in [
            (CACHE_CONTROL, cache_control),
            (AGE, self.age),
            (CACHE_STATUS, self.cache_status),
        ] {
            let _ = value.map(|value| headers.try_append(name, value));
        }
    }
}

impl Head {
    /// Without `Age`, which is computed for each answer.
    pub(crate) fn new(status: StatusCode, headers: &HeaderMap, etag_is_ours: bool) -> Self {
        let mut headers = Cow::Borrowed(headers);
        if headers.contains_key(AGE) {
            headers.to_mut().remove(AGE);
        }
        let names = written(headers.iter().map(|(name, _)| name));
        let values = headers.values().cloned().collect();
        let anew = || {
            // not a copy: it would have as much room as the map once needed
            let mut fields = HeaderMap::new();
            let appended = |(name, _)| fields.try_append(name, EMPTY).is_ok();
            if !headers.iter().all(appended) {
                // so many that the same names are too much in another order
                fields.clone_from(&headers);
                fields.values_mut().for_each(|value| *value = EMPTY);
            }
            LAYOUTS.add(&names, fields)
        };
        Self {
            status,
            etag_is_ours,
            layout: LAYOUTS.get(&names).unwrap_or_else(anew),
            values,
        }
    }

    /// As bytes: the status, the length of all names, then each name and after them each value with its length before it.
    /// Numbers are little-endian.
    pub(crate) fn write(&self) -> Vec<u8> {
        let names = written(self.lines().map(|(name, _)| name));
        let values: usize = self.values.iter().map(|value| 4 + value.len()).sum();
        let mut out = Vec::with_capacity(6 + names.len() + values);
        let ours = if self.etag_is_ours { ETAG_IS_OURS } else { 0 };
        out.extend_from_slice(&(self.status.as_u16() | ours).to_le_bytes());
        // a map has at most 32,768 lines, with names of 64 KiB, and a value is what one message may carry
        put(&mut out, &names);
        self.values
            .iter()
            .for_each(|value| put(&mut out, value.as_bytes()));
        out
    }

    /// The reverse of [`write`](Self::write); `None` if the bytes are not such a head. The values are parts of it, not copies.
    pub(crate) fn read(head: &Bytes) -> Option<Self> {
        let mut rest = &head[..];
        let (first, after) = rest.split_first_chunk()?;
        rest = after;
        let first = u16::from_le_bytes(*first);
        let status = StatusCode::from_u16(first & !ETAG_IS_OURS).ok()?;
        let names = take(&mut rest)?;
        let layout = match LAYOUTS.get(names) {
            Some(layout) => layout,
            None => LAYOUTS.add(names, named(names)?),
        };
        let mut values = Vec::with_capacity(layout.lines);
        for _ in 0..layout.lines {
            let value = head.slice_ref(take(&mut rest)?);
            values.push(HeaderValue::from_maybe_shared(value).ok()?);
        }
        rest.is_empty().then_some(Self {
            status,
            etag_is_ours: first & ETAG_IS_OURS != 0,
            layout,
            values: values.into(),
        })
    }

    /// The same, in no more allocations and bytes than it takes, and sharing nothing with what is larger.
    pub(crate) fn compact(&self) -> Self {
        let mut bytes = BytesMut::with_capacity(self.size());
        for value in &self.values {
            bytes.extend_from_slice(value.as_bytes());
        }
        let mut bytes = bytes.freeze();
        let mut compact = self.clone();
        for value in &mut compact.values {
            if let Ok(mut same) = HeaderValue::from_maybe_shared(bytes.split_to(value.len())) {
                same.set_sensitive(value.is_sensitive());
                *value = same;
            }
        }
        compact
    }

    /// How many bytes the values have.
    fn size(&self) -> usize {
        self.values.iter().map(HeaderValue::len).sum()
    }

    /// What a [compact](Self::compact) one takes besides itself.
    pub(crate) fn weight(&self) -> usize {
        self.layout.weight() + size_of_val(&*self.values) + self.size()
    }

    /// Name and value of each line.
    fn lines(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.layout.names().zip(&self.values)
    }

    /// The values of a field.
    pub(crate) fn get_all<'a>(
        &'a self,
        name: &'a HeaderName,
    ) -> impl Iterator<Item = &'a HeaderValue> {
        let of_it = self.lines().filter(move |(n, _)| *n == name);
        of_it.map(|(_, value)| value)
    }

    pub(crate) fn contains(&self, name: &HeaderName) -> bool {
        self.get_all(name).next().is_some()
    }

    /// The fields as they are stored.
    pub(crate) fn fields(&self) -> HeaderMap {
        self.fields_with(Added::default())
    }

    /// The fields of an answer to a client.
    pub(crate) fn fields_with(&self, added: Added) -> HeaderMap {
        laid_out(&self.layout, self.values.iter().cloned(), added)
    }

    /// The same of a head that is not used any more.
    pub(crate) fn into_fields_with(self, added: Added) -> HeaderMap {
        laid_out(&self.layout, self.values.into_iter(), added)
    }
}

/// The values in their places, in the order of the layout, and what is added.
fn laid_out(
    layout: &Layout,
    values: impl Iterator<Item = HeaderValue>,
    mut added: Added,
) -> HeaderMap {
    if layout.has_cache_control {
        added.cache_control = None;
    }
    let mut headers = layout.fields(added.cache_control.is_some() && layout.has_room);
    let mut places = headers.values_mut();
    for (value, place) in values.zip(places.by_ref()) {
        *place = value;
    }
    if layout.has_room {
        let has_place = !layout.has_cache_status;
        let unused = [
            added.age.is_none().then_some(AGE),
            (has_place && added.cache_status.is_none()).then_some(CACHE_STATUS),
        ];
        // in the order of the layout
        let mut fill = |value: Option<HeaderValue>| {
            if let (Some(place), Some(value)) = (places.next(), value) {
                *place = value;
            }
        };
        fill(added.age.take());
        if has_place {
            fill(added.cache_status.take());
        }
        fill(added.cache_control.take());
        for name in unused.into_iter().flatten() {
            headers.remove(name);
        }
    }
    added.append_to(&mut headers);
    headers
}

/// Names as they are written in a head.
fn written<'a>(names: impl Iterator<Item = &'a HeaderName>) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    names.for_each(|name| put(&mut out, name.as_str().as_bytes()));
    out
}

/// Fields with these names, in this order; `None` if no head is written with them.
fn named(names: &[u8]) -> Option<HeaderMap> {
    let mut fields = HeaderMap::new();
    let mut rest = names;
    while !rest.is_empty() {
        let name = HeaderName::from_bytes(take(&mut rest)?).ok()?;
        fields.try_append(name, EMPTY).ok()?;
    }
    // a map has the lines of a field together, and names in lower case
    let is_written_so = written(fields.iter().map(|(name, _)| name)) == names;
    (is_written_so && !fields.contains_key(AGE)).then_some(fields)
}

fn put(out: &mut Vec<u8>, part: &[u8]) {
    out.extend_from_slice(&(part.len() as u32).to_le_bytes());
    out.extend_from_slice(part);
}

fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_first_chunk()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let (part, after) = after.split_at_checked(length)?;
    *rest = after;
    Some(part)
}

#[cfg(test)]
mod tests {
    use http::header::{CONTENT_TYPE, ETAG, VARY};

    use super::*;
    use crate::http::fields_of;

    fn map(fields: &[(&str, &[u8])]) -> HeaderMap {
        fields_of(fields)
    }

    fn head(fields: &[(&str, &[u8])]) -> Head {
        Head::new(StatusCode::OK, &map(fields), false)
    }

    fn value(value: &'static str) -> Option<HeaderValue> {
        Some(HeaderValue::from_static(value))
    }

    #[test]
    fn a_head_survives_the_round_trip_byte_for_byte() {
        let headers = map(&[
            ("x-a", b"1"),
            ("x-b", b"\xff\xfe \t"),
            ("x-a", b""),
            ("x-a", b"2"),
        ]);
        let status = StatusCode::from_u16(299).expect("a status");
        let written = Head::new(status, &headers, true).write();
        let read = Head::read(&written.into()).expect("a head");
        assert!(read.etag_is_ours);
        assert_eq!(read.status.as_u16(), 299);
        assert_eq!(read.fields(), headers);
        for fields in [read.fields(), read.compact().fields()] {
            assert_eq!(
                fields.get_all("x-a").iter().collect::<Vec<_>>(),
                ["1", "", "2"]
            );
        }
    }

    #[test]
    fn cut_or_changed_bytes_are_no_head_and_no_panic() {
        let written: Bytes = head(&[("x-a", b"1"), ("x-long", &[b'x'; 300])])
            .write()
            .into();
        let heads = (0..written.len()).filter(|&n| Head::read(&written.slice(..n)).is_some());
        assert_eq!(heads.count(), 0);
        for at in 0..written.len() {
            let mut changed = written.to_vec();
            changed[at] ^= 0xff;
            let _ = Head::read(&changed.into());
        }
    }

    #[test]
    fn names_that_nobody_writes_so_are_no_head() {
        let with_names = |names: &[&str]| {
            let mut all = Vec::new();
            names.iter().for_each(|n| put(&mut all, n.as_bytes()));
            let mut bytes = 200u16.to_le_bytes().to_vec();
            put(&mut bytes, &all);
            names.iter().for_each(|_| put(&mut bytes, b""));
            Head::read(&bytes.into())
        };
        assert!(with_names(&[]).is_some());
        assert!(with_names(&["x-a", "x-a", "x-b"]).is_some());
        for names in [
            &["x-a", "x-b", "x-a"][..], // lines of one field apart from each other
            &["X-A"],
            &["age"],
            &[""],
            &["x a"],
        ] {
            // nor the second time
            for _ in 0..2 {
                assert!(with_names(names).is_none(), "{names:?}");
            }
        }
    }

    #[test]
    fn what_is_added_stands_beside_what_is_stored() {
        let added = || Added {
            age: value("5"),
            cache_control: value("private"),
            cache_status: value("pgcache; hit"),
        };
        let of = |fields: &[(&str, &[u8])], added| head(fields).fields_with(added);

        let plain = of(&[("etag", b"a")], added());
        assert_eq!(plain.len(), 4);
        assert_eq!(plain[ETAG], "a");
        assert_eq!(plain[AGE], "5");
        assert_eq!(plain[CACHE_CONTROL], "private");
        assert_eq!(plain[CACHE_STATUS], "pgcache; hit");

        let says_so_itself: &[(&str, &[u8])] = &[
            ("cache-status", b"inner; hit"),
            ("cache-control", b"max-age=1"),
        ];
        let both = of(says_so_itself, added());
        assert_eq!(both.len(), 4);
        assert_eq!(both[CACHE_CONTROL], "max-age=1");
        assert_eq!(
            both.get_all(CACHE_STATUS).iter().collect::<Vec<_>>(),
            ["inner; hit", "pgcache; hit"]
        );

        assert_eq!(
            of(&[("etag", b"a")], Added::default()),
            map(&[("etag", b"a")])
        );
        assert_eq!(of(says_so_itself, Added::default()), map(says_so_itself));
        let age_alone = Added {
            age: value("5"),
            ..Added::default()
        };
        assert_eq!(of(&[], age_alone), map(&[("age", b"5")]));
    }

    #[test]
    fn a_head_of_very_many_lines_says_all_the_same() {
        let names: Vec<String> = (0..5000).map(|n| format!("x-{n}")).collect();
        let fields: Vec<(&str, &[u8])> = names.iter().map(|n| (n.as_str(), n.as_bytes())).collect();
        let written = head(&fields).write();
        let read = Head::read(&written.into()).expect("a head");
        assert_eq!(read.fields(), map(&fields));
        let said = read.fields_with(Added {
            age: value("5"),
            cache_control: value("private"),
            cache_status: value("pgcache; hit"),
        });
        assert_eq!(said.len(), 5003);
        assert_eq!(said[AGE], "5");
        assert_eq!(said[CACHE_CONTROL], "private");
        assert_eq!(said[CACHE_STATUS], "pgcache; hit");
        assert_eq!(said["x-4999"], "x-4999");
    }

    #[test]
    fn room_is_no_field() {
        let head = head(&[("vary", b"a"), ("vary", b"b"), ("content-type", b"c")]);
        let lines: Vec<_> = head.get_all(&VARY).collect();
        assert_eq!(lines, ["a", "b"]);
        assert!(head.contains(&CONTENT_TYPE));
        for name in [AGE, CACHE_STATUS, CACHE_CONTROL] {
            assert!(!head.contains(&name), "{name}");
            assert_eq!(head.get_all(&name).count(), 0, "{name}");
        }
    }

    #[test]
    fn what_is_compact_is_the_same() {
        let mut headers = map(&[("x-a", b"1"), ("x-b", b"\xff \t"), ("x-a", b"")]);
        let mut secret = HeaderValue::from_static("2");
        secret.set_sensitive(true);
        headers.append("x-a", secret);
        let compact = Head::new(StatusCode::OK, &headers, true).compact();
        assert_eq!(compact.fields(), headers);
        assert!(
            compact
                .fields()
                .get_all("x-a")
                .iter()
                .any(HeaderValue::is_sensitive)
        );
        assert!(compact.etag_is_ours);
    }
}
