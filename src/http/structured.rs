//! Structured fields (RFC 9651): `Cache-Control` for chosen caches (RFC 9213), and groups of answers (RFC 9875).
//!
//! 1. A field that does not parse is ignored as a whole; of a targeted field also one that is empty (RFC 9213
//!    §2.1, §2.2).
//! 2. Several lines are one field. The lines are joined before parsing (RFC 9651 §4.2).
//! 3. Parameters are ignored. The last of several directives of one name counts (RFC 9651 §3.2), unlike in
//!    `Cache-Control`.
//! 4. A directive of a type that is not its own is ignored (RFC 9213 §2.1). A negative number has the right type,
//!    and is as bad there as in `Cache-Control`: the answer is stale.
//! 5. All groups are read, however many: one that was left out would not be invalidated. What names one that is too long to be
//!    written down ([`is_too_long`]) is not stored; RFC 9875 §2 asks for 32 characters.

use std::collections::HashSet;

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use sfv::{BareItem, Dictionary, Item, List, ListEntry, Parser};

use super::cache_control::CacheControl;

const MAX_GROUP_LENGTH: usize = 1024;

const SECONDS: [&str; 4] = [
    "max-age",
    "s-maxage",
    "stale-if-error",
    "stale-while-revalidate",
];

/// Directives that may list field names (RFC 9111 §5.2.2.4, §5.2.2.7).
const WITH_FIELD_NAMES: [&str; 2] = ["no-cache", "private"];

/// The directives of the first of these fields that is present and valid; with `None` it is `Cache-Control`
/// that counts (RFC 9213 §2.2).
pub(crate) fn targeted(response: &HeaderMap, names: &[HeaderName]) -> Option<CacheControl> {
    names
        .iter()
        .filter_map(|name| Parser::new(&joined(response, name)?).parse().ok())
        .find(|directives: &Dictionary| !directives.is_empty())
        .map(|directives| cache_control(&directives))
}

fn cache_control(directives: &Dictionary) -> CacheControl {
    let mut cache_control = CacheControl::default();
    for (name, value) in directives {
        match argument(name.as_str(), value) {
            Argument::None => cache_control.add(name.as_str().as_bytes(), None),
            Argument::Seconds(seconds) => {
                cache_control.add(name.as_str().as_bytes(), Some(seconds.as_bytes()));
            }
            Argument::Wrong => {}
        }
    }
    cache_control
}

enum Argument {
    None,
    Seconds(String),
    Wrong,
}

/// What the value of a directive is in `Cache-Control`.
fn argument(name: &str, value: &ListEntry) -> Argument {
    let item = match value {
        ListEntry::Item(Item { bare_item, .. }) => Some(bare_item),
        ListEntry::InnerList(_) => None,
    };
    match item {
        Some(BareItem::Integer(n)) if SECONDS.contains(&name) => Argument::Seconds(n.to_string()),
        Some(BareItem::Boolean(true)) if !SECONDS.contains(&name) => Argument::None,
        Some(BareItem::String(_) | BareItem::Token(_)) | None
            if WITH_FIELD_NAMES.contains(&name) =>
        {
            Argument::None
        }
        _ => Argument::Wrong,
    }
}

/// The groups that a field names (RFC 9875 §2 and §3), without duplicates and in their order.
pub(crate) fn groups(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let list = joined(headers, name).and_then(|field| Parser::new(&field).parse::<List>().ok());
    let Some(members) = list.and_then(strings) else {
        return Vec::new();
    };
    let mut seen = HashSet::new();
    let is_new = |group: &String| seen.insert(group.clone());
    members.into_iter().filter(is_new).collect()
}

/// Whether nothing that is stored can belong to this group.
pub(crate) fn is_too_long(group: &str) -> bool {
    group.len() > MAX_GROUP_LENGTH
}

/// The members of a list that has strings only.
fn strings(list: List) -> Option<Vec<String>> {
    list.into_iter()
        .map(|member| match member {
            ListEntry::Item(Item {
                bare_item: BareItem::String(text),
                ..
            }) => Some(text.into()),
            _ => None,
        })
        .collect()
}

fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<Vec<u8>> {
    let lines: Vec<&[u8]> = headers
        .get_all(name)
        .into_iter()
        .map(HeaderValue::as_bytes)
        .collect();
    (!lines.is_empty()).then(|| lines.join(&b", "[..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OURS: HeaderName = HeaderName::from_static("pgcache-control");
    const CDN: HeaderName = HeaderName::from_static("cdn-cache-control");
    const GROUPS: HeaderName = HeaderName::from_static("cache-groups");

    fn map(fields: &[(HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name, value.parse().expect("a value"));
        }
        headers
    }

    fn directives(value: &str) -> Option<CacheControl> {
        targeted(&map(&[(OURS, value)]), &[OURS])
    }

    fn groups_of(values: &[&str]) -> Vec<String> {
        let fields: Vec<_> = values.iter().map(|v| (GROUPS, *v)).collect();
        groups(&map(&fields), &GROUPS)
    }

    #[test]
    fn the_first_valid_field_counts() {
        let seconds = |headers: &[(HeaderName, &str)]| {
            targeted(&map(headers), &[OURS, CDN]).map(|c| c.max_age)
        };
        assert_eq!(
            seconds(&[(CDN, "max-age=1"), (OURS, "max-age=2")]),
            Some(Some(2))
        );
        for invalid in ["", "max-age=60,", "Max-Age=2", "max-age=\"", "max-age 2"] {
            let found = seconds(&[(CDN, "max-age=1"), (OURS, invalid)]);
            assert_eq!(found, Some(Some(1)), "{invalid}");
        }
        assert_eq!(seconds(&[(OURS, "x=;")]), None);
        assert_eq!(seconds(&[]), None);
        assert_eq!(
            seconds(&[(OURS, "unknown")]),
            Some(None),
            "valid, and says nothing"
        );
    }

    #[test]
    fn directives_are_read_with_their_types() {
        let read = directives("no-store, private, max-age=5;x=1, s-maxage=7").expect("valid");
        assert!(read.no_store && read.private && !read.no_cache);
        assert_eq!((read.max_age, read.s_maxage), (Some(5), Some(7)));
        assert!(directives("private=\"set-cookie\"").expect("valid").private);
        assert!(
            directives("no-cache=(\"set-cookie\")")
                .expect("valid")
                .no_cache
        );
        assert_eq!(
            directives("max-age=5, max-age=9").expect("valid").max_age,
            Some(9)
        );
        assert_eq!(directives("max-age=-1").expect("valid").max_age, Some(0));
    }

    #[test]
    fn directives_of_another_type_are_ignored() {
        for wrong in [
            "max-age=\"5\"",
            "max-age=5.0",
            "max-age",
            "max-age=(5)",
            "no-store=?0",
            "no-store=1",
            "private=?0",
            "no-cache=1",
        ] {
            assert_eq!(directives(wrong), Some(CacheControl::default()), "{wrong}");
        }
    }

    #[test]
    fn lines_are_one_field() {
        let headers = map(&[(OURS, "max-age=1"), (OURS, "no-store")]);
        let read = targeted(&headers, &[OURS]).expect("valid");
        assert!(read.no_store && read.max_age == Some(1));
        assert_eq!(groups_of(&[r#""a""#, r#""b", "a""#]), ["a", "b"]);
    }

    #[test]
    fn groups_are_strings_or_none_at_all() {
        assert_eq!(groups_of(&[r#""a b";x=1, "C", """#]), ["a b", "C", ""]);
        for invalid in [
            "a",
            r#""a", b"#,
            r#""a", 1"#,
            r#"("a")"#,
            r#""a","#,
            r#""é""#,
            "",
        ] {
            assert!(groups_of(&[invalid]).is_empty(), "{invalid}");
        }
    }

    #[test]
    fn groups_have_limits() {
        let list = |lengths: std::ops::Range<usize>| {
            let members: Vec<_> = lengths.map(|n| format!("\"{}\"", "x".repeat(n))).collect();
            members.join(", ")
        };
        assert_eq!(groups_of(&[&list(1..2000)]).len(), 1999);
        assert!(
            !groups_of(&[&list(1..1025)])
                .iter()
                .any(|group| is_too_long(group))
        );
        assert!(
            groups_of(&[&list(1024..1026)])
                .iter()
                .any(|group| is_too_long(group))
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn arbitrary_fields_do_not_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..32), likely in "[a-c0-9=;,()\"?:@%. -]{0,24}",
        ) {
            for value in [bytes, likely.into_bytes()] {
                let Ok(value) = HeaderValue::from_bytes(&value) else { continue };
                let headers = HeaderMap::from_iter([(OURS, value)]);
                let _ = (targeted(&headers, &[OURS]), groups(&headers, &OURS));
            }
        }

        #[test]
        fn groups_survive_the_round_trip(names in prop::collection::hash_set("[ -!#-\\[\\]-~]{0,20}", 1..20)) {
            let field: Vec<_> = names.iter().map(|n| format!("\"{n}\"")).collect();
            let found = groups_of(&[&field.join(",")]);
            prop_assert_eq!(found, names.into_iter().collect::<Vec<_>>());
        }
    }
}
