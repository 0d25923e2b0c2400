//! [`Key`]: the identity of a stored answer.
//!
//! 1. A key is a hash over parts that are each preceded by their length, so no two different lists of parts
//!    hash the same bytes.
//! 2. HEAD and GET have one key; no other method has any.
//! 3. The URI is the one that the client sent, not what a nested router left of it.
//! 4. An answer to a request that somebody vouched for has another key than one to a request without a witness,
//!    and each tenant and each principal has its own.
//! 5. The settings that decide who shares an answer are part of the key. They are the same for all requests of a route,
//!    and hashed once.
//! 6. What a request claims about its target besides its URI and `Host` is part of the key; see
//!    [`claimed`](crate::http::claimed).
//! 7. What a layer inside another one of its engine stores has another key than what the outer one would.

use std::fmt;

use http::{HeaderMap, Uri};

use crate::head::RequestHead;
use crate::policy::KeyPart;
use crate::query::decoded;
use crate::request::cookies;

/// Changes with the parts below and with the encoding of stored heads: entries of another version are never
/// found.
const FORMAT: &str = "tower-pgcache 3";

/// What the keys of all requests of a route have in common.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct KeySpace([u8; 32]);

impl KeySpace {
    /// `settings`: as far as they decide who shares an answer.
    pub(crate) fn new(namespace: &str, generation: &str, settings: &str) -> Self {
        let mut parts = LengthPrefixed::default();
        for part in [FORMAT, namespace, generation, settings] {
            parts.part(part.as_bytes());
        }
        Self(parts.hash())
    }
}

/// The parts of a [`Key`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeyParts<'a> {
    pub(crate) space: &'a KeySpace,
    pub(crate) uri: &'a Uri,
    /// The query, as its rule leaves it.
    pub(crate) query: Option<&'a str>,
    /// Lower case, from [`authority`](crate::request::authority).
    pub(crate) authority: &'a str,
    pub(crate) tenant: Option<&'a str>,
    pub(crate) principal: Option<&'a str>,
    pub(crate) witnessed: bool,
    /// How many layers of the engine are around the one that asks.
    pub(crate) depth: u32,
    /// What a layer in between has made of the URI.
    pub(crate) rewritten: Option<&'a str>,
    /// What the request claims about its target besides.
    pub(crate) claims: &'a [u8],
    /// What else the route's settings name, as this request has it.
    pub(crate) more: &'a [u8],
}

/// The values of further parts, each with its length.
pub(crate) fn more_parts(parts: &[KeyPart], head: &RequestHead<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        match part {
            KeyPart::Header(name) => put_all(&mut bytes, header_values(head.headers(), name)),
            KeyPart::Cookie(name) => {
                let values = cookies(head.headers())
                    .filter(|(n, _)| *n == name.as_bytes() || *decoded(n) == *name.as_bytes())
                    .map(|(_, value)| value);
                put_all(&mut bytes, values);
            }
            KeyPart::With(part) => put_all(&mut bytes, [part.0(head).as_bytes()]),
        }
    }
    bytes
}

fn header_values<'a>(
    headers: &'a HeaderMap,
    name: &http::HeaderName,
) -> impl Iterator<Item = &'a [u8]> {
    headers
        .get_all(name)
        .into_iter()
        .map(http::HeaderValue::as_bytes)
}

/// How many there are, then each with its length.
fn put_all<'a>(bytes: &mut Vec<u8>, values: impl IntoIterator<Item = &'a [u8]>) {
    let start = bytes.len();
    bytes.extend_from_slice(&[0; 8]);
    let mut count = 0u64;
    for value in values {
        bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
        bytes.extend_from_slice(value);
        count += 1;
    }
    bytes[start..start + 8].copy_from_slice(&count.to_le_bytes());
}

/// Identifies a stored answer: a blake3 hash over everything that tells answers apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key([u8; 32]);

impl Key {
    pub(crate) fn new(parts: &KeyParts<'_>) -> Self {
        // exhaustive, so that a new part cannot be forgotten
        let KeyParts {
            space,
            uri,
            query,
            authority,
            tenant,
            principal,
            witnessed,
            depth,
            rewritten,
            claims,
            more,
        } = *parts;
        let mut parts = LengthPrefixed::default();
        parts.part(&space.0);
        parts.part(uri.scheme_str().unwrap_or("").as_bytes());
        parts.part(authority.as_bytes());
        parts.part(uri.path().as_bytes());
        parts.optional(query);
        parts.optional(tenant);
        parts.optional(principal);
        parts.part(&[u8::from(witnessed)]);
        parts.part(&depth.to_le_bytes());
        parts.optional(rewritten);
        parts.part(claims);
        parts.part(more);
        Self(parts.hash())
    }

    /// The key of the variant for a request whose values of the selecting fields are these (RFC 9111 §4.1).
    pub(crate) fn variant<'a>(
        self,
        fields: impl IntoIterator<Item = (&'a str, Option<Vec<u8>>)>,
    ) -> Self {
        let mut parts = LengthPrefixed::default();
        parts.part(&self.0);
        for (name, value) in fields {
            parts.part(name.as_bytes());
            parts.part(&[u8::from(value.is_some())]);
            parts.part(&value.unwrap_or_default());
        }
        Self(parts.hash())
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Gathered first: to hash in one go costs a quarter of hashing part by part.
struct LengthPrefixed(Vec<u8>);

impl Default for LengthPrefixed {
    fn default() -> Self {
        Self(Vec::with_capacity(256))
    }
}

impl LengthPrefixed {
    fn part(&mut self, part: &[u8]) {
        self.length(part.len());
        self.0.extend_from_slice(part);
    }

    /// Seven bits in a byte, the low ones first, and the highest bit set in all but the last: no length begins like another one,
    /// and a hash over a few short parts is over a third of the bytes less.
    fn length(&mut self, mut length: usize) {
        while length > 0x7f {
            self.0.push(length as u8 | 0x80);
            length >>= 7;
        }
        self.0.push(length as u8);
    }

    /// `None` differs from every text.
    fn optional(&mut self, part: Option<&str>) {
        self.0.push(u8::from(part.is_some()));
        self.part(part.unwrap_or("").as_bytes());
    }

    fn hash(&self) -> [u8; 32] {
        *blake3::hash(&self.0).as_bytes()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..8]
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn keys_whose_parts_concatenate_to_the_same_text_differ() {
        let uris = ["/ab?c", "/a?bc", "/abc", "/abc?", "http://h/abc", "/ab?c="];
        let (texts, names) = (["", "a", "ab", "bc"], [None, Some("a"), Some("ab")]);
        let mut seen = HashMap::new();
        for uri in uris {
            let uri: Uri = uri.parse().expect("a URI");
            for (namespace, generation) in pairs(&texts) {
                for (authority, more) in pairs(&texts) {
                    for (tenant, principal) in pairs(&names) {
                        for witnessed in [false, true] {
                            let (query, more) = (uri.query(), more.as_bytes());
                            let parts = KeyParts {
                                space: &KeySpace::new(namespace, generation, ""),
                                uri: &uri,
                                query,
                                authority,
                                tenant,
                                principal,
                                witnessed,
                                depth: 0,
                                rewritten: None,
                                claims: &[],
                                more,
                            };
                            let text = format!("{parts:?}");
                            if let Some(other) = seen.insert(Key::new(&parts), text.clone()) {
                                panic!("{text} and {other} have one key");
                            }
                        }
                    }
                }
            }
        }
        assert_eq!(seen.len(), 6 * 16 * 16 * 9 * 2);
    }

    fn pairs<T: Copy>(values: &[T]) -> Vec<(T, T)> {
        values
            .iter()
            .flat_map(|&a| values.iter().map(move |&b| (a, b)))
            .collect()
    }

    #[test]
    fn lists_of_values_are_told_apart() {
        let lists: [&[&[u8]]; 6] = [&[], &[b""], &[b"", b""], &[b"a"], &[b"a", b"b"], &[b"ab"]];
        let mut seen = HashMap::new();
        for first in lists {
            for second in lists {
                let mut bytes = Vec::new();
                put_all(&mut bytes, first.iter().copied());
                put_all(&mut bytes, second.iter().copied());
                assert_eq!(seen.insert(bytes, (first, second)), None);
            }
        }
    }

    #[test]
    fn no_length_begins_like_another_one() {
        let written = |length| {
            let mut parts = LengthPrefixed::default();
            parts.length(length);
            parts.0
        };
        let lengths = [0, 1, 127, 128, 129, 16_383, 16_384, 1 << 20, usize::MAX];
        for one in lengths {
            for other in lengths {
                assert_eq!(written(one).starts_with(&written(other)), one == other);
            }
        }
    }
}
