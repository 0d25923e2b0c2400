//! The query's part in the key.
//!
//! 1. By default, members are sorted by name; members with one name keep their order, which usually matters.
//! 2. Members may be left out, by name, or only some kept. A query that loses all its members is none.
//! 3. Some parsers divide members at `;` too. A query that has one is left as it was sent: otherwise
//!    `?utm_x=1;page=2` would hide a page from the key that such a handler sees.
//! 4. `%61` may be `a` to the handler, so a name counts as kept if it is listed as sent or decoded, and as left
//!    out only if it is listed as sent. That costs a hit at most.

use std::borrow::Cow;

/// How the query enters the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum QueryRule {
    Sorted,
    Ignoring(Vec<Pattern>),
    Only(Vec<Pattern>),
    Untouched,
}

/// A name, or the beginning of names: `utm_*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pattern {
    Exactly(String),
    BeginningWith(String),
}

impl Pattern {
    pub(crate) fn new(text: &str) -> Self {
        match text.strip_suffix('*') {
            Some(beginning) => Self::BeginningWith(beginning.to_owned()),
            None => Self::Exactly(text.to_owned()),
        }
    }

    pub(crate) fn matches(&self, name: &[u8]) -> bool {
        match self {
            Self::Exactly(text) => name == text.as_bytes(),
            Self::BeginningWith(beginning) => name.starts_with(beginning.as_bytes()),
        }
    }

    /// Whether the name matches as it was sent, or as the handler may read it.
    pub(crate) fn matches_decoded(&self, name: &[u8]) -> bool {
        self.matches(name) || self.matches(&decoded(name))
    }
}

/// As the parsers of forms and cookies read a name.
pub(crate) fn decoded(name: &[u8]) -> Cow<'_, [u8]> {
    if !name.iter().any(|byte| matches!(byte, b'%' | b'+')) {
        return Cow::Borrowed(name);
    }
    let spaced: Vec<u8> = name
        .iter()
        .map(|&byte| if byte == b'+' { b' ' } else { byte })
        .collect();
    Cow::Owned(percent_encoding::percent_decode(&spaced).collect())
}

impl QueryRule {
    pub(crate) fn apply<'q>(&self, query: Option<&'q str>) -> Option<Cow<'q, str>> {
        let query = query?;
        let kept = |name: &str| match self {
            Self::Sorted | Self::Untouched => true,
            Self::Ignoring(patterns) => !patterns.iter().any(|p| p.matches(name.as_bytes())),
            Self::Only(patterns) => patterns.iter().any(|p| p.matches_decoded(name.as_bytes())),
        };
        if *self == Self::Untouched
            || query.contains(';')
            || (!query.contains('&') && kept(name(query)))
        {
            return Some(Cow::Borrowed(query));
        }
        let all: Vec<&str> = query.split('&').collect();
        let mut members: Vec<&str> = all
            .iter()
            .copied()
            .filter(|member| kept(name(member)))
            .collect();
        let nothing_left_out = members.len() == all.len();
        if nothing_left_out && members.is_sorted_by_key(|member| name_as_read(member)) {
            return Some(Cow::Borrowed(query));
        }
        members.sort_by(|one, other| name_as_read(one).cmp(&name_as_read(other))); // stable
        (!members.is_empty()).then(|| Cow::Owned(members.join("&")))
    }
}

fn name(member: &str) -> &str {
    member.split('=').next().unwrap_or_default()
}

/// `a` and `%61` are one name to the handler, whose members keep their order.
fn name_as_read(member: &str) -> Cow<'_, [u8]> {
    decoded(name(member).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(rule: &QueryRule, query: &str) -> Option<String> {
        rule.apply(Some(query)).map(Cow::into_owned)
    }

    #[test]
    fn sorting_keeps_the_order_within_a_name() {
        let sorted = |q: &str| applied(&QueryRule::Sorted, q).unwrap_or_default();
        assert_eq!(sorted("b=1&a=2&b=0"), "a=2&b=1&b=0");
        assert_eq!(sorted("b&a"), "a&b");
        assert_eq!(sorted(""), "");
        assert_eq!(sorted("a=2&a=1"), "a=2&a=1");
        assert_ne!(sorted("ab=1"), sorted("a=b1"));
        for query in ["b=1&a=2&b=0", "&&a", "=&a=&=b"] {
            assert_eq!(sorted(&sorted(query)), sorted(query), "idempotent: {query}");
        }
        assert_eq!(QueryRule::Sorted.apply(None), None);
    }

    #[test]
    fn what_may_be_read_otherwise_is_left_as_it_was_sent() {
        let ignoring = QueryRule::Ignoring(vec![Pattern::new("utm_*")]);
        let only = QueryRule::Only(vec![Pattern::new("page")]);
        for query in ["utm_x=1;page=2", "x=1;page=2", "b=1;a=2&a=1"] {
            for rule in [&QueryRule::Sorted, &ignoring, &only] {
                assert_eq!(applied(rule, query).as_deref(), Some(query), "{rule:?}");
            }
        }
        let sorted = |q: &str| applied(&QueryRule::Sorted, q);
        assert_ne!(sorted("page=1&%70age=2"), sorted("%70age=2&page=1"));
    }

    #[test]
    fn members_are_left_out_by_name() {
        let ignoring = QueryRule::Ignoring(vec![Pattern::new("utm_*"), Pattern::new("fbclid")]);
        assert_eq!(
            applied(&ignoring, "b=1&utm_source=x&a=2&fbclid=y").as_deref(),
            Some("a=2&b=1")
        );
        assert_eq!(applied(&ignoring, "utm_source=x"), None);
        assert_eq!(
            applied(&ignoring, "xutm_a=1&fbclid2=1").as_deref(),
            Some("fbclid2=1&xutm_a=1")
        );
        let only = QueryRule::Only(vec![Pattern::new("page")]);
        assert_eq!(applied(&only, "b=1&page=2").as_deref(), Some("page=2"));
        assert_eq!(applied(&only, "b=1"), None);
        assert_eq!(
            applied(&only, "%70age=2&b=1").as_deref(),
            Some("%70age=2"),
            "the handler may read it as page=2"
        );
        assert_eq!(
            applied(&ignoring, "fb%63lid=1").as_deref(),
            Some("fb%63lid=1")
        );
        assert_eq!(
            applied(&QueryRule::Untouched, "b&a").as_deref(),
            Some("b&a")
        );
    }
}
