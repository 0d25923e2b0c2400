//! What is read back is checked before it is served: the answer, where it stands, and what its validity is judged by.
//!
//! Against accidents, and to tell an entry from one that replaces it; whoever may write to the table can write checksums too.
//! Hence XXH3, which for a small answer takes a tenth of the time of a cryptographic hash.

use twox_hash::XxHash3_128;

use super::Snapshot;
use crate::key::Key;

pub(crate) type Checksum = [u8; 16];

pub(super) fn checksum(
    key: Key,
    snapshot: &Snapshot,
    probes: &[i64],
    head: &[u8],
    body: &[u8],
    unpacked: Option<i32>,
) -> Checksum {
    // all that comes before the head has a length that can be told from it, so that no two entries are written alike
    let numbers = 5 + snapshot.xip.len() + probes.len();
    let mut entry = Vec::with_capacity(32 + 8 * numbers + 16 + head.len());
    entry.extend_from_slice(key.as_bytes());
    let mut add = |number: [u8; 8]| entry.extend_from_slice(&number);
    add(snapshot.xmax().to_le_bytes());
    add((snapshot.xip.len() as u64).to_le_bytes());
    snapshot.xip.iter().for_each(|xid| add(xid.to_le_bytes()));
    add((probes.len() as u64).to_le_bytes());
    probes.iter().for_each(|probe| add(probe.to_le_bytes()));
    add(unpacked.map_or(i64::MIN, i64::from).to_le_bytes());
    add((body.len() as u64).to_le_bytes());
    entry.extend_from_slice(&XxHash3_128::oneshot(body).to_le_bytes());
    entry.extend_from_slice(head);
    XxHash3_128::oneshot(&entry).to_le_bytes()
}
