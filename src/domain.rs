//! [`Domain`] and [`Scope`]: what answers depend on and what changes name, and when the two meet.
//!
//! 1. A domain is a kind of data, named by an identifier: `product`, `price`.
//! 2. A scope is a domain, or one entity of it, for one tenant or for all. Answers depend on scopes;
//!    invalidations name scopes.
//! 3. They meet iff the domains are equal, the tenants are equal or one of them is *any*, and the same for
//!    the entities.
//! 4. Tenants and entities are compared in a [normal form](normal_form): the path of a request may spell an
//!    entity otherwise than its row does.
//! 5. In Postgres a scope is a few 64-bit keys, each the exclusive or of the hashes of its parts. Two scopes with
//!    one key are invalidated together, which costs a hit and no correctness.

use std::borrow::Cow;
use std::fmt;

use sha2::{Digest, Sha256};

use crate::error::ConfigError;

/// The name of a kind of data that answers depend on: 1 to 63 characters out of `a-z`, `0-9`, `_`, `.`, `-`.
///
/// Declare domains as constants with [`domain!`](crate::domain!), which checks the name at compile time:
///
/// ```
/// use tower_pgcache::{Domain, domain};
/// const PRODUCT: Domain = domain!("product");
/// # assert_eq!(PRODUCT.as_str(), "product");
/// ```
///
/// Names known only at run time go through `TryFrom`:
///
/// ```
/// # use tower_pgcache::Domain;
/// assert!(Domain::try_from("price".to_owned()).is_ok());
/// assert!(Domain::try_from("Price list".to_owned()).is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Domain(Cow<'static, str>);

impl Domain {
    /// A domain with a fixed name.
    ///
    /// # Panics
    ///
    /// If `name` is not a domain name. [`domain!`](crate::domain!) turns that into a compile error.
    #[must_use]
    pub const fn from_static(name: &'static str) -> Self {
        assert!(
            is_domain_name(name),
            "a domain name has 1 to 63 characters out of a-z, 0-9, `_`, `.` and `-`"
        );
        Self(Cow::Borrowed(name))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// One entity of this domain, for the tenant of the request at hand (outside a request: every tenant).
    #[must_use]
    pub fn entity(&self, entity: impl fmt::Display) -> Scope {
        Scope::from(self.clone()).entity(entity)
    }

    /// This domain, every entity of it, for one tenant.
    #[must_use]
    pub fn tenant(&self, tenant: impl fmt::Display) -> Scope {
        Scope::from(self.clone()).tenant(tenant)
    }

    /// This domain, every entity of it, for every tenant.
    #[must_use]
    pub fn all_tenants(&self) -> Scope {
        Scope::from(self.clone()).all_tenants()
    }
}

const fn is_domain_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        if !matches!(bytes[i], b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-') {
            return false;
        }
        i += 1;
    }
    !bytes.is_empty() && bytes.len() <= 63
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Domain {
    type Error = ConfigError;

    fn try_from(name: String) -> Result<Self, ConfigError> {
        if is_domain_name(&name) {
            return Ok(Self(Cow::Owned(name)));
        }
        Err(ConfigError::one(format!(
            "{name:?} is not a domain name: use 1 to 63 characters out of a-z, 0-9, `_`, `.` and `-`"
        )))
    }
}

impl TryFrom<&str> for Domain {
    type Error = ConfigError;

    fn try_from(name: &str) -> Result<Self, ConfigError> {
        name.to_owned().try_into()
    }
}

/// A [`Domain`] constant whose name is checked at compile time.
///
/// ```compile_fail
/// const BAD: tower_pgcache::Domain = tower_pgcache::domain!("Product list");
/// ```
#[macro_export]
macro_rules! domain {
    ($name:expr) => {
        const { $crate::Domain::from_static($name) }
    };
}

/// What sort of thing a scope names. Only scopes of one kind can meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A domain that the application declared.
    Domain,
    /// A resource: the name is its path and query, the entity its authority.
    Uri,
    /// Everything that was stored for a tenant.
    Tenant,
    /// A cache group (RFC 9875): the name is the origin's authority, the entity the group.
    Group,
}

impl Kind {
    /// As in the column `kind` of the log.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Domain => "d",
            Self::Uri => "u",
            Self::Tenant => "t",
            Self::Group => "g",
        }
    }
}

/// Whom a scope concerns.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Tenancy {
    /// The tenant of the request at hand; outside a request, every tenant.
    OfRequest,
    All,
    One(String),
}

/// A [`Domain`] or one entity of it, for one tenant or all: what an answer depends on, or what a change
/// invalidates.
///
/// ```
/// # use tower_pgcache::{Domain, Scope, domain};
/// const PRODUCT: Domain = domain!("product");
/// let whole: Scope = PRODUCT.into();            // of the request's tenant
/// let item = PRODUCT.entity(42);                // one entity of the request's tenant
/// let acme = PRODUCT.entity(42).tenant("acme");
/// let report = PRODUCT.all_tenants();           // reads across tenants
/// # let _ = (whole, item, acme, report);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scope {
    kind: Kind,
    name: Cow<'static, str>,
    tenant: Tenancy,
    entity: Option<String>,
}

impl Scope {
    /// Narrows to one entity.
    #[must_use]
    pub fn entity(mut self, entity: impl fmt::Display) -> Self {
        self.entity = Some(text(entity));
        self
    }

    /// Concerns this tenant, whatever the request says.
    #[must_use]
    pub fn tenant(mut self, tenant: impl fmt::Display) -> Self {
        self.tenant = Tenancy::One(text(tenant));
        self
    }

    /// Concerns every tenant.
    #[must_use]
    pub fn all_tenants(mut self) -> Self {
        self.tenant = Tenancy::All;
        self
    }

    /// A resource at one authority, or at every authority.
    pub(crate) fn uri(authority: Option<&str>, path_and_query: &str) -> Self {
        Self {
            kind: Kind::Uri,
            name: text(path_and_query).into(),
            tenant: Tenancy::OfRequest,
            entity: authority.map(text),
        }
    }

    /// A group of resources of one origin.
    pub(crate) fn group(authority: &str, group: &str) -> Self {
        Self {
            kind: Kind::Group,
            name: text(authority).into(),
            tenant: Tenancy::OfRequest,
            entity: Some(text(group)),
        }
    }

    /// Everything stored for a tenant.
    pub(crate) fn of_tenant(tenant: impl fmt::Display) -> Self {
        Self {
            kind: Kind::Tenant,
            name: Cow::Borrowed(""),
            tenant: Tenancy::One(text(tenant)),
            entity: None,
        }
    }

    /// The scope, with the request's tenant where it had none of its own.
    pub(crate) fn for_tenant(mut self, tenant: Option<&str>) -> Self {
        if self.tenant == Tenancy::OfRequest {
            self.tenant = tenant.map_or(Tenancy::All, |t| Tenancy::One(text(t)));
        }
        self
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The tenant; `None` is every tenant.
    pub(crate) fn tenant_name(&self) -> Option<&str> {
        match &self.tenant {
            Tenancy::OfRequest | Tenancy::All => None,
            Tenancy::One(tenant) => Some(tenant),
        }
    }

    /// The entity; `None` is every entity.
    pub(crate) fn entity_name(&self) -> Option<&str> {
        self.entity.as_deref()
    }

    /// The keys that an invalidation of this scope carries: its own, and those of the summaries that a
    /// dependency on any tenant or any entity looks at. As `pgcache.invalidation_keys`.
    pub(crate) fn invalidation_keys(&self) -> [i64; 4] {
        let name = self.name_hash();
        let (tenant, entity) = (self.tenant_hash(), self.entity_hash());
        let (any_tenant, any_entity) = (hash64("t+"), hash64("e+"));
        [
            name ^ tenant ^ entity,
            name ^ tenant ^ any_entity,
            name ^ any_tenant ^ entity,
            name ^ any_tenant ^ any_entity,
        ]
    }

    /// The keys by which a dependency on this scope finds every invalidation that meets it: a named tenant is
    /// met by its own changes and by those for all tenants; *any* is met by the summary of all. And the key
    /// that stands for all of them when there were too many to remember.
    pub(crate) fn probes(&self) -> impl Iterator<Item = i64> + use<> {
        let name = self.name_hash();
        let tenants = match self.tenant_name() {
            Some(_) => vec![self.tenant_hash(), hash64("t*")],
            None => vec![hash64("t+")],
        };
        let entities = match self.entity_name() {
            Some(_) => vec![self.entity_hash(), hash64("e*")],
            None => vec![hash64("e+")],
        };
        tenants
            .into_iter()
            .flat_map(move |tenant| entities.clone().into_iter().map(move |e| name ^ tenant ^ e))
            .chain([self.coarse_key()])
    }

    /// As `pgcache.coarse_key`.
    fn coarse_key(&self) -> i64 {
        let name = match self.kind {
            Kind::Domain => self.name(),
            Kind::Uri | Kind::Tenant | Kind::Group => "",
        };
        hash64(&format!("{}~{name}", self.kind.as_str()))
    }

    fn name_hash(&self) -> i64 {
        hash64(&format!("{}={}", self.kind.as_str(), self.name))
    }

    fn tenant_hash(&self) -> i64 {
        self.tenant_name().map_or_else(
            || hash64("t*"),
            |tenant| hash64(&format!("t={}", normal_form(tenant))),
        )
    }

    fn entity_hash(&self) -> i64 {
        match (self.kind, self.entity_name()) {
            (_, None) => hash64("e*"),
            (Kind::Domain, Some(entity)) => hash64(&format!("e={}", normal_form(entity))),
            (_, Some(entity)) => hash64(&format!("e={entity}")),
        }
    }
}

/// 64 bits of a hash. As `pgcache.hash64`.
fn hash64(text: &str) -> i64 {
    let mut first = [0; 8];
    first.copy_from_slice(&Sha256::digest(text)[..8]);
    i64::from_be_bytes(first)
}

/// A tenant or entity as scopes compare it: in small letters, without white space, signs, leading zeros, and what
/// the spellings of a UUID differ in. A handler that parses its path takes `7`, `007` and `+7` for one row, and a
/// UUID in any spelling; a change of that row has to meet them all. As `pgcache.normal_form`.
fn normal_form(value: &str) -> String {
    let kept: String = value
        .chars()
        .filter(|c| !matches!(c, '-' | '+' | '{' | '}' | ':' | ' ' | '\t' | '\r' | '\n'))
        .map(|c| c.to_ascii_lowercase())
        .collect();
    kept.replace("urnuuid", "")
        .trim_start_matches('0')
        .to_owned()
}

/// For people: `product`, `product/42`, `product@acme`, `product/42@acme`.
impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Domain => {
                f.write_str(&self.name)?;
                self.entity.iter().try_for_each(|e| write!(f, "/{e}"))?;
            }
            Kind::Uri => write!(
                f,
                "//{}{}",
                self.entity.as_deref().unwrap_or("*"),
                self.name
            )?,
            Kind::Tenant => f.write_str("*")?,
            Kind::Group => write!(f, "group:{}", self.entity.as_deref().unwrap_or("*"))?,
        }
        match &self.tenant {
            Tenancy::One(tenant) => write!(f, "@{tenant}"),
            Tenancy::OfRequest | Tenancy::All => Ok(()),
        }
    }
}

impl From<Domain> for Scope {
    fn from(domain: Domain) -> Self {
        Self {
            kind: Kind::Domain,
            name: domain.0,
            tenant: Tenancy::OfRequest,
            entity: None,
        }
    }
}

impl From<&Domain> for Scope {
    fn from(domain: &Domain) -> Self {
        domain.clone().into()
    }
}

impl From<&Scope> for Scope {
    fn from(scope: &Scope) -> Self {
        scope.clone()
    }
}

/// Text in Postgres holds no NUL. Replacing it makes at most two scopes into one.
fn text(value: impl fmt::Display) -> String {
    let value = value.to_string();
    if value.contains('\0') {
        value.replace('\0', "\u{fffd}")
    } else {
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRODUCT: Domain = domain!("product");

    /// Every combination of tenant and entity: none named, the one, the other.
    fn variants(domain: &Domain) -> Vec<Scope> {
        let mut scopes = Vec::new();
        for tenant in [None, Some("a"), Some("b")] {
            for entity in [None, Some("1"), Some("2")] {
                let mut scope = domain.all_tenants();
                if let Some(t) = tenant {
                    scope = scope.tenant(t);
                }
                if let Some(e) = entity {
                    scope = scope.entity(e);
                }
                scopes.push(scope);
            }
        }
        scopes
    }

    fn meets_by_rule(dependency: &Scope, change: &Scope) -> bool {
        let meets = |a: Option<&str>, b: Option<&str>| a.is_none() || b.is_none() || a == b;
        dependency.kind == change.kind
            && dependency.name == change.name
            && meets(dependency.tenant_name(), change.tenant_name())
            && meets(dependency.entity_name(), change.entity_name())
    }

    fn meets_by_key(dependency: &Scope, change: &Scope) -> bool {
        dependency
            .probes()
            .any(|p| change.invalidation_keys().contains(&p))
    }

    #[test]
    fn the_match_matrix_of_scopes() {
        let mut all = variants(&PRODUCT);
        all.extend(variants(&domain!("price")));
        all.push(Scope::uri(Some("a"), "product"));
        all.push(Scope::uri(None, "product"));
        all.push(Scope::of_tenant("a"));
        let mut met = 0;
        for dependency in &all {
            for change in &all {
                let expected = meets_by_rule(dependency, change);
                assert_eq!(
                    meets_by_key(dependency, change),
                    expected,
                    "{dependency} against {change}"
                );
                met += usize::from(expected);
            }
        }
        // per domain 7 × 7 of 9 × 9 (tenants meet in 7 of 9 cases, entities too); URIs 4; tenant 1
        assert_eq!(met, 2 * 49 + 4 + 1);
    }

    #[test]
    fn parts_that_concatenate_to_the_same_text_have_different_keys() {
        let keys = |s: &Scope| s.invalidation_keys()[0];
        let scopes = [
            PRODUCT.entity("bc").tenant("a"),
            PRODUCT.entity("c").tenant("ab"),
            PRODUCT.entity("=bc").tenant(""),
            PRODUCT.entity("").tenant("abc"),
            PRODUCT.entity("*").all_tenants(),
            PRODUCT.all_tenants(),
            PRODUCT.entity("x").all_tenants(),
            PRODUCT.entity("a").tenant("bc"),
            domain!("product.a").all_tenants(),
        ];
        for (i, a) in scopes.iter().enumerate() {
            for b in &scopes[i + 1..] {
                assert_ne!(keys(a), keys(b), "{a} and {b}");
            }
        }
    }

    #[test]
    fn one_row_spelt_in_many_ways_is_one_entity() {
        let key = |e: &str| PRODUCT.entity(e).all_tenants().invalidation_keys()[0];
        let same = |spellings: &[&str]| {
            for spelling in spellings {
                assert_eq!(key(spelling), key(spellings[0]), "{spelling}");
            }
        };
        same(&["7", "007", "+7", " 7"]);
        same(&["0", "-0", "00"]);
        same(&[
            "67e55044-10b1-426f-9247-bb680e5fe0c8",
            "67E55044-10B1-426F-9247-BB680E5FE0C8",
            "67e5504410b1426f9247bb680e5fe0c8",
            "{67e55044-10b1-426f-9247-bb680e5fe0c8}",
            "urn:uuid:67e55044-10b1-426f-9247-bb680e5fe0c8",
        ]);
        assert_ne!(key("70"), key("7"));
        assert_ne!(key("a.b"), key("ab"));
        // a resource is compared as it is
        let uri = |a: &str| Scope::uri(Some(a), "/").invalidation_keys()[0];
        assert_ne!(uri("a-b"), uri("ab"));
    }

    #[test]
    fn a_request_lends_its_tenant_only_to_scopes_without_one() {
        let of = |s: Scope, t: Option<&str>| s.for_tenant(t).tenant_name().map(str::to_owned);
        assert_eq!(of(PRODUCT.into(), Some("a")).as_deref(), Some("a"));
        assert_eq!(of(PRODUCT.into(), None), None);
        assert_eq!(of(PRODUCT.all_tenants(), Some("a")), None);
        assert_eq!(of(PRODUCT.tenant("b"), Some("a")).as_deref(), Some("b"));
    }

    #[test]
    fn names_that_are_no_domains_are_refused() {
        for bad in ["", "Product", "a b", "ä", "a/b", &"x".repeat(64)] {
            assert!(Domain::try_from(bad).is_err(), "{bad:?}");
        }
        assert!(Domain::try_from("a_b.c-9").is_ok());
    }
}
