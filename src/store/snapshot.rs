//! `pg_snapshot` on this side of the wire: `xmin:xmax:xip,…`.
//!
//! A snapshot sees every transaction below `xmax` that is not in `xip`. Whatever is made of one here sees less than the original, by
//! a lower `xmax`: less costs hits, more would be stale.

use std::error::Error;
use std::fmt;
use std::str::FromStr;

use bytes::{BufMut, BytesMut};
use tokio_postgres::types::{IsNull, ToSql, Type, accepts, to_sql_checked};

/// How many transactions in progress are carried along with an entry.
const MAX_IN_PROGRESS: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    xmax: u64,
    /// In progress, ascending, all below `xmax`.
    pub(super) xip: Vec<u64>,
}

impl Snapshot {
    /// That sees nothing.
    pub(super) const fn first() -> Self {
        Self {
            xmax: 1,
            xip: Vec::new(),
        }
    }

    fn new(xmax: u64, xip: Vec<u64>) -> Option<Self> {
        let is_one = xip.is_sorted() && xip.last().is_none_or(|&last| last < xmax);
        is_one.then(|| Self { xmax, xip }.capped())
    }

    /// From the numbers that Postgres sends. None of those that are stored has another `xmin` than it has to have, or more in
    /// progress.
    pub(super) fn of_numbers(xmin: u64, xmax: u64, xip: Vec<u64>) -> Option<Self> {
        let has_its_xmin = xmin == xip.first().copied().unwrap_or(xmax);
        let is_own = has_its_xmin && xip.len() <= MAX_IN_PROGRESS;
        is_own.then(|| Self::new(xmax, xip))?
    }

    /// From the text of one that was taken during recovery. What it says of transactions in progress cannot be relied on
    /// there; that all below its `xmin` have ended can.
    pub(super) fn in_recovery(text: &str) -> Result<Self, ()> {
        let xmin = text.split(':').next().unwrap_or_default();
        Ok(Self {
            xmax: xmin.parse().map_err(|_| ())?,
            xip: Vec::new(),
        })
    }

    /// Keeps the oldest transactions in progress and lowers `xmax` to the next.
    fn capped(mut self) -> Self {
        if let Some(&next) = self.xip.get(MAX_IN_PROGRESS) {
            self.xmax = next;
            self.xip.truncate(MAX_IN_PROGRESS);
        }
        self
    }

    /// Whether this snapshot sees every transaction that the other one sees.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        let hidden = self.xip.iter().take_while(|&&xid| xid < other.xmax);
        other.xmax <= self.xmax && hidden.copied().all(|xid| !other.sees(xid))
    }

    pub(crate) const fn xmax(&self) -> u64 {
        self.xmax
    }

    fn xmin(&self) -> u64 {
        self.xip.first().copied().unwrap_or(self.xmax)
    }

    /// Whether the effects of this transaction are part of the snapshot, if it committed.
    pub(super) fn sees(&self, xid: u64) -> bool {
        xid < self.xmax && self.xip.binary_search(&xid).is_err()
    }
}

impl FromStr for Snapshot {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.splitn(3, ':');
        let mut part = || parts.next().ok_or(());
        let number = |t: &str| t.parse::<u64>().map_err(|_| ());
        let _xmin = number(part()?)?;
        let xmax = number(part()?)?;
        let xip = part()?;
        let xip = if xip.is_empty() {
            Vec::new()
        } else {
            xip.split(',').map(number).collect::<Result<_, _>>()?
        };
        Self::new(xmax, xip).ok_or(())
    }
}

/// As Postgres sends it: how many are in progress, `xmin`, `xmax`, and those.
impl ToSql for Snapshot {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.put_i32(self.xip.len().try_into()?);
        out.put_u64(self.xmin());
        out.put_u64(self.xmax);
        self.xip.iter().for_each(|xid| out.put_u64(*xid));
        Ok(IsNull::No)
    }

    accepts!(PG_SNAPSHOT);
    to_sql_checked!();
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin(), self.xmax)?;
        for (i, xid) in self.xip.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{xid}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_what_is_sent_say_the_same() {
        for text in [
            "10:10:",
            "10:20:10,14,15",
            "3:4:3",
            "18446744073709551614:18446744073709551615:18446744073709551614",
        ] {
            let snapshot: Snapshot = text.parse().expect("a snapshot");
            assert_eq!(snapshot.to_string(), text);
            let mut sent = BytesMut::new();
            let sending = snapshot.to_sql(&Type::PG_SNAPSHOT, &mut sent);
            assert!(matches!(sending, Ok(IsNull::No)));
            let numbers = sent[4..].chunks_exact(8);
            let numbers = numbers.map(|n| u64::from_be_bytes(n.try_into().expect("eight bytes")));
            let (read, xip): (Vec<_>, Vec<_>) =
                (numbers.clone().take(2).collect(), numbers.skip(2).collect());
            assert_eq!(sent[..4], (xip.len() as i32).to_be_bytes());
            let read = Snapshot::of_numbers(read[0], read[1], xip);
            assert_eq!(read.expect("a snapshot"), snapshot);
        }
        assert_eq!(Snapshot::of_numbers(1, 9, vec![]), None);
        assert!(Snapshot::of_numbers(1, 99, (1..65).collect()).is_some());
        assert_eq!(Snapshot::of_numbers(1, 99, (1..66).collect()), None);
        assert_eq!(Snapshot::of_numbers(5, 9, vec![5, 9]), None);
        for bad in ["", "1", "1:2", "1:2:3", "1:5:4,3", "a:b:", "1:2:x", "-1:2:"] {
            assert!(bad.parse::<Snapshot>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_taken_in_recovery_sees_nothing_from_xmin_on() {
        let taken = Snapshot::in_recovery("10:20:12,14").expect("a snapshot");
        assert_eq!(taken.to_string(), "10:10:");
        assert!(taken.sees(9) && !taken.sees(10) && !taken.sees(11));
        assert!(Snapshot::in_recovery("x:20:").is_err());
    }

    #[test]
    fn a_snapshot_covers_those_that_see_less() {
        let snapshots: Vec<Snapshot> = [
            "5:5:", "9:9:", "5:9:5", "5:9:5,7", "7:9:7", "8:12:8", "5:12:5,8",
        ]
        .iter()
        .map(|text| text.parse().expect("a snapshot"))
        .collect();
        for one in &snapshots {
            for other in &snapshots {
                let truth = (0..20).all(|xid| one.sees(xid) || !other.sees(xid));
                assert_eq!(one.covers(other), truth, "{one} and {other}");
            }
        }
    }

    #[test]
    fn a_capped_snapshot_sees_less_and_never_more() {
        let running: Vec<u64> = (0..200).map(|i| 1000 + 3 * i).collect();
        let text: Vec<String> = running.iter().map(u64::to_string).collect();
        let capped: Snapshot = format!("1000:2000:{}", text.join(","))
            .parse()
            .expect("a snapshot");
        assert_eq!(capped.xip.len(), MAX_IN_PROGRESS);
        assert_eq!(capped.xmax, 1000 + 3 * 64);
        for xid in 0..2100 {
            let original = xid < 2000 && !running.contains(&xid);
            assert!(original || !capped.sees(xid), "{xid}");
            assert!(xid >= capped.xmax || original == capped.sees(xid), "{xid}");
        }
    }
}
