//! What stands beside the head and the body of an entry, as a lookup sends it: the column `meta` (`sql/schema_1/tables.sql`).

use std::slice::ChunksExact;

use super::Snapshot;

/// Of an answer, as it was stored.
#[derive(Debug, PartialEq)]
pub(super) struct Meta<'a> {
    /// In seconds since 1970.
    pub(super) born_at: f64,
    pub(super) expires_at: f64,
    /// In seconds.
    pub(super) cost: f64,
    pub(super) unpacked: Option<i32>,
    pub(super) snapshot: Snapshot,
    pub(super) probes: Vec<i64>,
    /// The snapshot and the probes as they are sent, one after the other.
    pub(super) judged_by: &'a [u8],
    pub(super) checksum: &'a [u8],
}

impl<'a> Meta<'a> {
    /// `None`: that is not what the store makes of any answer.
    pub(super) fn read(mut raw: &'a [u8]) -> Option<Self> {
        let raw = &mut raw;
        let (born_at, expires_at) = (timestamp(raw)?, timestamp(raw)?);
        let cost = f64::from_be_bytes(take(raw)?);
        let unpacked = match i64::from_be_bytes(take(raw)?) {
            i64::MIN => None,
            length => Some(i32::try_from(length).ok()?),
        };
        let judged_by = *raw;
        let (snapshot, probes) = (snapshot(raw)?, array(raw)?);
        Some(Self {
            born_at,
            expires_at,
            cost,
            unpacked,
            snapshot,
            probes,
            judged_by: judged_by.strip_suffix(*raw)?,
            checksum: raw,
        })
    }
}

fn take<const N: usize>(raw: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = raw.split_first_chunk()?;
    *raw = rest;
    Some(*taken)
}

/// In microseconds since the first day of 2000.
fn timestamp(raw: &mut &[u8]) -> Option<f64> {
    const EPOCH: f64 = 946_684_800.0;
    Some(i64::from_be_bytes(take(raw)?) as f64 / 1e6 + EPOCH)
}

/// How many transactions are in progress, `xmin`, `xmax`, and those transactions.
fn snapshot(raw: &mut &[u8]) -> Option<Snapshot> {
    let in_progress = usize::try_from(i32::from_be_bytes(take(raw)?)).ok()?;
    let (xmin, xmax) = (
        u64::from_be_bytes(take(raw)?),
        u64::from_be_bytes(take(raw)?),
    );
    let xid = |xid: &[u8]| Some(u64::from_be_bytes(*xid.first_chunk()?));
    let xip: Option<_> = elements(raw, in_progress, 8)?.map(xid).collect();
    Snapshot::of_numbers(xmin, xmax, xip?)
}

/// How many dimensions there are, whether there are nulls, and of which type; of the one dimension, its length and where it
/// begins; of each element, its length and itself.
fn array(raw: &mut &[u8]) -> Option<Vec<i64>> {
    let mut number = || Some(i32::from_be_bytes(take(raw)?));
    let (dimensions, _nulls, _type) = (number()?, number()?, number()?);
    let length = match dimensions {
        0 => 0,
        1 => (usize::try_from(number()?).ok()?, number()?).0,
        _ => return None,
    };
    let bigint = |element: &[u8]| {
        let (length, number) = (element.first_chunk()?, element.last_chunk()?);
        (i32::from_be_bytes(*length) == 8).then(|| i64::from_be_bytes(*number))
    };
    elements(raw, length, 12)?.map(bigint).collect()
}

/// So many with so many bytes each; `None`: that are more than there are.
fn elements<'a>(raw: &mut &'a [u8], count: usize, bytes: usize) -> Option<ChunksExact<'a, u8>> {
    let (elements, rest) = raw.split_at_checked(count.checked_mul(bytes)?)?;
    *raw = rest;
    Some(elements.chunks_exact(bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// What Postgres makes of an answer with two transactions in progress and two probes.
    fn stored() -> Vec<u8> {
        let mut raw = Vec::new();
        raw.extend((1_000_000_i64).to_be_bytes());
        raw.extend((61_500_000_i64).to_be_bytes());
        raw.extend((0.25_f64).to_be_bytes());
        raw.extend((2000_i64).to_be_bytes());
        raw.extend((2_i32).to_be_bytes());
        [5, 9, 5, 7]
            .iter()
            .for_each(|xid: &u64| raw.extend(xid.to_be_bytes()));
        [1, 0, 20, 2, 1]
            .iter()
            .for_each(|n: &i32| raw.extend(n.to_be_bytes()));
        for probe in [-3_i64, 4] {
            raw.extend((8_i32).to_be_bytes());
            raw.extend(probe.to_be_bytes());
        }
        raw.extend([7; 16]);
        raw
    }

    #[test]
    fn is_read_as_it_was_stored() {
        let raw = stored();
        let meta = Meta::read(&raw).unwrap();
        assert_eq!(
            (meta.born_at, meta.expires_at),
            (946_684_801.0, 946_684_861.5)
        );
        assert_eq!((meta.cost, meta.unpacked), (0.25, Some(2000)));
        assert_eq!(meta.snapshot, "5:9:5,7".parse().unwrap());
        assert_eq!(meta.probes, [-3, 4]);
        assert_eq!(meta.judged_by, &raw[32..raw.len() - 16]);
        assert_eq!(meta.checksum, [7; 16]);
    }

    #[test]
    fn what_is_cut_off_is_nothing_or_has_another_checksum() {
        let raw = stored();
        for length in 0..raw.len() {
            let meta = Meta::read(&raw[..length]);
            assert!(meta.is_none_or(|meta| meta.checksum.len() < 16), "{length}");
        }
    }

    #[test]
    fn numbers_that_cannot_be_are_refused() {
        let without = |at: usize, number: i32| {
            let mut raw = stored();
            raw[at..at + 4].copy_from_slice(&number.to_be_bytes());
            Meta::read(&raw).is_none()
        };
        let (in_progress, dimensions) = (32, 68);
        for number in [-1, i32::MAX, 4] {
            assert!(without(in_progress, number), "{number} in progress");
            assert!(without(dimensions, number), "{number} dimensions");
        }
        for (at, what) in [
            (24, "unpacked"),
            (80, "elements"),
            (88, "bytes of an element"),
        ] {
            assert!(without(at, i32::MAX), "{what}");
        }
    }
}
