//! What a request says about itself, before any policy is asked.

use http::header::{AUTHORIZATION, CONNECTION, COOKIE, HOST, PROXY_AUTHORIZATION, UPGRADE};
use http::{HeaderMap, HeaderName, Request, Uri};
use http_body::Body;

/// Fields that carry credentials. What is answered to them is not for everybody.
const CREDENTIALS: [HeaderName; 5] = [
    AUTHORIZATION,
    COOKIE,
    PROXY_AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("x-auth-token"),
];

pub(crate) fn has_credentials(headers: &HeaderMap) -> bool {
    CREDENTIALS.iter().any(|name| headers.contains_key(name))
}

/// RFC 9110 §7.8: the request may end in another protocol.
pub(crate) fn asks_to_upgrade(headers: &HeaderMap) -> bool {
    let lists_upgrade = |line: &http::HeaderValue| {
        line.as_bytes()
            .split(|&b| b == b',')
            .any(|token| token.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
    };
    headers.contains_key(UPGRADE) && headers.get_all(CONNECTION).iter().any(lists_upgrade)
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
/// §3.2.2), else `Host`. Empty if neither is there, `None` if `Host` says nothing clear.
pub(crate) fn authority(uri: &Uri, headers: &HeaderMap) -> Option<String> {
    if let Some(authority) = uri.authority() {
        return Some(authority.as_str().to_ascii_lowercase());
    }
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => Some(String::new()),
        (Some(host), None) => host.to_str().ok().map(str::to_ascii_lowercase),
        (Some(_), Some(_)) => None,
    }
}

/// Path and query, as the client sent them.
pub(crate) fn path_and_query(uri: &Uri) -> &str {
    uri.path_and_query()
        .map_or("/", http::uri::PathAndQuery::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uri: &str, fields: &[(&str, &[u8])]) -> Request<()> {
        let mut request = Request::get(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a request")
    }

    fn authority_of(uri: &str, fields: &[(&str, &[u8])]) -> Option<String> {
        let request = request(uri, fields);
        authority(request.uri(), request.headers())
    }

    #[test]
    fn the_authority_is_the_uris_or_the_one_host() {
        assert_eq!(
            authority_of("/", &[("host", b"A.example:80")]).as_deref(),
            Some("a.example:80")
        );
        assert_eq!(
            authority_of("http://B/", &[("host", b"a")]).as_deref(),
            Some("b")
        );
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
            assert!(
                has_credentials(request("/", &[(name, b"x")]).headers()),
                "{name}"
            );
        }
        assert!(!has_credentials(
            request("/", &[("accept", b"x")]).headers()
        ));
        let upgrade: &[(&str, &[u8])] = &[
            ("connection", b"keep-alive, Upgrade"),
            ("upgrade", b"websocket"),
        ];
        assert!(asks_to_upgrade(request("/", upgrade).headers()));
        assert!(!asks_to_upgrade(request("/", &upgrade[1..]).headers()));
    }
}
