//! Bodies as they are stored: as they are, or compressed with Zstandard.
//!
//! 1. A row whose body is compressed says how long it is unpacked, and its checksum covers that. Never is more allocated
//!    than that, and a body that comes to anything else is damaged.
//! 2. What does not save an eighth is stored as it is: to unpack it would cost more than it is worth.
//! 3. Bodies are compressed on a thread for such work, on their way into the store, and unpacked by the task of the request
//!    that wants one: the lane that has read it has others to answer. (1 MiB, the largest by default, takes 0.8 ms.) If no
//!    thread is to be had in time, they are stored as they are.
//! 4. Only a program with the feature `compression` has the means. To another one, what is compressed is not there.

use std::time::Duration;

use bytes::Bytes;

use super::Record;

/// Of a row.
#[derive(Debug, Clone)]
pub(crate) struct StoredBody {
    pub(super) bytes: Bytes,
    /// How long it is, if it is compressed.
    pub(super) unpacked: Option<i32>,
}

impl StoredBody {
    pub(crate) const fn plain(bytes: Bytes) -> Self {
        Self {
            bytes,
            unpacked: None,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) const fn is_packed(&self) -> bool {
        self.unpacked.is_some()
    }

    /// What is served. `None`: it is damaged, or nothing that this program can read.
    pub(crate) fn unpack(self) -> Option<Bytes> {
        match self.unpacked {
            None => Some(self.bytes),
            Some(length) => zstandard::unpack(&self.bytes, length),
        }
    }
}

/// Compresses the bodies that are to be.
pub(crate) async fn pack(records: &mut [Record], within: Duration) {
    let packing =
        |(at, record): (usize, &Record)| record.packs.then(|| (at, record.body.bytes.clone()));
    let bodies: Vec<(usize, Bytes)> = records.iter().enumerate().filter_map(packing).collect();
    if bodies.is_empty() {
        return;
    }
    for (at, body) in zstandard::pack(bodies, within).await {
        records[at].body = body;
    }
}

#[cfg(feature = "compression")]
mod zstandard {
    use std::cell::RefCell;
    use std::io;
    use std::time::Duration;

    use bytes::Bytes;
    use tokio::task::spawn_blocking;
    use tokio::time::timeout;
    use zstd::bulk::{Compressor, Decompressor};

    use super::StoredBody;

    /// Of 64 KB of JSON, level 1 makes 15.4 KB in 143 µs, level 3 14.7 KB in 158 µs, level 6 14.6 KB in 681 µs. (Of noise
    /// nothing, in 14 µs.) All of them are unpacked in 55 µs.
    const LEVEL: i32 = 3;

    thread_local! {
        /// To make one takes 20 µs, and 160 KB.
        static UNPACKER: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
    }

    /// Those that became smaller, with their places.
    pub(super) async fn pack(
        bodies: Vec<(usize, Bytes)>,
        within: Duration,
    ) -> Vec<(usize, StoredBody)> {
        match timeout(within, spawn_blocking(|| packed(bodies))).await {
            Ok(Ok(packed)) => packed,
            Ok(Err(_)) | Err(_) => {
                tracing::debug!(
                    "no thread was free to compress bodies: they are stored as they are"
                );
                Vec::new()
            }
        }
    }

    fn packed(bodies: Vec<(usize, Bytes)>) -> Vec<(usize, StoredBody)> {
        let Ok(mut compressor) = Compressor::new(LEVEL) else {
            return Vec::new();
        };
        bodies
            .into_iter()
            .filter_map(|(at, body)| {
                let length = i32::try_from(body.len()).ok()?;
                let packed = compressor.compress(&body).ok()?;
                let body = StoredBody {
                    bytes: packed.into(),
                    unpacked: Some(length),
                };
                worth_it(&body).then_some((at, body))
            })
            .collect()
    }

    fn worth_it(body: &StoredBody) -> bool {
        let unpacked = body
            .unpacked
            .map_or(0, |length| length.unsigned_abs() as usize);
        body.len() <= unpacked - unpacked / 8
    }

    pub(super) fn unpack(packed: &[u8], length: i32) -> Option<Bytes> {
        let length = usize::try_from(length).ok()?;
        let mut plain = Vec::new();
        plain.try_reserve_exact(length).ok()?;
        // writes as much as there is room for, at most
        let unpacked = with_unpacker(|zstd| zstd.decompress_to_buffer(packed, &mut plain));
        if unpacked.is_err() || plain.len() != length {
            tracing::warn!("a compressed body is damaged, and its answer will be replaced");
            return None;
        }
        Some(plain.into())
    }

    fn with_unpacker<T>(
        work: impl FnOnce(&mut Decompressor<'static>) -> io::Result<T>,
    ) -> io::Result<T> {
        UNPACKER.with_borrow_mut(|unpacker| {
            let mut own = match unpacker.take() {
                Some(own) => own,
                None => Decompressor::new()?,
            };
            let done = work(&mut own);
            *unpacker = Some(own);
            done
        })
    }
}

#[cfg(not(feature = "compression"))]
mod zstandard {
    use std::future::{Ready, ready};
    use std::sync::Once;
    use std::time::Duration;

    use bytes::Bytes;

    use super::StoredBody;

    /// Nobody asks for it: the builder refuses.
    pub(super) fn pack(_: Vec<(usize, Bytes)>, _: Duration) -> Ready<Vec<(usize, StoredBody)>> {
        ready(Vec::new())
    }

    pub(super) fn unpack(_: &[u8], _: i32) -> Option<Bytes> {
        static SAID: Once = Once::new();
        SAID.call_once(|| {
            tracing::warn!(
                "another instance stores compressed bodies, which this program cannot read: it was built without the \
                 feature `compression` of tower-pgcache"
            );
        });
        None
    }
}
