//! What is to be done with a request, decided before anybody is asked: from its head, its route's settings and
//! the engine's.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Uri};
use http_body::Body;

use crate::cache::Config;
use crate::domain::Scope;
use crate::http::cache_status::Bypass;
use crate::http::invalidation::is_safe;
use crate::key::{Key, KeyParts};
use crate::policy::{Dependency, Policy};
use crate::request;
use crate::route::{MatchedPatterns, RouteTable};

/// The settings that meet in one layer.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) config: Arc<Config>,
    pub(crate) policy: Arc<Policy>,
    pub(crate) table: Option<Arc<RouteTable>>,
    pub(crate) patterns: MatchedPatterns,
}

#[derive(Debug)]
pub(crate) enum Plan {
    /// Pass it through.
    Bypass(Bypass),
    /// Look it up; on a miss, store what the inner service answers.
    Read(Box<Read>),
    /// Invalidate what it may have changed.
    Change(Box<Change>),
}

#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) key: Key,
    pub(crate) head_only: bool,
    pub(crate) ttl: Option<Duration>,
    pub(crate) max_body: usize,
    pub(crate) scopes: Vec<Scope>,
    pub(crate) authority: String,
    pub(crate) path: String,
    pub(crate) tenant: Option<String>,
}

#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) scopes: Vec<Scope>,
    pub(crate) uri: Uri,
    pub(crate) authority: Option<String>,
    pub(crate) tenant: Option<String>,
}

impl Rules {
    pub(crate) fn plan<B: Body>(&self, request: &Request<B>) -> Plan {
        let uri = request::original_uri(request);
        let policy = self.policy_for(request.method(), uri.path());
        match *request.method() {
            Method::GET | Method::HEAD => self
                .plan_read(request, uri, policy)
                .map_or_else(Plan::Bypass, |read| Plan::Read(Box::new(read))),
            Method::CONNECT => Plan::Bypass(Bypass::Method),
            ref method if is_safe(method) => Plan::Bypass(Bypass::Method),
            _ => Plan::Change(Box::new(self.plan_change(request, uri, policy))),
        }
    }

    fn policy_for(&self, method: &Method, path: &str) -> &Policy {
        let listed = self
            .table
            .as_ref()
            .and_then(|table| table.find(method, path));
        listed.unwrap_or(&self.policy)
    }

    fn plan_read<B: Body>(
        &self,
        request: &Request<B>,
        uri: &Uri,
        policy: &Policy,
    ) -> Result<Read, Bypass> {
        if request::asks_to_upgrade(request.headers()) {
            return Err(Bypass::Upgrade);
        }
        if request::has_body(request) {
            return Err(Bypass::Body);
        }
        if policy.bypass == Some(true) || policy.ttl.is_some_and(|ttl| ttl.is_zero()) {
            return Err(Bypass::Route);
        }
        let authority = request::authority(uri, request.headers()).ok_or(Bypass::Authority)?;
        let tenant = match &self.config.tenant {
            Some(source) => Some(source.of(request.extensions()).ok_or(Bypass::NoTenant)?),
            None => None,
        };
        let credentialed = request::has_credentials(request.headers());
        if credentialed && !(policy.shared_by_tenant == Some(true) && tenant.is_some()) {
            return Err(Bypass::Credentials);
        }
        let path = request::path_and_query(uri);
        let mut scopes = vec![Scope::uri(Some(&authority), path)];
        scopes.extend(tenant.as_deref().map(Scope::of_tenant));
        for dependency in &policy.dependencies {
            scopes.push(
                self.resolve(dependency, request, uri)
                    .ok_or(Bypass::NoEntity)?,
            );
        }
        let scopes = scopes
            .into_iter()
            .map(|s| s.for_tenant(tenant.as_deref()))
            .collect();
        let key = Key::new(&KeyParts {
            namespace: &self.config.namespace,
            generation: &self.config.generation,
            uri,
            authority: &authority,
            tenant: tenant.as_deref(),
            credentialed,
        });
        Ok(Read {
            key,
            head_only: request.method() == Method::HEAD,
            ttl: policy.ttl,
            max_body: policy.max_body(),
            scopes,
            path: path.to_owned(),
            authority,
            tenant,
        })
    }

    fn resolve<B>(
        &self,
        dependency: &Dependency,
        request: &Request<B>,
        uri: &Uri,
    ) -> Option<Scope> {
        match dependency {
            Dependency::Scope(scope) => Some(scope.clone()),
            Dependency::PathParameter(domain, name) => {
                let by_table = self
                    .table
                    .as_ref()
                    .and_then(|table| table.parameter(uri.path(), name));
                let by_pattern = || {
                    self.patterns
                        .parameter(request::matched_pattern(request)?, uri.path(), name)
                };
                Some(domain.entity(by_table.or_else(by_pattern)?))
            }
        }
    }

    /// With a tenant that is unknown, the change concerns every tenant; with an authority that is unclear,
    /// every authority.
    fn plan_change<B>(&self, request: &Request<B>, uri: &Uri, policy: &Policy) -> Change {
        let tenant = self
            .config
            .tenant
            .as_ref()
            .and_then(|source| source.of(request.extensions()));
        let authority = request::authority(uri, request.headers());
        let own = Scope::uri(authority.as_deref(), request::path_and_query(uri));
        let scopes = policy
            .invalidates
            .iter()
            .cloned()
            .chain([own])
            .map(|s| s.for_tenant(tenant.as_deref()))
            .collect();
        Change {
            scopes,
            uri: uri.clone(),
            authority,
            tenant,
        }
    }
}
