//! What an unsafe request invalidates (RFC 9111 §4.4): the target URI, and the URIs in `Location` and
//! `Content-Location` of the answer, if they have the same origin.

use http::header::{CONTENT_LOCATION, LOCATION};
use http::{HeaderMap, Method, StatusCode, Uri};

/// RFC 9110 §9.2.1. A method that is not known to be safe is unsafe.
pub(crate) fn is_safe(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE
    )
}

/// Whether an answer says that nothing was changed. Everything but 4xx counts as a change: a 5xx may come
/// after the commit.
pub(crate) fn says_unchanged(status: StatusCode) -> bool {
    status.is_client_error()
}

/// The paths (with query) on `authority` that `Location` and `Content-Location` name, relative to `target`.
pub(crate) fn linked_paths(headers: &HeaderMap, target: &Uri, authority: &str) -> Vec<String> {
    [LOCATION, CONTENT_LOCATION]
        .into_iter()
        .filter_map(|name| headers.get(name)?.to_str().ok())
        .filter_map(|reference| resolve(reference, target, authority))
        .collect()
}

/// Whether the answer to a POST is what a GET of the target would get (RFC 9110 §9.3.3).
pub(crate) fn represents_target(headers: &HeaderMap, target: &Uri, authority: &str) -> bool {
    let reference = headers
        .get(CONTENT_LOCATION)
        .and_then(|value| value.to_str().ok());
    let path = target
        .path_and_query()
        .map_or("/", http::uri::PathAndQuery::as_str);
    reference
        .and_then(|reference| resolve(reference, target, authority))
        .is_some_and(|location| location == path)
}

/// RFC 3986 §5.2 for the references that can name a resource of the same origin.
fn resolve(reference: &str, target: &Uri, authority: &str) -> Option<String> {
    let reference = reference.split('#').next().unwrap_or_default();
    if reference.is_empty() {
        return None; // the target itself, which is invalidated anyway
    }
    let path = if let Some(rest) = reference.strip_prefix("//") {
        on_same_authority(rest, authority)?
    } else if let Some((_, rest)) = reference
        .split_once("://")
        .filter(|(scheme, _)| is_scheme(scheme))
    {
        on_same_authority(rest, authority)?
    } else if reference.starts_with('/') {
        reference.to_owned()
    } else if let Some(query) = reference.strip_prefix('?') {
        format!("{}?{query}", target.path())
    } else {
        let directory = target
            .path()
            .rsplit_once('/')
            .map_or("", |(directory, _)| directory);
        format!("{directory}/{reference}")
    };
    Some(without_dot_segments(&path))
}

fn is_scheme(text: &str) -> bool {
    text.eq_ignore_ascii_case("http") || text.eq_ignore_ascii_case("https")
}

fn on_same_authority(rest: &str, authority: &str) -> Option<String> {
    let at = rest.find(['/', '?']).unwrap_or(rest.len());
    let (host, path) = rest.split_at(at);
    host.eq_ignore_ascii_case(authority).then(|| {
        if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("/{path}")
        }
    })
}

/// RFC 3986 §5.2.4.
fn without_dot_segments(reference: &str) -> String {
    let (path, query) = reference
        .split_once('?')
        .map_or((reference, None), |(p, q)| (p, Some(q)));
    let mut segments: Vec<&str> = Vec::new();
    let mut parts = path.split('/').skip(1).peekable();
    while let Some(part) = parts.next() {
        let last = parts.peek().is_none();
        match part {
            "." | ".." => {
                if part == ".." {
                    segments.pop();
                }
                if last {
                    segments.push("");
                }
            }
            _ => segments.push(part),
        }
    }
    let query = query.map(|q| format!("?{q}")).unwrap_or_default();
    format!("/{}{query}", segments.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_of_the_same_origin_are_resolved() {
        let target = Uri::from_static("/a/b?x=1");
        for (reference, expected) in [
            ("/c", Some("/c")),
            ("/c?d#e", Some("/c?d")),
            ("http://host/c", Some("/c")),
            ("HTTPS://HOST/c", Some("/c")),
            ("http://host", Some("/")),
            ("http://host?q", Some("/?q")),
            ("//host/c", Some("/c")),
            ("c", Some("/a/c")),
            ("./c/../d", Some("/a/d")),
            ("../../c", Some("/c")),
            ("..", Some("/")),
            ("?y", Some("/a/b?y")),
            ("http://other/c", None),
            ("http://host.other/c", None),
            ("//other", None),
            ("#f", None),
            ("", None),
        ] {
            assert_eq!(
                resolve(reference, &target, "host").as_deref(),
                expected,
                "{reference}"
            );
        }
    }

    #[test]
    fn unknown_methods_are_unsafe() {
        assert!(is_safe(&Method::GET) && is_safe(&Method::OPTIONS));
        assert!(
            !is_safe(&Method::POST) && !is_safe(&Method::from_bytes(b"MKCOL").expect("a method"))
        );
    }
}
