//! Random settings of an application: its engine, its layers or its table, and where its authentication sits.

use test_support::random::Random;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Sharing {
    Tenant,
    Principal,
    Everyone,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum TenantSource {
    Extension,
    Header,
    HostLabel,
    PathParam,
    FromFn,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Cookies {
    /// `theme` and `_ga*` are harmless.
    Ignored,
    /// `sid` alone is a credential.
    Session,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Query {
    /// But `utm_*`.
    Ignored,
    /// `page`.
    Only,
    Untouched,
}

/// What is set in one place. What is not set is inherited from the engine.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Settings {
    pub(crate) sharing: Option<Sharing>,
    pub(crate) authenticated_by: bool,
    /// `x-user-key`.
    pub(crate) credential_header: bool,
    pub(crate) cookies: Option<Cookies>,
    /// `x-variant`.
    pub(crate) key_header: bool,
    /// `theme`.
    pub(crate) key_cookie: bool,
    /// `x-flag`.
    pub(crate) key_with: bool,
    pub(crate) query: Option<Query>,
}

/// Patterns of the routes that can have settings of their own.
pub(crate) const ROUTES: [&str; 4] = ["/a/x", "/n1/x", "/n2/x", "/t/{tenant}/x"];

#[derive(Debug, Clone)]
pub(crate) struct App {
    pub(crate) namespace: String,
    pub(crate) generation: String,
    pub(crate) tenant: Option<TenantSource>,
    pub(crate) has_principal: bool,
    /// The authentication layer runs before the cache.
    pub(crate) auth_is_outside: bool,
    pub(crate) engine: Settings,
    /// A table of routes, instead of layers.
    pub(crate) has_table: bool,
    /// A layer around everything; always with a table.
    pub(crate) outer: Option<Settings>,
    /// A layer of its own around the route, or a row of the table.
    pub(crate) routes: [Option<Settings>; 4],
}

impl Settings {
    fn random(random: &mut Random, tenant: Option<TenantSource>, has_principal: bool) -> Self {
        let sharing = match random.below(6) {
            0 | 1 => tenant.map(|_| Sharing::Tenant),
            2 | 3 => has_principal.then_some(Sharing::Principal),
            4 => Some(Sharing::Everyone),
            _ => None,
        };
        let is_vouched_for = tenant == Some(TenantSource::Extension);
        Self {
            sharing,
            // without, the engine would refuse to share by a tenant that clients control
            authenticated_by: random.one_in(3)
                || (sharing == Some(Sharing::Tenant) && !is_vouched_for),
            credential_header: random.one_in(3),
            cookies: random.of(&[None, Some(Cookies::Ignored), Some(Cookies::Session)]),
            key_header: random.one_in(4),
            key_cookie: random.one_in(4),
            key_with: random.one_in(4),
            query: random.of(&[
                None,
                Some(Query::Ignored),
                Some(Query::Only),
                Some(Query::Untouched),
            ]),
        }
    }

    /// What holds where these are set and the engine has `base`.
    pub(crate) fn over(self, base: Self) -> Self {
        Self {
            sharing: self.sharing.or(base.sharing),
            authenticated_by: self.authenticated_by || base.authenticated_by,
            credential_header: self.credential_header || base.credential_header,
            cookies: self.cookies.or(base.cookies),
            key_header: self.key_header || base.key_header,
            key_cookie: self.key_cookie || base.key_cookie,
            key_with: self.key_with || base.key_with,
            query: self.query.or(base.query),
        }
    }
}

impl App {
    /// Pairs of applications share a namespace and differ in their generation.
    pub(crate) fn random(seed: u64, number: u64) -> Self {
        let mut random = Random::new(seed, u64::MAX - number);
        let tenant = random.of(&[
            None,
            Some(TenantSource::Extension),
            Some(TenantSource::Extension),
            Some(TenantSource::Header),
            Some(TenantSource::HostLabel),
            Some(TenantSource::PathParam),
            Some(TenantSource::FromFn),
        ]);
        let has_principal = random.one_in(2);
        let mut settings = |one_in| {
            random
                .one_in(one_in)
                .then(|| Settings::random(&mut random, tenant, has_principal))
        };
        let (engine, outer) = (settings(3).unwrap_or_default(), settings(2));
        let routes = [settings(1), settings(1), settings(2), settings(1)];
        Self {
            namespace: format!("application {}", number / 2),
            generation: format!("{}", number % 2),
            tenant,
            has_principal,
            auth_is_outside: !random.one_in(4),
            engine,
            has_table: random.one_in(4),
            outer,
            routes,
        }
    }

    /// The settings that decide about requests with this path; none if there is no cache.
    pub(crate) fn settings_for(&self, path: &str) -> Option<Settings> {
        let outer = if self.has_table {
            Some(Settings::default())
        } else {
            self.outer
        };
        let deciding = self.of_route(path).or(outer);
        deciding.map(|settings| settings.over(self.engine))
    }

    /// Whether the layer that decides about this path runs after the authentication layer: a layer around a route
    /// is inside everything that is around the router.
    pub(crate) fn knows_identities(&self, path: &str) -> bool {
        self.auth_is_outside || (!self.has_table && self.of_route(path).is_some())
    }

    fn of_route(&self, path: &str) -> Option<Settings> {
        let at = ROUTES.iter().position(|route| *route == path);
        let at = at.or(tenant_segment(path).map(|_| 3));
        self.routes[at?]
    }
}

/// As `/t/{tenant}/x` matches: an empty segment too.
pub(crate) fn tenant_segment(path: &str) -> Option<&str> {
    let segment = path.strip_prefix("/t/")?.strip_suffix("/x")?;
    (!segment.contains('/')).then_some(segment)
}
