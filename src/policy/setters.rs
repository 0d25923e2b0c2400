//! The setters of a policy: written once, for the policy itself, the engine's builder, a layer and a row of a table
//! of routes.

/// The setters of a [`Policy`](super::Policy), for a type with a method `policy_mut`.
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
        /// apart: for fields that change answers and that the answers do not name in `Vary`.
        ///
        /// What a request claims about its own target is told apart without: `X-Forwarded-Host`, `-Proto`,
        /// `-Port`, `-Prefix` and their relatives, `Forwarded` (but not the addresses in it), `X-Host`,
        /// `X-Original-URL`, `X-Rewrite-URL`.
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
        /// The members that count are sorted by name; those with one name keep their order. A query with a `;`,
        /// which some handlers take for a divider, counts as it is.
        #[must_use]
        pub fn ignore_query(mut self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
            let patterns = self.policy_mut().patterns("ignore_query", names);
            self.policy_mut().query = Some($crate::query::QueryRule::Ignoring(patterns));
            self
        }

        /// The members of the query that change the answer; all others are ignored. A query with a `;`, which some
        /// handlers take for a divider, counts as it is.
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

        /// Refreshes answers in the background before they expire, so that those that are asked for often never do for
        /// anybody: each hit does so with a probability that rises towards the end, and sooner for answers that
        /// took longer to make (`XFetch`: Vattani, Chierichetti, Lowenstein, “Optimal Probabilistic Cache Stampede
        /// Prevention”, 2015). `beta` of 1 is the optimum of the paper; more is earlier. One instance does it at a time.
        ///
        /// Defaults to none.
        #[must_use]
        pub fn early_refresh(mut self, beta: f64) -> Self {
            self.policy_mut().early_refresh = Some(beta);
            self
        }

        /// How old the news from the database may be by which an answer in memory is judged. A request that arrives
        /// later than this after a commit never gets an answer from before it; one that arrives sooner may. Spares
        /// such requests the question to the database.
        ///
        /// Defaults to zero (*strict*): no request gets an answer from before a commit that it arrived after.
        #[must_use]
        pub fn max_staleness(mut self, at_most: std::time::Duration) -> Self {
            self.policy_mut().max_staleness = Some(at_most);
            self
        }

        /// While the store cannot be asked (not reachable, too slow, no connection free), fresh answers in this instance's
        /// memory are served all the same, for so long after they were last known to be valid. **What was committed
        /// since is not seen**: only for routes where an answer of this age is better than asking the inner service.
        ///
        /// What this instance itself has changed since is not served even so, and neither are answers that forbid to be
        /// served stale (`must-revalidate`, `proxy-revalidate`, `no-cache`). One that has expired is served where
        /// `stale_if_error` allows it, in the place of an error of the inner service. `Cache-Status` says
        /// `detail=store-down`, and [`Stats::unconfirmed`](crate::Stats::unconfirmed) counts. From the first
        /// answer of the store on, everything is as strict as before; this instance looks for one ten times a second.
        ///
        /// At most a day. Defaults to never: the inner service is asked.
        #[must_use]
        pub fn stale_if_store_down(mut self, at_most: std::time::Duration) -> Self {
            self.policy_mut().stale_if_store_down = Some(at_most);
            self
        }

        /// Handlers read from this server, a streaming standby of the one that the cache is on, and not from that one. It
        /// may not have what was committed a moment ago. So what an answer was made from is asked there, before the
        /// handler runs; what turns out to lack a change that it depends on is not stored, and a standby that lags
        /// behind, does not answer within the lookup deadline, was promoted or belongs to another system costs hits.
        ///
        /// All that the handler reads has to come from this server, or from the primary: where a pool spreads
        /// connections over several standbys, another one may have less. Each answer that is stored asks the standby
        /// twice, on a connection of this pool. A handler that reads from a standby without this setting may have an old answer stored as a
        /// new one, which is then served until something changes again.
        ///
        /// Defaults to none: handlers read from the primary.
        #[must_use]
        pub fn snapshot_from<M>(mut self, replica: $crate::bb8::Pool<M>) -> Self
        where
            M: $crate::bb8::ManageConnection<Connection = $crate::tokio_postgres::Client>,
            M::Error: std::error::Error + Send + Sync + 'static,
        {
            let replica = $crate::engine::Replica::new(replica);
            self.policy_mut().snapshot_from = Some(std::sync::Arc::new(replica));
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

        /// Whether a 206 with one part is stored: it answers later requests for ranges within it, and a stored
        /// beginning with a strong validator is completed by asking for the rest (RFC 9111 §3.3, §3.4). Only
        /// where the inner service sees the client's `Range`
        /// ([`forward_conditionals`](Self::forward_conditionals)), and for answers that do not vary.
        ///
        /// Defaults to `false`.
        #[must_use]
        pub fn store_partial(mut self, on: bool) -> Self {
            self.policy_mut().store_partial = Some(on);
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
