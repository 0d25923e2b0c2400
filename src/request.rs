//! What a request says about itself, before any policy is asked.

use std::borrow::Cow;

use http::header::{AUTHORIZATION, CONNECTION, COOKIE, HOST, PROXY_AUTHORIZATION};
use http::{HeaderMap, HeaderName, Request, Uri};
use http_body::Body;

use crate::notable::Notable;
use crate::policy::CookieRule;

/// Fields that carry credentials, besides `Cookie`. What is answered to them is not for everybody.
pub(crate) static CREDENTIALS: [HeaderName; 4] = [
    AUTHORIZATION,
    PROXY_AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("x-auth-token"),
];

/// Whether the request carries credentials: in one of the known fields or of `more`, or in a cookie that is not
/// known to be harmless.
pub(crate) fn has_credentials(
    headers: &HeaderMap,
    notable: Notable,
    more: &[HeaderName],
    cookie_rule: Option<&CookieRule>,
) -> bool {
    let is_credential = |rule: &CookieRule| {
        let mut cookies = cookies(headers);
        cookies.any(|(name, _)| rule.is_credential(name))
    };
    notable.has(Notable::CREDENTIALS)
        || more.iter().any(|name| headers.contains_key(name))
        || (notable.has(Notable::COOKIES) && cookie_rule.is_none_or(is_credential))
}

/// RFC 6265 §5.4, as lenient as handlers are: `name=value` pairs, divided by semicolons. A pair without `=` is a
/// name.
pub(crate) fn cookies(headers: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    headers
        .get_all(COOKIE)
        .into_iter()
        .flat_map(|line| line.as_bytes().split(|&b| b == b';'))
        .map(<[u8]>::trim_ascii)
        .filter(|pair| !pair.is_empty())
        .map(|pair| match pair.iter().position(|&b| b == b'=') {
            Some(at) => (pair[..at].trim_ascii(), pair[at + 1..].trim_ascii()),
            None => (pair, &b""[..]),
        })
}

/// A name that says something, and that text in Postgres can hold.
pub(crate) fn is_text_for_postgres(name: &str) -> bool {
    !name.is_empty() && !name.contains('\0')
}

/// RFC 9110 §7.8: the request may end in another protocol.
pub(crate) fn asks_to_upgrade(headers: &HeaderMap, notable: Notable) -> bool {
    let lists_upgrade = |line: &http::HeaderValue| {
        line.as_bytes()
            .split(|&b| b == b',')
            .any(|token| token.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
    };
    notable.has(Notable::UPGRADE) && headers.get_all(CONNECTION).iter().any(lists_upgrade)
}

/// Whether there is anything that a handler could read.
pub(crate) fn has_body<B: Body>(request: &Request<B>) -> bool {
    let body = request.body();
    !body.is_end_stream() && body.size_hint().exact() != Some(0)
}

/// The URI that the client sent: axum's nested routers leave only a part of it in the request.
pub(crate) fn original_uri<B>(request: &Request<B>) -> &Uri {
    #[cfg(feature = "axum")]
    if let Some(axum::extract::OriginalUri(uri)) = request.extensions().get() {
        return uri;
    }
    request.uri()
}

/// The path and query that the inner service sees, if they are not what a nested router leaves of the original
/// ones: a layer that rewrites URIs may have decided by any field of the request.
pub(crate) fn rewritten<B>(request: &Request<B>) -> Option<&str> {
    let (sent, seen) = (original_uri(request), request.uri());
    let is_rest = sent.path().ends_with(seen.path()) && sent.query() == seen.query();
    (!is_rest).then(|| seen.path_and_query().map_or("", |path| path.as_str()))
}

/// The pattern of the axum route that matched.
pub(crate) fn matched_pattern<B>(request: &Request<B>) -> Option<&str> {
    #[cfg(feature = "axum")]
    if let Some(pattern) = request.extensions().get::<axum::extract::MatchedPath>() {
        return Some(pattern.as_str());
    }
    let _ = request;
    None
}

/// Whom the request is addressed to, in lower case: the authority of the URI where it has one (RFC 9112
/// §3.2.2), else `Host`. Empty if neither is there, `None` if that is not clear: if the two differ (many handlers
/// ask `Host` first), if `Host` is given twice or is no text, or if there is a user name in it.
pub(crate) fn authority<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<Cow<'a, str>> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (None, _) => None,
        (Some(host), None) => Some(lower_case(host.to_str().ok()?)),
        (Some(_), Some(_)) => return None,
    };
    let of_uri = uri
        .authority()
        .map(|authority| lower_case(authority.as_str()));
    let authority = match (of_uri, host) {
        (Some(of_uri), Some(host)) if of_uri != host => return None,
        (of_uri, host) => of_uri.or(host).unwrap_or_default(),
    };
    (!authority.contains('@')).then_some(authority)
}

fn lower_case(text: &str) -> Cow<'_, str> {
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        text.to_ascii_lowercase().into()
    } else {
        text.into()
    }
}

/// The path as the client sent it, and the query as the rule leaves it.
pub(crate) fn path_and_query(uri: &Uri, query: Option<&str>) -> String {
    match query {
        Some(query) => format!("{}?{query}", uri.path()),
        None => uri.path().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::Pattern;

    fn request(uri: &str, fields: &[(&str, &[u8])]) -> Request<()> {
        let mut request = Request::get(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a request")
    }

    fn carries(request: &Request<()>, more: &[HeaderName], rule: Option<&CookieRule>) -> bool {
        let headers = request.headers();
        has_credentials(headers, Notable::of(headers), more, rule)
    }

    fn authority_of(uri: &str, fields: &[(&str, &[u8])]) -> Option<String> {
        let request = request(uri, fields);
        authority(request.uri(), request.headers()).map(Cow::into_owned)
    }

    #[test]
    fn the_authority_is_the_uris_or_the_one_host() {
        assert_eq!(
            authority_of("/", &[("host", b"A.example:80")]).as_deref(),
            Some("a.example:80")
        );
        assert_eq!(authority_of("http://B/", &[]).as_deref(), Some("b"));
        assert_eq!(
            authority_of("http://B/", &[("host", b"b")]).as_deref(),
            Some("b")
        );
        assert_eq!(authority_of("http://B/", &[("host", b"a")]), None);
        assert_eq!(authority_of("http://user:Pass@b/", &[]), None);
        assert_eq!(authority_of("/", &[("host", b"user@b")]), None);
        assert_eq!(authority_of("/", &[]).as_deref(), Some(""));
        assert_eq!(authority_of("/", &[("host", b"a"), ("host", b"b")]), None);
        assert_eq!(authority_of("/", &[("host", b"\xff")]), None);
    }

    #[test]
    fn credentials_and_upgrades_are_recognised() {
        for name in [
            "authorization",
            "cookie",
            "proxy-authorization",
            "x-api-key",
            "x-auth-token",
        ] {
            let request = request("/", &[(name, b"x")]);
            assert!(carries(&request, &[], None), "{name}");
        }
        let accepts = request("/", &[("accept", b"x")]);
        assert!(!carries(&accepts, &[], None));
        assert!(carries(&accepts, &[http::header::ACCEPT], None));
        let upgrade: &[(&str, &[u8])] = &[
            ("connection", b"keep-alive, Upgrade"),
            ("upgrade", b"websocket"),
        ];
        let asks = |fields| {
            let request = request("/", fields);
            asks_to_upgrade(request.headers(), Notable::of(request.headers()))
        };
        assert!(asks(upgrade));
        assert!(!asks(&upgrade[1..]));
    }

    #[test]
    fn cookies_are_credentials_unless_the_rule_says_otherwise() {
        let carries = |value: &[u8], rule: &CookieRule| {
            carries(&request("/", &[("cookie", value)]), &[], Some(rule))
        };
        let ignore = CookieRule::AllBut(vec![Pattern::new("theme"), Pattern::new("_ga*")]);
        assert!(!carries(b"theme=dark; _ga=1; _ga_X=2", &ignore));
        assert!(carries(b"theme=dark;sid=1", &ignore));
        assert!(carries(b"sid", &ignore), "a cookie without a value");
        assert!(carries(b"=sid", &ignore), "a cookie without a name");
        assert!(carries(b"\xff=1", &ignore), "a cookie that is no text");
        let session = CookieRule::Only(vec![Pattern::new("sid")]);
        assert!(carries(b"theme=dark; sid = 1", &session));
        assert!(carries(b"%73id=1", &session), "parsers decode names");
        assert!(!carries(b"theme=sid; sid2=1", &session));
    }
}
