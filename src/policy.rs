//! [`Policy`]: what can be set for the whole engine, for a layer, or for a row of a route table. The setters
//! are written once and appear on each of the three.
//!
//! A setter never fails. What is wrong is remembered and comes out as a [`ConfigError`](crate::ConfigError),
//! with all other mistakes; a layer with mistakes that nobody asked for passes everything through.

use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use http::{Extensions, HeaderName, HeaderValue, StatusCode};

use crate::domain::{Domain, Scope};
use crate::head::RequestHead;
use crate::http::reuse::StaleRules;
use crate::http::storable::{Lifetimes, StoreRules};
use crate::query::{Pattern, QueryRule};
use crate::search::Rebuild;
use crate::tenant::{Principal, Tenant};

/// The setters of a [`Policy`], for a type with a method `policy_mut`.
macro_rules! policy_setters {
    () => {
        /// How long answers are fresh that do not say so themselves: those with status 200, 203, 204, 300, 301
        /// or 308.
        ///
        /// What the handler says at run time ([`Ttl`](crate::Ttl)) and `s-maxage` go before it; `max-age` and
        /// `Expires` do not, since they speak to browsers. `no-store`, `private` and `no-cache` forbid storing.
        ///
        /// Defaults to nothing: only answers with explicit freshness (`s-maxage`, `max-age`, `Expires`) are
        /// stored.
        #[must_use]
        pub fn ttl(mut self, ttl: std::time::Duration) -> Self {
            self.policy_mut().ttl = Some($crate::policy::RouteTtl::For(ttl));
            self
        }

        /// Answers are fresh until something that they depend on changes. Needs a dependency
        /// ([`domain`](Self::domain) or [`entity`](Self::entity)).
        #[must_use]
        pub fn until_invalidated(mut self) -> Self {
            self.policy_mut().ttl = Some($crate::policy::RouteTtl::UntilInvalidated);
            self
        }

        /// How long answers with status 404 or 410 are fresh that do not say so themselves (*negative caching*).
        ///
        /// Defaults to nothing: they are stored only with explicit freshness.
        #[must_use]
        pub fn negative_ttl(mut self, ttl: std::time::Duration) -> Self {
            self.policy_mut().negative_ttl = Some(ttl);
            self
        }

        /// Answers depend on this domain (or scope) of the request's tenant: when it changes, they are gone.
        /// May be called several times; at most 64 dependencies.
        #[must_use]
        pub fn domain(mut self, scope: impl Into<$crate::Scope>) -> Self {
            let dependency = $crate::policy::Dependency::Scope(scope.into());
            self.policy_mut().dependencies.push(dependency);
            self
        }

        /// Answers depend on all of these: [`domain`](Self::domain) for each.
        #[must_use]
        pub fn domains<I>(self, scopes: I) -> Self
        where
            I: IntoIterator,
            I::Item: Into<$crate::Scope>,
        {
            scopes
                .into_iter()
                .fold(self, |this, scope| this.domain(scope))
        }

        /// Answers depend on the entity of `domain` that the path parameter `parameter` names, of the request's
        /// tenant. A request whose path has no such parameter is not cached.
        #[must_use]
        pub fn entity(mut self, domain: $crate::Domain, parameter: impl Into<String>) -> Self {
            let dependency = $crate::policy::Dependency::PathParameter(domain, parameter.into());
            self.policy_mut().dependencies.push(dependency);
            self
        }

        /// Answers are computed from the data of all tenants: the route's dependencies are those of every tenant.
        #[must_use]
        pub fn all_tenants(mut self) -> Self {
            self.policy_mut().all_tenants = Some(true);
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

        /// Which answers to unsafe requests invalidate. An error or a panic of the inner service always does.
        ///
        /// Defaults to all but 4xx: a 5xx may come after the commit.
        #[must_use]
        #[track_caller]
        pub fn invalidate_on(
            mut self,
            rule: impl Fn(http::StatusCode) -> bool + Send + Sync + 'static,
        ) -> Self {
            self.policy_mut().invalidate_on =
                Some($crate::policy::Described::new(std::sync::Arc::new(rule)));
            self
        }

        /// Answers to requests with credentials are shared by all requests of the same tenant.
        ///
        /// Defaults to not: whoever sends `Authorization`, `Cookie`, `Proxy-Authorization`, `X-Api-Key` or
        /// `X-Auth-Token` is answered by the inner service. Needs a tenant
        /// ([`PgCacheBuilder::tenant`](crate::PgCacheBuilder::tenant)) that the authentication layer vouches
        /// for.
        #[must_use]
        pub fn shared_by_tenant(mut self) -> Self {
            self.policy_mut().sharing = Some($crate::policy::Sharing::ByTenant);
            self
        }

        /// Each principal has answers of its own; a request without a principal is not cached. Needs
        /// [`PgCacheBuilder::principal`](crate::PgCacheBuilder::principal).
        #[must_use]
        pub fn per_principal(mut self) -> Self {
            self.policy_mut().sharing = Some($crate::policy::Sharing::PerPrincipal);
            self
        }

        /// Answers are the same for everybody, whatever tenant or principal. Those to requests that the
        /// authentication layer vouched for are shared by such requests alone; a request with credentials for
        /// which nobody vouched is not cached.
        #[must_use]
        pub fn shared_by_everyone(mut self) -> Self {
            self.policy_mut().sharing = Some($crate::policy::Sharing::ByEveryone);
            self
        }

        /// A type that the authentication layer puts into the extensions of requests that it has authenticated:
        /// the witness for requests with credentials, where neither tenant nor principal are one.
        #[must_use]
        #[track_caller]
        pub fn authenticated_by<W: Clone + Send + Sync + 'static>(mut self) -> Self {
            let present = |extensions: &http::Extensions| extensions.get::<W>().is_some();
            self.policy_mut().witness =
                Some($crate::policy::Described::new(std::sync::Arc::new(present)));
            self
        }

        /// More fields that carry credentials.
        #[must_use]
        pub fn credential_headers(
            mut self,
            names: impl IntoIterator<Item = impl AsRef<str>>,
        ) -> Self {
            let names = self.policy_mut().header_names("credential_headers", names);
            self.policy_mut().credential_headers.extend(names);
            self
        }

        /// Cookies that carry no credentials and do not change the answer: `["theme", "_ga*"]`. Every other
        /// cookie still counts as a credential.
        #[must_use]
        pub fn ignore_cookies(mut self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
            let patterns = self.policy_mut().patterns("ignore_cookies", names);
            self.policy_mut().cookies = Some($crate::policy::CookieRule::AllBut(patterns));
            self
        }

        /// The cookies that carry credentials; every other one is ignored, and must not change the answer.
        #[must_use]
        pub fn session_cookies(mut self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
            let patterns = self.policy_mut().patterns("session_cookies", names);
            self.policy_mut().cookies = Some($crate::policy::CookieRule::Only(patterns));
            self
        }

        /// Nothing is looked up or stored. Unsafe requests still invalidate.
        #[must_use]
        pub fn bypass(mut self) -> Self {
            self.policy_mut().bypass = Some(true);
            self
        }

        /// Requests for which this holds are neither looked up nor stored.
        #[must_use]
        #[track_caller]
        pub fn bypass_if(
            mut self,
            rule: impl Fn(&$crate::RequestHead<'_>) -> bool + Send + Sync + 'static,
        ) -> Self {
            self.policy_mut().bypass_if =
                Some($crate::policy::Described::new(std::sync::Arc::new(rule)));
            self
        }

        /// Only answers for which this holds are stored, if nothing else forbids it.
        #[must_use]
        #[track_caller]
        pub fn store_if(
            mut self,
            rule: impl Fn(&$crate::RequestHead<'_>, &http::response::Parts) -> bool
            + Send
            + Sync
            + 'static,
        ) -> Self {
            self.policy_mut().store_if =
                Some($crate::policy::Described::new(std::sync::Arc::new(rule)));
            self
        }

        /// Requests that differ in this field have answers of their own, besides what the engine's settings tell
        /// apart.
        #[must_use]
        pub fn key_header(mut self, name: impl AsRef<str>) -> Self {
            let names = self.policy_mut().header_names("key_header", [name]);
            self.policy_mut()
                .key_parts
                .extend(names.into_iter().map($crate::policy::KeyPart::Header));
            self
        }

        /// Requests that differ in this cookie have answers of their own. The cookie still counts as a
        /// credential unless [`ignore_cookies`](Self::ignore_cookies) or
        /// [`session_cookies`](Self::session_cookies) says otherwise.
        #[must_use]
        pub fn key_cookie(mut self, name: impl Into<String>) -> Self {
            let name = name.into();
            if name.is_empty() {
                let wrong =
                    "key_cookie(\"\") names no cookie; name one, or leave it out".to_owned();
                self.policy_mut().wrong.push(wrong);
            }
            self.policy_mut()
                .key_parts
                .push($crate::policy::KeyPart::Cookie(name));
            self
        }

        /// Requests that differ in this have answers of their own.
        #[must_use]
        #[track_caller]
        pub fn key_with(
            mut self,
            part: impl Fn(&$crate::RequestHead<'_>) -> String + Send + Sync + 'static,
        ) -> Self {
            let part = $crate::policy::Described::new(
                std::sync::Arc::new(part) as std::sync::Arc<$crate::policy::KeyFn>
            );
            self.policy_mut()
                .key_parts
                .push($crate::policy::KeyPart::With(part));
            self
        }

        /// Members of the query that do not change the answer: `["utm_*", "fbclid"]`.
        ///
        /// The members that count are sorted by name; those with one name keep their order.
        #[must_use]
        pub fn ignore_query(mut self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
            let patterns = self.policy_mut().patterns("ignore_query", names);
            self.policy_mut().query = Some($crate::query::QueryRule::Ignoring(patterns));
            self
        }

        /// The members of the query that change the answer; all others are ignored.
        #[must_use]
        pub fn only_query(mut self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
            let patterns = self.policy_mut().patterns("only_query", names);
            self.policy_mut().query = Some($crate::query::QueryRule::Only(patterns));
            self
        }

        /// The query counts as it is, unsorted.
        ///
        /// Defaults to sorting its members by name, those with one name in the order in which they came.
        #[must_use]
        pub fn untouched_query(mut self) -> Self {
            self.policy_mut().query = Some($crate::query::QueryRule::Untouched);
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

        /// Keeps the entries of applications, or of parts of one, apart that share a schema.
        ///
        /// Defaults to the empty one.
        #[must_use]
        pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
            self.policy_mut().namespace = Some(namespace.into());
            self
        }

        /// Keeps the entries of builds apart: a build with another generation does not read this one's answers.
        /// `env!("CARGO_PKG_VERSION")` is a good one.
        ///
        /// Defaults to the empty one.
        #[must_use]
        pub fn generation(mut self, generation: impl Into<String>) -> Self {
            self.policy_mut().generation = Some(generation.into());
            self
        }

        /// Starts from these settings; those made before stay.
        #[must_use]
        pub fn policy(mut self, policy: $crate::Policy) -> Self {
            let own = std::mem::take(self.policy_mut());
            *self.policy_mut() = own.over(&policy);
            self
        }

        /// How long after it has become stale an answer may be served while a background fill replaces it (RFC
        /// 5861 §3). What the answer says itself goes before it; `must-revalidate`, `proxy-revalidate` and
        /// `no-cache` forbid it. The fill runs the request that found the answer stale, with its extensions.
        ///
        /// An answer that a commit has invalidated is not stale, and is never served so.
        #[must_use]
        pub fn stale_while_revalidate(mut self, window: std::time::Duration) -> Self {
            self.policy_mut().stale.while_revalidate = Some(window);
            self
        }

        /// How long after it has become stale an answer may stand in for an error of the inner service: 500, 502,
        /// 503, 504, an `Err`, or a body that breaks off before its first byte was sent (RFC 5861 §4). What the
        /// answer says itself goes before it; `must-revalidate`, `proxy-revalidate`, `no-cache` and `s-maxage`
        /// forbid it.
        #[must_use]
        pub fn stale_if_error(mut self, window: std::time::Duration) -> Self {
            self.policy_mut().stale.if_error = Some(window);
            self
        }

        /// An inner service that has not answered after so long counts as failed where `stale_if_error` allows a
        /// stale answer; what it answers later is stored.
        #[must_use]
        pub fn stale_if_error_after(mut self, patience: std::time::Duration) -> Self {
            self.policy_mut().stale_if_error_after = Some(patience);
            self
        }

        /// Also an answer that a commit has invalidated is served while a background fill replaces it, for so
        /// long after this instance has noticed. **This serves old data**: only for routes where that does not
        /// matter.
        #[must_use]
        pub fn serve_invalidated_while_refreshing(mut self, window: std::time::Duration) -> Self {
            self.policy_mut().serve_invalidated = Some(window);
            self
        }

        /// Whether an answer without explicit freshness is fresh for a tenth of the time since its
        /// `Last-Modified`, at most a day (RFC 9111 §4.2.2); with a validator alone it is stored to be
        /// revalidated.
        ///
        /// Defaults to `false`.
        #[must_use]
        pub fn heuristic_freshness(mut self, on: bool) -> Self {
            self.policy_mut().heuristic_freshness = Some(on);
            self
        }

        /// Whether `Cache-Control` and `Pragma` in requests are obeyed: `no-cache`, `no-store`, `max-age`,
        /// `min-fresh`, `max-stale`, `only-if-cached` (RFC 9111 §5.2.1). They let anybody defeat the cache.
        ///
        /// Defaults to `false`.
        #[must_use]
        pub fn request_directives(mut self, on: bool) -> Self {
            self.policy_mut().request_directives = Some(on);
            self
        }

        /// Whether answers with `no-cache` are stored, to be revalidated each time.
        ///
        /// Defaults to `false`.
        #[must_use]
        pub fn store_no_cache(mut self, on: bool) -> Self {
            self.policy_mut().store_no_cache = Some(on);
            self
        }

        /// Whether answers with `Set-Cookie` are stored if they are explicitly fresh. **Everybody gets the
        /// cookie.**
        ///
        /// Defaults to `false`.
        #[must_use]
        pub fn store_set_cookie(mut self, on: bool) -> Self {
            self.policy_mut().store_set_cookie = Some(on);
            self
        }

        /// Whether answers about one request (401, 407, 412, 416, 417, 421, 425, 426, 428, 429, 431, 511) are
        /// stored if they are explicitly fresh.
        ///
        /// Defaults to `false`.
        #[must_use]
        pub fn store_any_status(mut self, on: bool) -> Self {
            self.policy_mut().store_any_status = Some(on);
            self
        }

        /// Whether credentials are dealt with as RFC 9111 says, instead of by witnesses: answers to requests with
        /// `Authorization` are stored if they say `public`, `s-maxage` or `must-revalidate` (§3.5); cookies, and
        /// every other field, matter only where the answer names them in `Vary`. **The inner service is trusted
        /// to say so.**
        ///
        /// Defaults to `false`.
        #[must_use]
        pub fn rfc9111_credentials(mut self, on: bool) -> Self {
            self.policy_mut().rfc9111_credentials = Some(on);
            self
        }

        /// Whether the inner service sees the client's preconditions and `Range` on a miss. If not, it answers
        /// with the whole, which is stored, and the cache answers the client.
        ///
        /// Defaults to `false` where the route has a `ttl`, else to `true`.
        #[must_use]
        pub fn forward_conditionals(mut self, on: bool) -> Self {
            self.policy_mut().forward_conditionals = Some(on);
            self
        }

        /// The `ETag` of answers whose handler gives none.
        ///
        /// Defaults to a weak one.
        #[must_use]
        pub fn etag(mut self, etag: $crate::GeneratedEtag) -> Self {
            self.policy_mut().etag = Some(etag);
            self
        }

        /// The fields that take the place of `Cache-Control` for this cache (RFC 9213), the most specific first.
        /// An empty list switches them off.
        ///
        /// Defaults to `CDN-Cache-Control`.
        #[must_use]
        pub fn targeted_fields(mut self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
            let names = self.policy_mut().header_names("targeted_fields", names);
            self.policy_mut().targeted_fields = Some(names);
            self
        }

        /// Whether members of `Cache-Groups` and `Cache-Group-Invalidation` (RFC 9875) that are names of domains
        /// are read as these domains, besides as groups.
        ///
        /// Defaults to `false`.
        #[must_use]
        pub fn groups_as_domains(mut self, on: bool) -> Self {
            self.policy_mut().groups_as_domains = Some(on);
            self
        }

        /// Whether an answer to POST is stored for later GETs if it is explicitly fresh and its `Content-Location`
        /// is the URI of the request (RFC 9110 §9.3.3).
        ///
        /// Defaults to `false`.
        #[must_use]
        pub fn store_post(mut self, on: bool) -> Self {
            self.policy_mut().store_post = Some(on);
            self
        }

        /// POST only reads here, as in GraphQL and search: answers are stored under the body of the request too,
        /// and nothing is invalidated. A body that is longer than `max_body` bytes, or does not say how long it
        /// is, passes through.
        ///
        /// QUERY always only reads; without this setting its body may have 64 KiB.
        ///
        /// Bodies of the types `axum::body::Body` and `http_body_util::Full<Bytes>` can be read and made anew;
        /// for others see [`rebuild_body`](Self::rebuild_body).
        #[must_use]
        pub fn safe_post(mut self, max_body: usize) -> Self {
            self.policy_mut().safe_post = Some(max_body);
            self
        }

        /// The type of the inner service's request bodies, for [`safe_post`](Self::safe_post) and QUERY.
        #[must_use]
        pub fn rebuild_body<W: From<bytes::Bytes> + 'static>(mut self) -> Self {
            self.policy_mut().rebuild = Some($crate::search::Rebuild::of::<W>());
            self
        }

        /// What browsers and other caches on the way are told about answers that belong to a tenant or a
        /// principal and have no `Cache-Control` of their own.
        ///
        /// Defaults to `private, no-cache`: invalidation does not reach them, so they have to ask each time.
        #[must_use]
        pub fn client_cache(mut self, client_cache: $crate::ClientCache) -> Self {
            self.policy_mut().client_cache = Some(client_cache);
            self
        }
    };
}
pub(crate) use policy_setters;

/// Larger bodies are not stored, unless a route says otherwise.
pub(crate) const DEFAULT_MAX_BODY: usize = 1 << 20;

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
    pub(crate) safe_post: Option<usize>,
    pub(crate) rebuild: Option<Rebuild>,
    /// What tells this policy's answers from those of other settings; see [`Policy::identify`].
    pub(crate) identity: String,
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
            safe_post,
            rebuild,
            identity: _,
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
            safe_post: safe_post.or(base.safe_post),
            rebuild: rebuild.or_else(|| base.rebuild.clone()),
            identity: String::new(),
            wrong,
        }
        .identify()
    }

    /// Settings that decide who shares an answer are part of the key: what was stored under other ones, by an
    /// older build or by another layer around the same handler, is not found. Closures are told apart by where
    /// they were given.
    fn identify(mut self) -> Self {
        self.identity = format!(
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
        self
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
