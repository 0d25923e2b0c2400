//! [`RequestHead`]: what the application's own rules see of a request.

use std::fmt;

use http::{Extensions, HeaderMap, Method, Uri};

use crate::request::cookies;

/// A request without its body, as closures in the configuration see it.
#[derive(Clone, Copy)]
pub struct RequestHead<'a> {
    pub(crate) method: &'a Method,
    pub(crate) uri: &'a Uri,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) extensions: &'a Extensions,
    pub(crate) parameters: &'a dyn Fn(&str) -> Option<String>,
}

impl<'a> RequestHead<'a> {
    /// The method.
    #[must_use]
    pub fn method(&self) -> &'a Method {
        self.method
    }

    /// The URI that the client sent, whatever nested routers made of it.
    #[must_use]
    pub fn uri(&self) -> &'a Uri {
        self.uri
    }

    /// The fields.
    #[must_use]
    pub fn headers(&self) -> &'a HeaderMap {
        self.headers
    }

    /// What outer layers have put into the request.
    #[must_use]
    pub fn extensions(&self) -> &'a Extensions {
        self.extensions
    }

    /// A parameter of the path, percent-decoded: by the table of routes, or by the axum route that matched.
    #[must_use]
    pub fn param(&self, name: &str) -> Option<String> {
        (self.parameters)(name)
    }

    /// The value of a cookie: the first one with this name.
    #[must_use]
    pub fn cookie(&self, name: &str) -> Option<&'a str> {
        cookies(self.headers)
            .find(|(n, _)| *n == name.as_bytes())
            .and_then(|(_, v)| std::str::from_utf8(v).ok())
    }
}

impl fmt::Debug for RequestHead<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestHead")
            .field("method", &self.method)
            .field("uri", &self.uri)
            .finish_non_exhaustive()
    }
}
