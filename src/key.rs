//! [`Key`]: the identity of a stored answer.
//!
//! 1. A key is a hash over parts that are each preceded by their length, so no two different lists of parts
//!    hash the same bytes.
//! 2. HEAD and GET have one key; no other method has any.
//! 3. The URI is the one that the client sent, not what a nested router left of it.
//! 4. An answer to a request with credentials has another key than one to a request without, and each tenant
//!    has its own.

use std::fmt;

use http::Uri;

/// Changes with the parts below and with the encoding of stored heads: entries of another version are never
/// found.
const FORMAT: &str = "tower-pgcache 1";

/// The parts of a [`Key`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeyParts<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) generation: &'a str,
    pub(crate) uri: &'a Uri,
    /// Lower case, from [`authority`](crate::request::authority).
    pub(crate) authority: &'a str,
    pub(crate) tenant: Option<&'a str>,
    pub(crate) credentialed: bool,
}

/// Identifies a stored answer: a blake3 hash over everything that tells answers apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key([u8; 32]);

impl Key {
    pub(crate) fn new(parts: &KeyParts<'_>) -> Self {
        // exhaustive, so that a new part cannot be forgotten
        let KeyParts {
            namespace,
            generation,
            uri,
            authority,
            tenant,
            credentialed,
        } = *parts;
        let mut hash = LengthPrefixed(blake3::Hasher::new());
        hash.part(FORMAT.as_bytes());
        hash.part(namespace.as_bytes());
        hash.part(generation.as_bytes());
        hash.part(uri.scheme_str().unwrap_or("").as_bytes());
        hash.part(authority.as_bytes());
        hash.part(uri.path().as_bytes());
        hash.optional(uri.query());
        hash.optional(tenant);
        hash.part(&[u8::from(credentialed)]);
        Self(*hash.0.finalize().as_bytes())
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

struct LengthPrefixed(blake3::Hasher);

impl LengthPrefixed {
    fn part(&mut self, part: &[u8]) {
        self.0.update(&(part.len() as u64).to_le_bytes());
        self.0.update(part);
    }

    /// `None` differs from every text.
    fn optional(&mut self, part: Option<&str>) {
        self.0.update(&[u8::from(part.is_some())]);
        self.part(part.unwrap_or("").as_bytes());
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

    #[test]
    fn keys_whose_parts_concatenate_to_the_same_text_differ() {
        let uris = ["/ab?c", "/a?bc", "/abc", "/abc?", "http://h/abc", "/ab?c="];
        let texts = ["", "a", "ab", "b", "bc"];
        let mut seen = std::collections::HashMap::new();
        for uri in uris {
            let uri: Uri = uri.parse().expect("a URI");
            for namespace in texts {
                for generation in texts {
                    for authority in texts {
                        for tenant in [None, Some(""), Some("a"), Some("ab")] {
                            for credentialed in [false, true] {
                                let parts = KeyParts {
                                    namespace,
                                    generation,
                                    uri: &uri,
                                    authority,
                                    tenant,
                                    credentialed,
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
        }
        assert_eq!(seen.len(), 6 * 5 * 5 * 5 * 4 * 2);
    }
}
