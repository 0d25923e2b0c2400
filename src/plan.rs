//! What is to be done with a request, decided before anybody is asked: from its head, its route's settings and
//! the engine's.
//!
//! Who may have an answer (rule 1 of the crate):
//!
//! 1. A request with credentials, or with a principal, is looked up only if the route says who shares its answers, and if there is a
//!    witness: something that the authentication layer put into the request.
//! 2. Where a tenant is configured, the tenant is in the key, and a request without one passes through; only a
//!    route whose answers are the same for everybody does without.
//! 3. Where answers are per principal, the principal is in the key, and a request without one passes through.
//! 4. Whether there was a witness is in the key.
//! 5. What all this was decided by is the request as this layer sees it. So an answer is only for requests that
//!    come as far as the layer that stored it: how many layers of the engine are around it is in the key.

use std::borrow::Cow;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use http_body::Body;

use crate::answer::{Outcome, Whole};
use crate::domain::Scope;
use crate::head::RequestHead;
use crate::http::cache_control::RequestDirectives;
use crate::http::cache_status::Bypass;
use crate::http::claimed::{asks_for_another_method, claims};
use crate::http::invalidation::is_safe;
use crate::key::{Key, KeyParts, more_parts};
use crate::notable::Notable;
use crate::policy::{ClientCache, Dependency, Policy, Sharing, StatusRule};
use crate::request;
use crate::rules::Rules;
use crate::search::{DEFAULT_MAX_QUESTION, is_question};

#[derive(Debug)]
pub(crate) enum Plan {
    /// Pass it through.
    Bypass(Bypass),
    /// Look it up; on a miss, store what the inner service answers.
    Read(Read),
    /// The same, with the body as part of the question.
    Search(Read),
    /// Invalidate what it may have changed.
    Change(Box<Change>),
}

/// What it takes to find an answer.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) key: Key,
    pub(crate) head_only: bool,
    /// Preconditions and ranges mean something else then, and are left alone.
    pub(crate) is_search: bool,
    pub(crate) policy: Arc<Policy>,
    /// By how many times its handler's time an answer is refreshed before it expires; drawn for each request.
    pub(crate) early: f64,
    /// Whether the answer belongs to a tenant or a principal.
    pub(crate) is_personal: bool,
    /// How many layers of the engine are around this one.
    pub(crate) depth: u32,
    /// Whether the request has preconditions or ranges, or an outer layer may have put them aside.
    pub(crate) may_be_conditional: bool,
}

/// What an answer is stored as. A hit does without it.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    pub(crate) scopes: Vec<Scope>,
    pub(crate) authority: String,
    pub(crate) path: String,
    /// Of the key and the scopes; none on a route whose answers are the same for everybody.
    pub(crate) tenant: Option<String>,
}

impl Read {
    /// Whether a part of the answer may be stored, and serve.
    pub(crate) fn may_be_partial(&self) -> bool {
        self.policy.store_partial == Some(true) && !self.head_only && !self.is_search
    }

    /// What the request asks of caches, where the route obeys.
    pub(crate) fn asks(&self, headers: &HeaderMap) -> RequestDirectives {
        match self.policy.request_directives {
            Some(true) => RequestDirectives::of(headers),
            _ => RequestDirectives::default(),
        }
    }

    pub(crate) fn whole(&self, outcome: Outcome) -> Whole {
        Whole {
            outcome,
            head_only: self.head_only,
            cache_control: self.client_cache(),
        }
    }

    /// What other caches are told about an answer that belongs to somebody.
    pub(crate) fn client_cache(&self) -> Option<HeaderValue> {
        let setting = self.policy.client_cache.as_ref();
        let setting = self
            .is_personal
            .then(|| setting.unwrap_or(&ClientCache::Revalidate));
        setting.and_then(ClientCache::field)
    }
}

#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) scopes: Vec<Scope>,
    pub(crate) uri: Uri,
    pub(crate) authority: Option<String>,
    pub(crate) groups_as_domains: bool,
    pub(crate) invalidate_on: Option<StatusRule>,
    /// Later GETs for the same URI, if the answer may be stored for them.
    pub(crate) later_gets: Option<(Read, Subject)>,
}

/// A request whose route is found.
pub(crate) struct Routed<'a> {
    pub(crate) rules: &'a Rules,
    pub(crate) policy: &'a Arc<Policy>,
    pub(crate) row: Option<&'a str>,
    pub(crate) head: RequestHead<'a>,
}

/// What stands between the client and this layer.
#[derive(Clone, Copy)]
struct Outside<'a> {
    /// How many layers of the engine.
    depth: u32,
    /// What something else has made of the URI.
    rewritten: Option<&'a str>,
}

impl Routed<'_> {
    /// `depth`: how many layers of the engine are around this one.
    pub(crate) fn plan<B: Body + 'static>(&self, request: &Request<B>, depth: u32) -> Plan {
        let outside = Outside {
            depth,
            rewritten: request::rewritten(request),
        };
        match *self.head.method {
            Method::GET | Method::HEAD => {
                let read = if request::has_body(request) {
                    Err(Bypass::Body)
                } else {
                    self.plan_read(outside)
                };
                read.map_or_else(Plan::Bypass, Plan::Read)
            }
            Method::POST if self.policy.safe_post.is_some() => self.plan_search(request, outside),
            ref method if method.as_str() == "QUERY" => self.plan_search(request, outside),
            Method::CONNECT => Plan::Bypass(Bypass::Method),
            ref method if is_safe(method) => Plan::Bypass(Bypass::Method),
            _ => Plan::Change(Box::new(self.plan_change(outside))),
        }
    }

    fn plan_search<B: Body + 'static>(&self, request: &Request<B>, outside: Outside<'_>) -> Plan {
        let max = self.policy.safe_post.unwrap_or(DEFAULT_MAX_QUESTION);
        if !is_question(request, max, self.policy.rebuild.as_ref()) {
            return Plan::Bypass(Bypass::Body);
        }
        self.plan_read(outside)
            .map_or_else(Plan::Bypass, Plan::Search)
    }

    fn plan_read(&self, outside: Outside<'_>) -> Result<Read, Bypass> {
        let notable = Notable::of(self.head.headers);
        self.may_be_cached(notable)?;
        let Self { policy, head, .. } = self;
        let authority = request::authority(head.uri, head.headers).ok_or(Bypass::Authority)?;
        let Sharer {
            tenant,
            principal,
            witnessed,
        } = self.sharer(notable)?;
        let query = policy.query().apply(head.uri.query());
        let key = Key::new(&KeyParts {
            space: &policy.key_space,
            uri: head.uri,
            query: query.as_deref(),
            authority: &authority,
            tenant: tenant.as_deref(),
            principal: principal.as_deref(),
            witnessed,
            depth: outside.depth,
            rewritten: outside.rewritten,
            claims: &claims(head.uri, head.headers, notable),
            more: &more_parts(&policy.key_parts, head),
        });
        Ok(Read {
            key,
            head_only: *head.method == Method::HEAD,
            is_search: match *head.method {
                Method::GET | Method::HEAD => false,
                Method::POST => policy.safe_post.is_some(),
                _ => true,
            },
            policy: Arc::clone(policy),
            early: policy.early_refresh.map_or(0.0, earliness),
            is_personal: tenant.is_some() || principal.is_some(),
            depth: outside.depth,
            may_be_conditional: notable.has(Notable::CONDITIONALS) || outside.depth > 0,
        })
    }

    /// Of a request that may be looked up.
    pub(crate) fn subject(&self) -> Result<Subject, Bypass> {
        let Self { policy, head, .. } = self;
        let authority = request::authority(head.uri, head.headers).ok_or(Bypass::Authority)?;
        let tenant = self.sharer(Notable::of(head.headers))?.tenant;
        let query = policy.query().apply(head.uri.query());
        let path = request::path_and_query(head.uri, query.as_deref());
        Ok(Subject {
            scopes: self.dependencies(&authority, &path, tenant.as_deref())?,
            path,
            authority: authority.into_owned(),
            tenant,
        })
    }

    fn may_be_cached(&self, notable: Notable) -> Result<(), Bypass> {
        let Self {
            rules,
            policy,
            head,
            ..
        } = self;
        let refusals = [
            (rules.is_wrong(), Bypass::Misconfigured),
            (
                request::asks_to_upgrade(head.headers, notable),
                Bypass::Upgrade,
            ),
            (
                asks_for_another_method(head.method, head.headers, notable),
                Bypass::Method,
            ),
            (policy.bypass == Some(true), Bypass::Route),
            (
                policy.bypass_if.as_ref().is_some_and(|rule| rule.0(head)),
                Bypass::Condition,
            ),
        ];
        refusals
            .into_iter()
            .find_map(|(applies, reason)| applies.then_some(reason))
            .map_or(Ok(()), Err)
    }

    /// Who shares the answer to this request, or why nobody does.
    fn sharer(&self, notable: Notable) -> Result<Sharer, Bypass> {
        let Self {
            rules,
            policy,
            head,
            ..
        } = self;
        let config = &rules.config;
        let tenant = config.tenant.as_ref().map(|source| source.of(head));
        let principal = config
            .principal
            .as_ref()
            .map(|source| source.of(head))
            .unwrap_or_default();

        // what the authentication layer inserted is a witness even if the name in it is of no use
        let by_tenant = config
            .tenant
            .as_ref()
            .is_some_and(crate::tenant::Tenant::is_witness)
            && tenant.as_ref().is_some_and(|tenant| tenant.is_present);
        let by_other = policy
            .witness
            .as_ref()
            .is_some_and(|witness| witness.0(head.extensions));
        let witnessed = by_tenant || principal.is_present || by_other;

        let by_rfc = policy.rfc9111_credentials == Some(true);
        let credentials = !by_rfc
            && request::has_credentials(
                head.headers,
                notable,
                &policy.credential_headers,
                policy.cookies.as_ref(),
            );
        // somebody may have been authenticated by other means, such as a client certificate
        if credentials || principal.is_present || by_other {
            match policy.sharing {
                None => return Err(Bypass::Credentials),
                Some(_) if !witnessed => return Err(Bypass::NoWitness),
                Some(_) => {}
            }
        }
        if policy.sharing == Some(Sharing::ByEveryone) {
            return Ok(Sharer {
                tenant: None,
                principal: None,
                witnessed,
            });
        }
        let tenant = tenant
            .map(|tenant| tenant.name.ok_or(Bypass::NoTenant))
            .transpose()?;
        let principal = match policy.sharing {
            Some(Sharing::PerPrincipal) => Some(principal.name.ok_or(Bypass::NoPrincipal)?),
            _ => None,
        };
        Ok(Sharer {
            tenant,
            principal,
            witnessed,
        })
    }

    fn dependencies(
        &self,
        authority: &str,
        path: &str,
        tenant: Option<&str>,
    ) -> Result<Vec<Scope>, Bypass> {
        let mut scopes = vec![Scope::uri(Some(authority), path)];
        scopes.extend(tenant.map(Scope::of_tenant));
        for dependency in &self.policy.dependencies {
            let scope = match dependency {
                Dependency::Scope(scope) => scope.clone(),
                Dependency::PathParameter(domain, name) => {
                    domain.entity(self.head.param(name).ok_or(Bypass::NoEntity)?)
                }
            };
            scopes.push(if self.policy.all_tenants == Some(true) {
                scope.all_tenants()
            } else {
                scope
            });
        }
        Ok(scopes
            .into_iter()
            .map(|scope| scope.for_tenant(tenant))
            .collect())
    }

    /// With an authority that is unclear, the change concerns every authority.
    fn plan_change(&self, outside: Outside<'_>) -> Change {
        let Self { policy, head, .. } = self;
        let authority = request::authority(head.uri, head.headers);
        let path =
            request::path_and_query(head.uri, policy.query().apply(head.uri.query()).as_deref());
        let own = Scope::uri(authority.as_deref(), &path);
        let scopes = policy.invalidates.iter().cloned().chain([own]).collect();
        let is_stored = policy.store_post == Some(true) && *head.method == Method::POST;
        let later_gets = is_stored
            .then(|| self.plan_read(outside).ok().zip(self.subject().ok()))
            .flatten();
        Change {
            scopes,
            uri: head.uri.clone(),
            authority: authority.map(Cow::into_owned),
            groups_as_domains: policy.groups_as_domains == Some(true),
            invalidate_on: policy.invalidate_on.clone(),
            later_gets,
        }
    }

    /// The row of the table, or axum's pattern.
    pub(crate) fn name<B>(&self, request: &Request<B>) -> Option<String> {
        self.row
            .or_else(|| request::matched_pattern(request))
            .map(str::to_owned)
    }

    /// The tenant that what this request changes belongs to; `None`, also if it is unknown, is every tenant.
    pub(crate) fn tenant_of_change(&self) -> Option<String> {
        self.rules
            .config
            .tenant
            .as_ref()
            .and_then(|source| source.of(&self.head).name)
    }
}

/// `XFetch`: how many times its cost before the end an entry is refreshed by this request. An exponential variate.
fn earliness(beta: f64) -> f64 {
    let random = RandomState::new().hash_one(0) >> 11;
    // from 0, exclusive, to 1
    let uniform = (random + 1) as f64 / (1u64 << 53) as f64;
    -beta * uniform.ln()
}

/// Whom the answer to a request belongs to.
struct Sharer {
    tenant: Option<String>,
    principal: Option<String>,
    witnessed: bool,
}
