//! What a request claims about its own target besides the URI and `Host`: fields with which a proxy tells the inner
//! service what it was asked for. Where no proxy overwrites them, any client can send them, and many frameworks
//! build links and redirects from them.
//!
//! 1. They are part of the key. Behind a proxy, which says the same of every request for a resource, that costs no
//!    hit; and an answer that somebody has shaped with them is for those alone who send the same.
//! 2. Of `Forwarded` (RFC 7239) only what is about the target counts: addresses of clients and proxies would give
//!    each client answers of its own.
//! 3. An authority is the same in capitals, but a handler that compares it byte for byte answers as if it were
//!    another one. So its spelling is part of the key, beside the authority itself.
//! 4. What asks the inner service to take the request for one with another method is no question that a cache
//!    can answer.

use crate::notable::Notable;
use http::header::{FORWARDED, HOST, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Uri};

pub(crate) static OVERRIDES: [HeaderName; 3] = [
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-http-method"),
    HeaderName::from_static("x-method-override"),
];

/// The claims, as bytes that are the same for the same claims only; empty if there are none.
pub(crate) fn claims(uri: &Uri, request: &HeaderMap, notable: Notable) -> Vec<u8> {
    let mut found: Vec<(&str, Vec<u8>)> = Vec::new(); // allocates with the first
    if let Some(authority) = uri
        .authority()
        .filter(|a| has_capitals(a.as_str().as_bytes()))
    {
        found.push((":authority", authority.as_str().as_bytes().to_vec()));
    }
    let may_claim = notable.has(Notable::CLAIMS).then_some(request);
    for (name, value) in may_claim.into_iter().flatten() {
        if is_claim(name) || (*name == HOST && has_capitals(value.as_bytes())) {
            found.push((name.as_str(), value.as_bytes().to_vec()));
        } else if *name == FORWARDED {
            found.extend(target_in_forwarded(value).map(|value| (name.as_str(), value)));
        }
    }
    // stable: what one name says several times keeps its order, that of the names has no meaning
    found.sort_by_key(|(name, _)| *name);
    let mut bytes = Vec::new();
    for (name, value) in found {
        for part in [name.as_bytes(), &value] {
            bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
            bytes.extend_from_slice(part);
        }
    }
    bytes
}

pub(crate) fn has_capitals(authority: &[u8]) -> bool {
    authority.iter().any(u8::is_ascii_uppercase)
}

pub(crate) const CLAIMS: [&str; 18] = [
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-protocol",
    "x-forwarded-scheme",
    "x-forwarded-ssl",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-path",
    "x-forwarded-uri",
    "x-host",
    "x-original-host",
    "x-http-host-override",
    "x-scheme",
    "x-url-scheme",
    "x-original-url",
    "x-original-uri",
    "x-rewrite-url",
    "front-end-https",
];

pub(crate) fn is_claim(name: &HeaderName) -> bool {
    CLAIMS.contains(&name.as_str())
}

/// Without the parameters `for` and `by`; `None` if there is nothing else. Divided as a parser would that knows
/// nothing of quotes: each that does know them sees the same in what is left, or less.
fn target_in_forwarded(value: &HeaderValue) -> Option<Vec<u8>> {
    let mut kept = Vec::new();
    let mut is_about_target = false;
    for piece in value
        .as_bytes()
        .split_inclusive(|b| matches!(b, b',' | b';'))
    {
        let (parameter, separator) = match piece.split_last() {
            Some((last @ (b',' | b';'), rest)) => (rest, Some(*last)),
            _ => (piece, None),
        };
        let parameter = parameter.trim_ascii();
        if !is_address(parameter) {
            is_about_target |= !parameter.is_empty();
            kept.extend_from_slice(parameter);
        }
        kept.extend(separator); // which proxy says it matters
    }
    is_about_target.then_some(kept)
}

/// `for=…` or `by=…`, and nothing that a lenient parser might find a host in.
fn is_address(parameter: &[u8]) -> bool {
    let Some(equals) = parameter.iter().position(|&b| b == b'=') else {
        return false;
    };
    let (name, node) = (&parameter[..equals], &parameter[equals + 1..]);
    (name.eq_ignore_ascii_case(b"for") || name.eq_ignore_ascii_case(b"by")) && !node.contains(&b'=')
}

/// Whether the inner service may take the request for one with another method.
pub(crate) fn asks_for_another_method(
    method: &Method,
    request: &HeaderMap,
    notable: Notable,
) -> bool {
    let method = method.as_str().as_bytes();
    let overrides = notable.has(Notable::OVERRIDES).then_some(&OVERRIDES);
    overrides
        .into_iter()
        .flatten()
        .flat_map(|name| request.get_all(name))
        .any(|value| !value.as_bytes().eq_ignore_ascii_case(method))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::fields_of;

    fn claims_of(uri: &Uri, request: &HeaderMap) -> Vec<u8> {
        claims(uri, request, Notable::of(request))
    }

    fn claimed(claimed: &[(&str, &str)]) -> Vec<u8> {
        claims_of(&Uri::from_static("/"), &fields_of(claimed))
    }

    fn forwarded(value: &str) -> Option<String> {
        let value = HeaderValue::from_str(value).expect("a value");
        target_in_forwarded(&value).map(|kept| String::from_utf8(kept).expect("text"))
    }

    #[test]
    fn what_proxies_add_about_clients_is_no_claim() {
        let about_the_client = claimed(&[
            ("host", "a"),
            ("x-forwarded-for", "192.0.2.1"),
            ("x-real-ip", "192.0.2.1"),
            ("x-request-id", "1"),
            (
                "forwarded",
                "for=192.0.2.1, For=\"[2001:db8::1]:47\";by=_p ; BY=unknown",
            ),
        ]);
        assert!(about_the_client.is_empty());
    }

    #[test]
    fn claims_differ_in_name_value_number_and_order_of_values() {
        let different = [
            &[][..],
            &[("x-forwarded-host", "a")],
            &[("x-forwarded-host", "b")],
            &[("x-forwarded-host", "")],
            &[("x-host", "a")],
            &[("x-forwarded-host", "a"), ("x-forwarded-host", "b")],
            &[("x-forwarded-host", "b"), ("x-forwarded-host", "a")],
            &[("forwarded", "host=a")],
            &[("forwarded", "for=x, host=a")],
            &[("forwarded", "host=a, for=x")],
            &[("host", "A")],
            &[("host", "A.a")],
        ];
        for (n, one) in different.iter().enumerate() {
            for other in &different[n + 1..] {
                assert_ne!(claimed(one), claimed(other), "{one:?} {other:?}");
            }
        }
        let (host, proto) = (("x-forwarded-host", "a"), ("x-forwarded-proto", "https"));
        assert_eq!(claimed(&[proto, host]), claimed(&[host, proto]));
    }

    #[test]
    fn the_spelling_of_an_authority_counts_where_it_is_unusual() {
        let of = |uri: &'static str| claims_of(&Uri::from_static(uri), &HeaderMap::new());
        assert!(of("http://a.example/X").is_empty());
        assert_ne!(of("http://A.example/"), of("http://a.Example/"));
        assert_ne!(of("http://A.example/"), claimed(&[("host", "A.example")]));
    }

    #[test]
    fn of_forwarded_the_target_stays_however_it_is_hidden() {
        assert_eq!(
            forwarded("for=192.0.2.1;proto=http;by=203.0.113.43;host=a.example").as_deref(),
            Some(";proto=http;;host=a.example")
        );
        assert_eq!(forwarded("for=1, for=\"2\""), None);
        for hidden in [
            "for=\"x;host=evil\"",
            "for=\"x,host=evil\"",
            "for=x host=evil",
            "for==host=evil",
            "host=evil",
            "HOST = evil",
            "evil",
        ] {
            let kept = forwarded(hidden);
            assert!(kept.is_some_and(|kept| kept.contains("evil")), "{hidden}");
        }
    }

    #[test]
    fn another_method_is_one_that_differs() {
        let asks_with = |method: &Method, request: &HeaderMap| {
            asks_for_another_method(method, request, Notable::of(request))
        };
        let asks =
            |method: &Method, value| asks_with(method, &fields_of(&[("x-http-method", value)]));
        assert!(asks(&Method::GET, "DELETE"));
        assert!(asks(&Method::HEAD, "GET"));
        assert!(asks(&Method::GET, ""));
        assert!(!asks(&Method::GET, "get"));
        assert!(!asks_with(&Method::GET, &HeaderMap::new()));
    }
}
