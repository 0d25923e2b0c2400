//! What HTTP says about caching: pure functions without I/O or clocks. Decisions are enums with a reason.

pub(crate) mod cache_control;
pub(crate) mod cache_status;
pub(crate) mod claimed;
pub(crate) mod conditional;
pub(crate) mod fields;
pub(crate) mod invalidation;
mod layout;
pub(crate) mod partial;
pub(crate) mod range;
pub(crate) mod reuse;
pub(crate) mod storable;
pub(crate) mod stored_head;
pub(crate) mod structured;
pub(crate) mod vary;

/// Fields for tests.
#[cfg(test)]
#[allow(clippy::expect_used)]
pub(crate) fn fields_of<V: AsRef<[u8]>>(fields: &[(&str, V)]) -> http::HeaderMap {
    let mut headers = http::HeaderMap::new();
    for (name, value) in fields {
        let name: http::HeaderName = name.parse().expect("a name");
        let value = http::HeaderValue::from_bytes(value.as_ref()).expect("a value");
        headers.append(name, value);
    }
    headers
}
