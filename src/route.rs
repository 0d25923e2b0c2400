//! [`Route`]: a row of the central table of routes, and the table.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use http::Method;

use crate::policy::{Policy, policy_setters};

/// A row of the central table of routes: methods, a pattern as axum writes it, and settings.
///
/// ```
/// # use std::time::Duration;
/// # use tower_pgcache::{Domain, Route, domain};
/// # const PRODUCT: Domain = domain!("product");
/// let item = Route::get("/products/{id}").ttl(Duration::from_secs(300)).entity(PRODUCT, "id");
/// let create = Route::post("/products").invalidates(PRODUCT);
/// # let _ = (item, create);
/// ```
#[derive(Debug, Clone)]
pub struct Route {
    method: Method,
    pattern: String,
    policy: Policy,
}

impl Route {
    /// Requests with this method whose path matches `pattern`: `{name}` stands for a segment, `{*name}` for the
    /// rest of the path.
    #[must_use]
    pub fn new(method: Method, pattern: impl Into<String>) -> Self {
        Self {
            method,
            pattern: pattern.into(),
            policy: Policy::default(),
        }
    }

    /// GET and HEAD.
    #[must_use]
    pub fn get(pattern: impl Into<String>) -> Self {
        Self::new(Method::GET, pattern)
    }

    /// POST.
    #[must_use]
    pub fn post(pattern: impl Into<String>) -> Self {
        Self::new(Method::POST, pattern)
    }

    /// PUT.
    #[must_use]
    pub fn put(pattern: impl Into<String>) -> Self {
        Self::new(Method::PUT, pattern)
    }

    /// PATCH.
    #[must_use]
    pub fn patch(pattern: impl Into<String>) -> Self {
        Self::new(Method::PATCH, pattern)
    }

    /// DELETE.
    #[must_use]
    pub fn delete(pattern: impl Into<String>) -> Self {
        Self::new(Method::DELETE, pattern)
    }

    policy_setters!();

    fn policy_mut(&mut self) -> &mut Policy {
        &mut self.policy
    }
}

type Methods = HashMap<Method, Arc<Policy>>;

/// The table, ready for look-ups. Settings that a row does not have come from the engine.
#[derive(Debug, Default)]
pub(crate) struct RouteTable(matchit::Router<Methods>);

impl RouteTable {
    /// Rows without a ttl get `default_ttl`. What is wrong is pushed to `mistakes`.
    pub(crate) fn new(
        routes: Vec<Route>,
        base: &Policy,
        default_ttl: Duration,
        mistakes: &mut Vec<String>,
    ) -> Self {
        let mut patterns: Vec<(String, Methods)> = Vec::new();
        for Route {
            method,
            pattern,
            policy,
        } in routes
        {
            let place = format!("route {method} {pattern}");
            mistakes.extend(policy.mistakes(&place));
            let mut policy = policy.over(base);
            policy.ttl.get_or_insert(default_ttl);
            mistakes.extend(unknown_parameters(&pattern, &policy, &place));
            let method = if method == Method::HEAD {
                Method::GET
            } else {
                method
            };
            let at = patterns
                .iter()
                .position(|(p, _)| *p == pattern)
                .unwrap_or_else(|| {
                    patterns.push((pattern, Methods::new()));
                    patterns.len() - 1
                });
            if patterns[at].1.insert(method, Arc::new(policy)).is_some() {
                mistakes.push(format!(
                    "{place}: listed twice; put its settings into one row"
                ));
            }
        }
        let mut table = matchit::Router::new();
        for (pattern, methods) in patterns {
            if let Err(error) = table.insert(&pattern, methods) {
                mistakes.push(format!("route {pattern}: {error}; patterns are written as in axum: /a/{{id}}, /a/{{*rest}}"));
            }
        }
        Self(table)
    }

    pub(crate) fn find(&self, method: &Method, path: &str) -> Option<&Arc<Policy>> {
        let method = if method == Method::HEAD {
            &Method::GET
        } else {
            method
        };
        self.0.at(path).ok()?.value.get(method)
    }

    /// The value of a path parameter, by the table's own pattern.
    pub(crate) fn parameter(&self, path: &str, name: &str) -> Option<String> {
        decoded(self.0.at(path).ok()?.params.get(name)?)
    }
}

fn unknown_parameters(pattern: &str, policy: &Policy, place: &str) -> Vec<String> {
    let missing = |name: &String| {
        !pattern.contains(&format!("{{{name}}}")) && !pattern.contains(&format!("{{*{name}}}"))
    };
    policy
        .dependencies
        .iter()
        .filter_map(|dependency| match dependency {
            crate::policy::Dependency::PathParameter(domain, name) if missing(name) => Some(
                format!("{place}: entity({domain}, {name:?}), but the pattern has no {{{name}}}"),
            ),
            _ => None,
        })
        .collect()
}

/// Patterns of the routes that the application's own router matched, with their parsers.
#[derive(Debug, Default)]
pub(crate) struct MatchedPatterns(RwLock<HashMap<String, Option<Arc<matchit::Router<()>>>>>);

impl MatchedPatterns {
    /// The value of a path parameter, by the pattern that the application's router matched.
    pub(crate) fn parameter(&self, pattern: &str, path: &str, name: &str) -> Option<String> {
        decoded(self.parser(pattern)?.at(path).ok()?.params.get(name)?)
    }

    fn parser(&self, pattern: &str) -> Option<Arc<matchit::Router<()>>> {
        if let Some(known) = self
            .0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(pattern)
        {
            return known.clone();
        }
        // the patterns are those of the application: there are not more of them than it has routes
        let mut router = matchit::Router::new();
        let parser = router.insert(pattern, ()).ok().map(|()| Arc::new(router));
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(pattern.to_owned(), parser.clone());
        parser
    }
}

/// As the handler sees it (axum's `Path`): percent-decoded. `None` if that is no text.
fn decoded(parameter: &str) -> Option<String> {
    percent_encoding::percent_decode_str(parameter)
        .decode_utf8()
        .ok()
        .map(Into::into)
}
