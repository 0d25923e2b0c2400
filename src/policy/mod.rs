//! [`Policy`]: what can be set for the whole engine, for a layer, or for a row of a route table. The setters
//! are written once and appear on each of the three.
//!
//! A setter never fails. What is wrong is remembered and comes out as a [`ConfigError`](crate::ConfigError),
//! with all other mistakes; a layer with mistakes that nobody asked for passes everything through.

mod setters;

use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use http::{Extensions, HeaderName, HeaderValue, StatusCode};

use crate::domain::{Domain, Scope};
use crate::engine::Replica;
use crate::head::RequestHead;
use crate::http::reuse::StaleRules;
use crate::http::storable::{Lifetimes, StoreRules};
use crate::key::KeySpace;
use crate::query::{Pattern, QueryRule};
use crate::search::Rebuild;
use crate::tenant::{Principal, Tenant};

pub(crate) use setters::policy_setters;

/// Larger bodies are not stored, unless a route says otherwise.
pub(crate) const DEFAULT_MAX_BODY: usize = 1 << 20;

/// For how long answers may be served at most that nobody can confirm.
const LONGEST_UNCONFIRMED: Duration = Duration::from_secs(24 * 3600);

/// How many scopes an entry may depend on.
pub(crate) const MAX_DEPENDENCIES: usize = 64;

/// Settings of a route. What is not set is inherited.
///
/// A policy is where a configuration starts from; every setting is also one of the engine's builder, of a layer
/// and of a row of a table of routes. There are two presets:
///
/// | | [`application`](Self::application), the default | [`shared_cache`](Self::shared_cache) | setting |
/// |---|---|---|---|
/// | requests with credentials | only with a witness and a rule who shares | `Authorization` by RFC 9111 §3.5; cookies by `Vary` | [`rfc9111_credentials`](Self::rfc9111_credentials) |
/// | freshness | explicit, or the route's `ttl` | explicit, or a heuristic | [`heuristic_freshness`](Self::heuristic_freshness) |
/// | `no-cache` in the answer | not stored | stored, revalidated each time | [`store_no_cache`](Self::store_no_cache) |
/// | `Set-Cookie` | not stored | stored if explicitly fresh | [`store_set_cookie`](Self::store_set_cookie) |
/// | 401, 412, 416, 429 and the like | not stored | stored if explicitly fresh | [`store_any_status`](Self::store_any_status) |
/// | partial answers (206) | not stored | stored, served, and completed | [`store_partial`](Self::store_partial) |
/// | answers to POST | not stored | stored for GET if explicitly fresh with a matching `Content-Location` | [`store_post`](Self::store_post) |
/// | query | sorted by name | untouched | [`untouched_query`](Self::untouched_query) |
/// | `Cache-Control` in the request | ignored, since it lets anybody defeat the cache | obeyed | [`request_directives`](Self::request_directives) |
/// | preconditions and `Range` on a miss | answered by the cache where the route has a `ttl` | passed on | [`forward_conditionals`](Self::forward_conditionals) |
/// | stale when the inner service fails | where asked for | a day, unless forbidden | [`stale_if_error`](Self::stale_if_error) |
/// | an unsafe request invalidates | unless the answer is a 4xx: a 5xx may come after the commit | if the answer is a 2xx or 3xx | [`invalidate_on`](Self::invalidate_on) |
/// | `ETag` where there is none | weak, from the body | none | [`etag`](Self::etag) |
#[derive(Debug, Clone, Default)]
pub struct Policy {
    pub(crate) ttl: Option<RouteTtl>,
    pub(crate) negative_ttl: Option<Duration>,
    pub(crate) dependencies: Vec<Dependency>,
    pub(crate) all_tenants: Option<bool>,
    pub(crate) invalidates: Vec<Scope>,
    pub(crate) invalidate_on: Option<StatusRule>,
    pub(crate) sharing: Option<Sharing>,
    pub(crate) witness: Option<Witness>,
    pub(crate) credential_headers: Vec<HeaderName>,
    pub(crate) cookies: Option<CookieRule>,
    pub(crate) bypass: Option<bool>,
    pub(crate) bypass_if: Option<HeadRule>,
    pub(crate) store_if: Option<StoreRule>,
    pub(crate) key_parts: Vec<KeyPart>,
    pub(crate) query: Option<QueryRule>,
    pub(crate) max_body: Option<usize>,
    pub(crate) max_staleness: Option<Duration>,
    pub(crate) stale_if_store_down: Option<Duration>,
    pub(crate) snapshot_from: Option<Arc<Replica>>,
    pub(crate) early_refresh: Option<f64>,
    pub(crate) namespace: Option<String>,
    pub(crate) generation: Option<String>,
    pub(crate) client_cache: Option<ClientCache>,
    pub(crate) stale: StaleRules,
    pub(crate) stale_if_error_after: Option<Duration>,
    pub(crate) serve_invalidated: Option<Duration>,
    pub(crate) heuristic_freshness: Option<bool>,
    pub(crate) request_directives: Option<bool>,
    pub(crate) store_no_cache: Option<bool>,
    pub(crate) store_set_cookie: Option<bool>,
    pub(crate) store_any_status: Option<bool>,
    pub(crate) rfc9111_credentials: Option<bool>,
    pub(crate) forward_conditionals: Option<bool>,
    pub(crate) etag: Option<GeneratedEtag>,
    pub(crate) targeted_fields: Option<Vec<HeaderName>>,
    pub(crate) groups_as_domains: Option<bool>,
    pub(crate) store_post: Option<bool>,
    pub(crate) store_partial: Option<bool>,
    pub(crate) safe_post: Option<usize>,
    pub(crate) rebuild: Option<Rebuild>,
    /// What tells this policy's answers from those of other settings; see [`Policy::identify`].
    pub(crate) key_space: KeySpace,
    /// What the setters found wrong.
    pub(crate) wrong: Vec<String>,
}

/// How long a route's answers are fresh that do not say so themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RouteTtl {
    For(Duration),
    UntilInvalidated,
}

impl RouteTtl {
    /// The store cuts it to its longest lifetime.
    pub(crate) fn duration(self) -> Duration {
        match self {
            Self::For(ttl) => ttl,
            Self::UntilInvalidated => Duration::MAX,
        }
    }
}

/// What the answers of a route depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Dependency {
    Scope(Scope),
    /// The entity of the domain that a parameter of the path names.
    PathParameter(Domain, String),
}

/// Who shares the answers of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    ByTenant,
    PerPrincipal,
    ByEveryone,
}

/// What else tells the answers of a route apart.
#[derive(Debug, Clone)]
pub(crate) enum KeyPart {
    Header(HeaderName),
    Cookie(String),
    With(Described<KeyFn>),
}

/// Which cookies carry credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CookieRule {
    /// All but these.
    AllBut(Vec<Pattern>),
    /// These alone.
    Only(Vec<Pattern>),
}

impl CookieRule {
    pub(crate) fn is_credential(&self, name: &[u8]) -> bool {
        match self {
            Self::AllBut(patterns) => !patterns.iter().any(|p| p.matches(name)),
            // parsers of cookies decode names
            Self::Only(patterns) => patterns.iter().any(|p| p.matches_decoded(name)),
        }
    }
}

/// What browsers and other caches on the way are told about an answer that belongs to a tenant or a principal
/// and has no `Cache-Control` of its own. Invalidation does not reach them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ClientCache {
    /// `private, no-cache`: they may keep it and have to ask each time.
    #[default]
    Revalidate,
    /// This value of `Cache-Control`.
    Field(HeaderValue),
    /// Nothing; what they do is up to them.
    Unchanged,
}

impl ClientCache {
    /// The value of `Cache-Control`.
    pub(crate) fn field(&self) -> Option<HeaderValue> {
        match self {
            Self::Revalidate => Some(HeaderValue::from_static("private, no-cache")),
            Self::Field(value) => Some(value.clone()),
            Self::Unchanged => None,
        }
    }
}

pub(crate) type KeyFn = dyn Fn(&RequestHead<'_>) -> String + Send + Sync;
type WitnessFn = dyn Fn(&Extensions) -> bool + Send + Sync;
type HeadFn = dyn Fn(&RequestHead<'_>) -> bool + Send + Sync;
type StoreFn = dyn Fn(&RequestHead<'_>, &http::response::Parts) -> bool + Send + Sync;

pub(crate) type Witness = Described<WitnessFn>;
pub(crate) type StatusRule = Described<dyn Fn(StatusCode) -> bool + Send + Sync>;
pub(crate) type HeadRule = Described<HeadFn>;
pub(crate) type StoreRule = Described<StoreFn>;

/// A closure of the application's, and where it was given.
pub(crate) struct Described<F: ?Sized>(pub(crate) Arc<F>, &'static Location<'static>);

impl<F: ?Sized> Described<F> {
    #[track_caller]
    pub(crate) fn new(closure: Arc<F>) -> Self {
        Self(closure, Location::caller())
    }
}

impl<F: ?Sized> Clone for Described<F> {
    fn clone(&self) -> Self {
        Self(self.0.clone(), self.1)
    }
}

impl<F: ?Sized> fmt::Debug for Described<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "closure at {}", self.1)
    }
}

/// The validator that the cache gives to answers whose handler gave none. It is made from the body, sent to
/// clients, and never to the inner service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum GeneratedEtag {
    /// `W/"…"`: enough for conditional requests. A compression layer belongs inside the cache all the same.
    #[default]
    Weak,
    /// `"…"`: also for ranges. Only where nothing outside the cache changes bodies.
    Strong,
    /// None.
    Off,
}

impl Policy {
    /// For an application with its own handlers: safe, and useful with a `ttl`. Every setting at its default.
    #[must_use]
    pub fn application() -> Self {
        Self::default()
    }

    /// For a reverse proxy: what RFC 9111 allows a shared cache. It trusts what answers say about themselves.
    #[must_use]
    pub fn shared_cache() -> Self {
        Self::default()
            .rfc9111_credentials(true)
            .heuristic_freshness(true)
            .store_no_cache(true)
            .store_set_cookie(true)
            .store_any_status(true)
            .store_post(true)
            .store_partial(true)
            .untouched_query()
            .request_directives(true)
            .forward_conditionals(true)
            .stale_if_error(Duration::from_secs(24 * 3600))
            .etag(GeneratedEtag::Off)
            .invalidate_on(|status| status.is_success() || status.is_redirection())
    }

    policy_setters!();

    fn policy_mut(&mut self) -> &mut Self {
        self
    }

    /// These settings, and those of `base` where there is none here.
    pub(crate) fn over(self, base: &Self) -> Self {
        // exhaustive, so that a new setting cannot be forgotten
        let Self {
            ttl,
            negative_ttl,
            dependencies,
            all_tenants,
            invalidates,
            invalidate_on,
            sharing,
            witness,
            credential_headers,
            cookies,
            bypass,
            bypass_if,
            store_if,
            key_parts,
            query,
            max_body,
            max_staleness,
            stale_if_store_down,
            snapshot_from,
            early_refresh,
            namespace,
            generation,
            client_cache,
            stale,
            stale_if_error_after,
            serve_invalidated,
            heuristic_freshness,
            request_directives,
            store_no_cache,
            store_set_cookie,
            store_any_status,
            rfc9111_credentials,
            forward_conditionals,
            etag,
            targeted_fields,
            groups_as_domains,
            store_post,
            store_partial,
            safe_post,
            rebuild,
            key_space: _,
            wrong,
        } = self;
        Self {
            ttl: ttl.or(base.ttl),
            negative_ttl: negative_ttl.or(base.negative_ttl),
            dependencies: or_inherited(dependencies, &base.dependencies),
            all_tenants: all_tenants.or(base.all_tenants),
            invalidates: or_inherited(invalidates, &base.invalidates),
            invalidate_on: invalidate_on.or_else(|| base.invalidate_on.clone()),
            sharing: sharing.or(base.sharing),
            witness: witness.or_else(|| base.witness.clone()),
            // these and the key's parts only ever add: a route cannot make public what the engine keeps apart
            credential_headers: base
                .credential_headers
                .iter()
                .cloned()
                .chain(credential_headers)
                .collect(),
            cookies: cookies.or_else(|| base.cookies.clone()),
            bypass: bypass.or(base.bypass),
            bypass_if: bypass_if.or_else(|| base.bypass_if.clone()),
            store_if: store_if.or_else(|| base.store_if.clone()),
            key_parts: base.key_parts.iter().cloned().chain(key_parts).collect(),
            query: query.or_else(|| base.query.clone()),
            max_body: max_body.or(base.max_body),
            max_staleness: max_staleness.or(base.max_staleness),
            stale_if_store_down: stale_if_store_down.or(base.stale_if_store_down),
            snapshot_from: snapshot_from.or_else(|| base.snapshot_from.clone()),
            early_refresh: early_refresh.or(base.early_refresh),
            namespace: namespace.or_else(|| base.namespace.clone()),
            generation: generation.or_else(|| base.generation.clone()),
            client_cache: client_cache.or_else(|| base.client_cache.clone()),
            stale: StaleRules {
                while_revalidate: stale.while_revalidate.or(base.stale.while_revalidate),
                if_error: stale.if_error.or(base.stale.if_error),
            },
            stale_if_error_after: stale_if_error_after.or(base.stale_if_error_after),
            serve_invalidated: serve_invalidated.or(base.serve_invalidated),
            heuristic_freshness: heuristic_freshness.or(base.heuristic_freshness),
            request_directives: request_directives.or(base.request_directives),
            store_no_cache: store_no_cache.or(base.store_no_cache),
            store_set_cookie: store_set_cookie.or(base.store_set_cookie),
            store_any_status: store_any_status.or(base.store_any_status),
            rfc9111_credentials: rfc9111_credentials.or(base.rfc9111_credentials),
            forward_conditionals: forward_conditionals.or(base.forward_conditionals),
            etag: etag.or(base.etag),
            targeted_fields: targeted_fields.or_else(|| base.targeted_fields.clone()),
            groups_as_domains: groups_as_domains.or(base.groups_as_domains),
            store_post: store_post.or(base.store_post),
            store_partial: store_partial.or(base.store_partial),
            safe_post: safe_post.or(base.safe_post),
            rebuild: rebuild.or_else(|| base.rebuild.clone()),
            key_space: KeySpace::default(),
            wrong,
        }
        .identify()
    }

    /// Settings that decide who shares an answer are part of the key: what was stored under other ones, by an
    /// older build or by another layer around the same handler, is not found. Closures are told apart by where
    /// they were given.
    fn identify(mut self) -> Self {
        let settings = format!(
            "{:?}",
            (
                self.sharing,
                &self.witness,
                &self.credential_headers,
                &self.cookies,
                &self.bypass_if,
                &self.key_parts,
                self.query(),
                (
                    self.rfc9111_credentials,
                    self.store_set_cookie,
                    self.store_any_status
                ),
            )
        );
        let (namespace, generation) = (self.namespace.as_deref(), self.generation.as_deref());
        self.key_space = KeySpace::new(
            namespace.unwrap_or_default(),
            generation.unwrap_or_default(),
            &settings,
        );
        self
    }

    pub(crate) fn staleness_limit(&self) -> Duration {
        self.max_staleness.unwrap_or_default()
    }

    pub(crate) fn body_limit(&self) -> usize {
        self.max_body.unwrap_or(DEFAULT_MAX_BODY)
    }

    /// The fields that take the place of `Cache-Control`.
    pub(crate) fn targets(&self) -> &[HeaderName] {
        static DEFAULT: [HeaderName; 1] = [HeaderName::from_static("cdn-cache-control")];
        self.targeted_fields.as_deref().unwrap_or(&DEFAULT)
    }

    /// Whether preconditions and `Range` are left to the inner service.
    pub(crate) fn forwards_conditionals(&self) -> bool {
        self.forward_conditionals.unwrap_or(self.ttl.is_none())
    }

    /// What counts when an answer is judged.
    pub(crate) fn store_rules(
        &self,
        at_run_time: Option<Duration>,
        has_authorization: bool,
    ) -> StoreRules<'_> {
        let on = |setting: Option<bool>| setting == Some(true);
        StoreRules {
            lifetimes: Lifetimes {
                at_run_time,
                route: self.ttl.map(RouteTtl::duration),
                negative: self.negative_ttl,
            },
            stale: self.stale,
            heuristics: on(self.heuristic_freshness),
            no_cache: on(self.store_no_cache),
            set_cookie: on(self.store_set_cookie),
            any_status: on(self.store_any_status),
            partial: on(self.store_partial),
            authorization: on(self.rfc9111_credentials) && has_authorization,
            targets: self.targets(),
        }
    }

    pub(crate) fn query(&self) -> &QueryRule {
        self.query.as_ref().unwrap_or(&QueryRule::Sorted)
    }

    /// What is wrong with the settings, complete as they are with what they inherit: each `mistake; mend`.
    pub(crate) fn mistakes(
        &self,
        tenant: Option<&Tenant>,
        principal: Option<&Principal>,
    ) -> Vec<String> {
        let mut mistakes = self.wrong.clone();
        let mut wrong = |applies: bool, text: &str| {
            if applies {
                mistakes.push(text.to_owned());
            }
        };
        let is_zero = |ttl: Option<Duration>| ttl.is_some_and(|ttl| ttl.is_zero());
        wrong(
            self.ttl == Some(RouteTtl::For(Duration::ZERO)),
            "ttl(0); use bypass() for a route that must not be cached",
        );
        wrong(
            is_zero(self.negative_ttl),
            "negative_ttl(0); leave it out, or use at least a second",
        );
        wrong(
            is_zero(self.stale_if_store_down),
            "stale_if_store_down(0); leave it out, or use at least a second",
        );
        wrong(
            self.stale_if_store_down
                .is_some_and(|at_most| at_most > LONGEST_UNCONFIRMED),
            "stale_if_store_down(…) of more than a day; use a time in which somebody mends the database",
        );
        wrong(
            self.early_refresh
                .is_some_and(|beta| !(beta > 0.0 && beta.is_finite())),
            "early_refresh(…) with a factor that is not positive; use 1.0, or leave it out",
        );
        wrong(
            self.ttl == Some(RouteTtl::UntilInvalidated) && self.dependencies.is_empty(),
            "until_invalidated() without a dependency would never end; add domain(…) or entity(…)",
        );
        wrong(
            self.dependencies.len() > MAX_DEPENDENCIES,
            "more than 64 dependencies in domain(…), domains(…) and entity(…); use a domain for what changes together",
        );
        wrong(
            self.sharing == Some(Sharing::ByTenant) && tenant.is_none(),
            "shared_by_tenant() without a tenant; add tenant(Tenant::extension(…)) to the engine's builder",
        );
        wrong(
            self.sharing == Some(Sharing::PerPrincipal) && principal.is_none(),
            "per_principal() without a principal; add principal(Principal::extension(…)) to the engine's builder",
        );
        if let Some(tenant) = tenant.filter(|t| !t.is_witness()) {
            let unwitnessed = self.sharing == Some(Sharing::ByTenant) && self.witness.is_none();
            wrong(
                unwitnessed,
                &format!(
                    "shared_by_tenant() with {}, which clients control: anybody could name a tenant; \
                     use Tenant::extension(…), or add authenticated_by::<T>() with a type that the authentication layer inserts",
                    tenant.what()
                ),
            );
        }
        mistakes
    }

    /// Adds names of header fields; the setter that was called is named in the mistake.
    pub(crate) fn header_names(
        &mut self,
        setter: &str,
        names: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Vec<HeaderName> {
        let mut parsed = Vec::new();
        for name in names {
            match HeaderName::try_from(name.as_ref()) {
                Ok(name) => parsed.push(name),
                Err(_) => self.wrong.push(format!(
                    "{setter}({:?}) is no name of a header field; use one like \"x-api-key\"",
                    name.as_ref()
                )),
            }
        }
        parsed
    }

    /// Patterns; an empty list is a mistake.
    pub(crate) fn patterns(
        &mut self,
        setter: &str,
        names: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Vec<Pattern> {
        let patterns: Vec<Pattern> = names
            .into_iter()
            .map(|name| Pattern::new(name.as_ref()))
            .collect();
        if patterns.is_empty() {
            self.wrong.push(format!(
                "{setter}([]) names nothing; name something, or leave it out"
            ));
        }
        if patterns.contains(&Pattern::Exactly(String::new())) {
            self.wrong.push(format!(
                "{setter}([\"\"]): an empty name; name something, or leave it out"
            ));
        }
        patterns
    }
}

fn or_inherited<T: Clone>(own: Vec<T>, base: &[T]) -> Vec<T> {
    if own.is_empty() { base.to_vec() } else { own }
}
