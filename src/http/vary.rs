//! Which requests a stored answer is for: `Vary` and the fields that it names (RFC 9110 §12.5.5, RFC 9111 §4.1).
//!
//! 1. `*` anywhere, or a member that is no field name: no other request may get the answer.
//! 2. Values are compared in a normal form, so that equal meanings share an answer. Every value has one normal
//!    form, and a normal form is its own.
//! 3. What quotes enclose is never changed. A value whose quotes do not pair is compared byte for byte.
//! 4. A field that is absent differs from one that is empty.

use http::HeaderMap;
use http::header::{
    ACCEPT, ACCEPT_CHARSET, ACCEPT_ENCODING, ACCEPT_LANGUAGE, HeaderName, HeaderValue, VARY,
};

/// The fields whose members are weighted by `q`: neither their case nor their order has a meaning (RFC 9110
/// §12.4.2, §12.5.1 to §12.5.4).
const PREFERENCES: [HeaderName; 4] = [ACCEPT, ACCEPT_CHARSET, ACCEPT_ENCODING, ACCEPT_LANGUAGE];

/// What an answer depends on besides the request's target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Vary {
    /// On nothing: it is for all requests.
    Nothing,
    /// On more than the request's fields: it is for this request only.
    Everything,
    /// On these fields; sorted, without duplicates.
    Fields(Vec<HeaderName>),
}

/// What the answer says that it depends on.
pub(crate) fn vary_of(response: &HeaderMap) -> Vary {
    vary(response.get_all(VARY).into_iter())
}

/// The same of the lines of `Vary`.
pub(crate) fn vary<'a>(lines: impl Iterator<Item = &'a HeaderValue>) -> Vary {
    let names: Result<Vec<_>, _> = lines
        .flat_map(|line| line.as_bytes().split(|&b| b == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|member| !member.is_empty())
        .map(field_name)
        .collect();
    match names {
        Ok(names) if names.is_empty() => Vary::Nothing,
        Ok(mut names) => {
            names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
            names.dedup();
            Vary::Fields(names)
        }
        Err(NoFieldName) => Vary::Everything,
    }
}

struct NoFieldName;

fn field_name(member: &[u8]) -> Result<HeaderName, NoFieldName> {
    if member == b"*" {
        return Err(NoFieldName); // a token, and therefore a name to the http crate
    }
    HeaderName::from_bytes(member).map_err(|_| NoFieldName)
}

/// The normal form of what a request says in a field; `None` if the field is absent.
pub(crate) fn normalised(request: &HeaderMap, field: &HeaderName) -> Option<Vec<u8>> {
    let lines: Vec<&[u8]> = request
        .get_all(field)
        .into_iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if lines.is_empty() {
        return None;
    }
    let joined = lines.join(&b","[..]); // RFC 9110 §5.3
    if !has_paired_quotes(&joined) {
        return Some(joined);
    }
    let members = split_outside_quotes(&joined)
        .map(<[u8]>::trim_ascii)
        .filter(|member| !member.is_empty());
    Some(if PREFERENCES.contains(field) {
        let mut members: Vec<Vec<u8>> = members.map(normal_preference).collect();
        members.sort_unstable();
        members.join(&b","[..])
    } else {
        members.collect::<Vec<_>>().join(&b","[..])
    })
}

/// Lower case, and no whitespace around `;` and `=`; quoted strings stay as they are.
fn normal_preference(member: &[u8]) -> Vec<u8> {
    let mut quotes = Quotes::default();
    let mut normal = Vec::with_capacity(member.len());
    for (at, &byte) in member.iter().enumerate() {
        if quotes.enclose(byte) {
            normal.push(byte);
        } else if !is_whitespace(byte) {
            normal.push(byte.to_ascii_lowercase());
        } else if !touches_separator(&normal, &member[at..]) {
            normal.push(byte);
        }
    }
    normal
}

fn touches_separator(before: &[u8], after: &[u8]) -> bool {
    let is_separator = |byte: Option<&u8>| matches!(byte, Some(b';' | b'='));
    is_separator(before.last()) || is_separator(after.iter().find(|&&b| !is_whitespace(b)))
}

fn is_whitespace(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// Where quoted strings begin and end (RFC 9110 §5.6.4).
#[derive(Default)]
struct Quotes {
    open: bool,
    escaped: bool,
}

impl Quotes {
    /// Whether the next byte belongs to a quoted string, its quotes included.
    fn enclose(&mut self, byte: u8) -> bool {
        let was_open = self.open;
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' if self.open => self.escaped = true,
            b'"' => self.open = !self.open,
            _ => {}
        }
        was_open || self.open
    }
}

fn has_paired_quotes(value: &[u8]) -> bool {
    let mut quotes = Quotes::default();
    for &byte in value {
        quotes.enclose(byte);
    }
    !quotes.open
}

fn split_outside_quotes(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut quotes = Quotes::default();
    value.split(move |&byte| !quotes.enclose(byte) && byte == b',')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(field: &HeaderName, values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(field, HeaderValue::from_str(value).expect("a value"));
        }
        headers
    }

    fn normal(field: &str, values: &[&str]) -> Option<String> {
        let field: HeaderName = field.parse().expect("a name");
        normalised(&lines(&field, values), &field).map(|v| String::from_utf8(v).expect("text"))
    }

    #[test]
    fn names_are_sorted_and_unique_whatever_their_form() {
        let vary = |values: &[&str]| vary_of(&lines(&VARY, values));
        assert_eq!(vary(&[]), Vary::Nothing);
        assert_eq!(vary(&["", " , "]), Vary::Nothing);
        assert_eq!(
            vary(&["X-B, accept ,,ACCEPT", "x-a"]),
            Vary::Fields(vec![
                ACCEPT,
                HeaderName::from_static("x-a"),
                HeaderName::from_static("x-b")
            ])
        );
    }

    #[test]
    fn an_asterisk_or_what_is_no_name_is_everything() {
        for values in [
            &["*"][..],
            &["accept, *"],
            &["accept", "*"],
            &["accept origin"],
            &["\"accept\""],
            &["accept; q=1"],
        ] {
            assert_eq!(
                vary_of(&lines(&VARY, values)),
                Vary::Everything,
                "{values:?}"
            );
        }
    }

    #[test]
    fn equal_preferences_have_one_normal_form() {
        for (values, expected) in [
            (&["gzip, br"][..], "br,gzip"),
            (&["br,GZIP"], "br,gzip"),
            (&["br", "gzip"], "br,gzip"),
            (&[" ,gzip ,\tbr, "], "br,gzip"),
            (&["gzip ; Q = 0.5 , br"], "br,gzip;q=0.5"),
            (&[" , "], ""),
        ] {
            let found = normal("accept-encoding", values);
            assert_eq!(found.as_deref(), Some(expected), "{values:?}");
        }
    }

    #[test]
    fn quoted_strings_are_left_alone() {
        assert_eq!(
            normal("accept", &[r#"Text/Html ; X = "B , \" ; A" , */*"#]).as_deref(),
            Some(r#"*/*,text/html;x="B , \" ; A""#)
        );
        assert_eq!(
            normal("accept", &[r#"b, a;x="Y"#]).as_deref(),
            Some(r#"b, a;x="Y"#),
            "a quote without end"
        );
    }

    #[test]
    fn other_fields_keep_case_and_order() {
        let found = normal("x-flags", &["B ; x = 1 ,, A", " c"]);
        assert_eq!(found.as_deref(), Some("B ; x = 1,A,c"));
    }

    #[test]
    fn an_absent_field_is_not_an_empty_one() {
        assert_eq!(normal("accept", &[]), None);
        assert_eq!(normal("accept", &[""]).as_deref(), Some(""));
    }

    fn field_value() -> impl Strategy<Value = HeaderValue> {
        let byte = prop_oneof![prop::sample::select(b",;=\"\\ \tAaQ".to_vec()), any::<u8>(),];
        prop::collection::vec(byte, 0..24)
            .prop_filter_map("a field value", |b| HeaderValue::from_bytes(&b).ok())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_normal_form_is_its_own(values in prop::collection::vec(field_value(), 1..4)) {
            for field in [ACCEPT, HeaderName::from_static("x-other")] {
                let mut request = HeaderMap::new();
                for value in &values {
                    request.append(&field, value.clone());
                }
                let once = normalised(&request, &field).expect("present");
                let value = HeaderValue::from_bytes(&once).expect("a field value");
                let again = HeaderMap::from_iter([(field.clone(), value)]);
                prop_assert_eq!(normalised(&again, &field), Some(once));
            }
        }

        #[test]
        fn arbitrary_vary_does_not_panic(value in field_value()) {
            let _ = vary_of(&HeaderMap::from_iter([(VARY, value)]));
        }
    }
}
