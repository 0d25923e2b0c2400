//! [`Route`]: a row of the central table of routes, and the table.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use http::Method;

use crate::policy::{Dependency, Policy, RouteTtl, policy_setters};

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

/// A row, ready to be found.
#[derive(Debug)]
pub(crate) struct Row {
    /// Without what is inherited.
    own: Policy,
    pub(crate) policy: Arc<Policy>,
    /// `GET /products/{id}`.
    pub(crate) place: String,
    matched: AtomicBool,
}

impl Row {
    fn new(own: Policy, mut policy: Policy, default_ttl: Duration, place: String) -> Self {
        policy.ttl.get_or_insert(RouteTtl::For(default_ttl));
        Self {
            own,
            policy: Arc::new(policy),
            place,
            matched: AtomicBool::new(false),
        }
    }
}

type Methods = HashMap<Method, Row>;

/// The table, ready for look-ups. Settings that a row does not have come from the engine.
#[derive(Debug)]
pub(crate) struct RouteTable {
    router: matchit::Router<usize>,
    patterns: Vec<(String, Methods)>,
    default_ttl: Duration,
}

impl RouteTable {
    /// Rows without a ttl get `default_ttl`. What is wrong is pushed to `mistakes`.
    pub(crate) fn new(
        routes: Vec<Route>,
        complete: impl Fn(Policy, &str) -> (Policy, Vec<String>),
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
            let place = format!("{method} {pattern}");
            let own = policy.clone();
            let (policy, wrong) = complete(policy, &format!("route {place}"));
            mistakes.extend(wrong);
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
            let row = Row::new(own, policy, default_ttl, place);
            if let Some(twice) = patterns[at].1.insert(method, row) {
                mistakes.push(format!(
                    "route {}: listed twice; put its settings into one row",
                    twice.place
                ));
            }
        }
        let mut router = matchit::Router::new();
        for (i, (pattern, _)) in patterns.iter().enumerate() {
            let inserted = router.insert(pattern, i).map_err(|error| error.to_string());
            let begun = || pattern.starts_with('/').then_some(());
            let checked = inserted.and_then(|()| begun().ok_or("it does not begin with /".into()));
            if let Err(error) = checked {
                let mend = "patterns are written as in axum: /a/{id}, /a/{*rest}";
                mistakes.push(format!("route {pattern}: {error}; {mend}"));
            }
        }
        Self {
            router,
            patterns,
            default_ttl,
        }
    }

    /// The table of a layer: what a row does not set comes from the layer's own settings.
    pub(crate) fn under(&self, layer: &Policy) -> Self {
        let row = |row: &Row| {
            let policy = row.own.clone().over(layer);
            Row::new(row.own.clone(), policy, self.default_ttl, row.place.clone())
        };
        let patterns = self.patterns.iter().map(|(pattern, methods)| {
            let methods = methods
                .iter()
                .map(|(method, r)| (method.clone(), row(r)))
                .collect();
            (pattern.clone(), methods)
        });
        Self {
            router: self.router.clone(),
            patterns: patterns.collect(),
            default_ttl: self.default_ttl,
        }
    }

    pub(crate) fn find(&self, method: &Method, path: &str) -> Option<&Row> {
        let method = if method == Method::HEAD {
            &Method::GET
        } else {
            method
        };
        let row = self.patterns[*self.router.at(path).ok()?.value]
            .1
            .get(method)?;
        row.matched.store(true, Ordering::Relaxed);
        Some(row)
    }

    /// The value of a path parameter, by the table's own pattern.
    pub(crate) fn parameter(&self, path: &str, name: &str) -> Option<String> {
        decoded(self.router.at(path).ok()?.params.get(name)?)
    }

    /// Rows that no request has matched so far.
    pub(crate) fn unmatched(&self) -> impl Iterator<Item = &str> {
        let rows = self
            .patterns
            .iter()
            .flat_map(|(_, methods)| methods.values());
        rows.filter(|row| !row.matched.load(Ordering::Relaxed))
            .map(|row| row.place.as_str())
    }
}

fn unknown_parameters(pattern: &str, policy: &Policy, place: &str) -> Vec<String> {
    let has = |name: &str| {
        pattern.contains(&format!("{{{name}}}")) || pattern.contains(&format!("{{*{name}}}"))
    };
    policy
        .dependencies
        .iter()
        .filter_map(|dependency| match dependency {
            Dependency::PathParameter(domain, name) if !has(name) => Some(format!(
                "route {place}: entity({domain}, {name:?}), but the pattern has no {{{name}}}; \
                 name a parameter of the pattern, or use domain({domain})"
            )),
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
