//! [`Policy`]: what can be set for the whole engine, for a layer, or for a row of a route table. The setters
//! are written once and appear on each of the three.

use std::time::Duration;

use crate::domain::{Domain, Scope};

/// Settings of a route. What is not set is inherited.
#[derive(Debug, Clone, Default)]
pub(crate) struct Policy {
    pub(crate) ttl: Option<Duration>,
    pub(crate) dependencies: Vec<Dependency>,
    pub(crate) invalidates: Vec<Scope>,
    pub(crate) shared_by_tenant: Option<bool>,
    pub(crate) bypass: Option<bool>,
    pub(crate) max_body: Option<usize>,
}

/// What the answers of a route depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Dependency {
    Scope(Scope),
    /// The entity of the domain that a parameter of the path names.
    PathParameter(Domain, String),
}

/// Larger bodies are not stored, unless a route says otherwise.
pub(crate) const DEFAULT_MAX_BODY: usize = 1 << 20;

impl Policy {
    /// These settings, and those of `base` where there is none here.
    pub(crate) fn over(&self, base: &Self) -> Self {
        // exhaustive, so that a new setting cannot be forgotten
        let Self {
            ttl,
            dependencies,
            invalidates,
            shared_by_tenant,
            bypass,
            max_body,
        } = self.clone();
        Self {
            ttl: ttl.or(base.ttl),
            dependencies: if dependencies.is_empty() {
                base.dependencies.clone()
            } else {
                dependencies
            },
            invalidates: if invalidates.is_empty() {
                base.invalidates.clone()
            } else {
                invalidates
            },
            shared_by_tenant: shared_by_tenant.or(base.shared_by_tenant),
            bypass: bypass.or(base.bypass),
            max_body: max_body.or(base.max_body),
        }
    }

    pub(crate) fn max_body(&self) -> usize {
        self.max_body.unwrap_or(DEFAULT_MAX_BODY)
    }

    /// What is wrong with the settings, each as `place: mistake; mend`.
    pub(crate) fn mistakes(&self, place: &str) -> Vec<String> {
        let mut mistakes = Vec::new();
        if self.ttl.is_some_and(|ttl| ttl.is_zero()) {
            mistakes.push(format!(
                "{place}: a ttl of zero; use bypass() for a route that must not be cached"
            ));
        }
        mistakes
    }
}

/// The setters of a [`Policy`], for a type with a method `policy_mut`.
macro_rules! policy_setters {
    () => {
        /// How long answers are fresh that do not say so themselves: those with status 200, 203, 204, 300, 301
        /// or 308. `s-maxage` in the answer goes before it; `no-store`, `private` and `no-cache` forbid storing.
        ///
        /// Defaults to nothing: only answers with explicit freshness (`s-maxage`, `max-age`, `Expires`) are
        /// stored.
        #[must_use]
        pub fn ttl(mut self, ttl: std::time::Duration) -> Self {
            self.policy_mut().ttl = Some(ttl);
            self
        }

        /// Answers depend on this domain (or scope) of the request's tenant: when it changes, they are gone.
        /// May be called several times.
        #[must_use]
        pub fn domain(mut self, scope: impl Into<$crate::Scope>) -> Self {
            let dependency = $crate::policy::Dependency::Scope(scope.into());
            self.policy_mut().dependencies.push(dependency);
            self
        }

        /// Answers depend on the entity of `domain` that the path parameter `parameter` names, of the request's
        /// tenant. A request whose path has no such parameter is not cached.
        #[must_use]
        pub fn entity(mut self, domain: $crate::Domain, parameter: impl Into<String>) -> Self {
            let dependency = $crate::policy::Dependency::PathParameter(domain, parameter.into());
            self.policy_mut().dependencies.push(dependency);
            self
        }

        /// Unsafe requests (POST, PUT, …) invalidate this domain (or scope) of the request's tenant, unless the
        /// answer is a 4xx. The invalidation is committed before the client has the answer. May be called
        /// several times.
        ///
        /// Between the handler's own commit and that moment another client may still get the older answer; a
        /// watched table or [`PgCache::invalidate_in`](crate::PgCache::invalidate_in) leaves no such gap.
        #[must_use]
        pub fn invalidates(mut self, scope: impl Into<$crate::Scope>) -> Self {
            self.policy_mut().invalidates.push(scope.into());
            self
        }

        /// Answers to requests with credentials are shared by all requests of the same tenant.
        ///
        /// Defaults to not: whoever sends `Authorization`, `Cookie`, `Proxy-Authorization`, `X-Api-Key` or
        /// `X-Auth-Token` is answered by the inner service. Needs a tenant
        /// ([`PgCacheBuilder::tenant`](crate::PgCacheBuilder::tenant)); without one it has no effect.
        #[must_use]
        pub fn shared_by_tenant(mut self) -> Self {
            self.policy_mut().shared_by_tenant = Some(true);
            self
        }

        /// Nothing is looked up or stored. Unsafe requests still invalidate.
        #[must_use]
        pub fn bypass(mut self) -> Self {
            self.policy_mut().bypass = Some(true);
            self
        }

        /// The largest body that is stored, in bytes. Larger ones are passed through as they come.
        ///
        /// Defaults to 1 MiB.
        #[must_use]
        pub fn max_body(mut self, bytes: usize) -> Self {
            self.policy_mut().max_body = Some(bytes);
            self
        }
    };
}
pub(crate) use policy_setters;
