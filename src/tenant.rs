//! [`Tenant`] and [`Principal`]: how the cache learns whose request it is.
//!
//! 1. What the application's authentication layer put into the request's extensions is a *witness*: somebody has
//!    vouched for the request.
//! 2. What a client controls is none, and is named accordingly. With credentials on the request it needs a
//!    witness beside it (`authenticated_by`).
//! 3. A tenant or principal that is missing is never replaced by anything.

use std::fmt;
use std::sync::Arc;

use http::HeaderName;

use crate::head::RequestHead;
use crate::request::{authority, is_text_for_postgres};

type Finder = dyn Fn(&RequestHead<'_>) -> Option<String> + Send + Sync;

/// What a source says of a request.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Somebody was there, even if the name is of no use.
    pub(crate) is_present: bool,
    /// `None` also for a name that is empty or that Postgres cannot hold.
    pub(crate) name: Option<String>,
}

impl Found {
    fn new(name: Option<String>) -> Self {
        Self {
            is_present: name.is_some(),
            name: name.filter(|name| is_text_for_postgres(name)),
        }
    }
}

/// Where the tenant of a request is found. Each tenant has entries of its own, and a request without a tenant
/// is not cached.
#[derive(Clone)]
pub struct Tenant {
    find: Arc<Finder>,
    what: &'static str,
    is_witness: bool,
    /// What is wrong with it, if anything.
    mistake: Option<String>,
}

impl Tenant {
    /// The tenant out of a request extension that the application's authentication layer inserts. Recommended.
    ///
    /// This is also the witness that somebody has authenticated the request: with
    /// [`shared_by_tenant`](crate::PgCacheLayer::shared_by_tenant), answers to requests with credentials are
    /// shared by those whose extension names the same tenant. So the cache has to sit *inside* the layer that
    /// inserts the extension: in axum the layer added last runs first, so add the cache before it.
    ///
    /// ```
    /// # use tower_pgcache::Tenant;
    /// #[derive(Clone)]
    /// struct TenantId(u64);
    /// let tenant = Tenant::extension(|t: &TenantId| t.0.to_string());
    /// # let _ = tenant;
    /// ```
    #[must_use]
    pub fn extension<T: Clone + Send + Sync + 'static>(
        name: impl Fn(&T) -> String + Send + Sync + 'static,
    ) -> Self {
        let find = move |head: &RequestHead<'_>| head.extensions().get::<T>().map(&name);
        Self {
            find: Arc::new(find),
            what: "Tenant::extension",
            is_witness: true,
            mistake: None,
        }
    }

    /// The tenant as the client names it in a header field. Only behind a proxy that sets or checks the field:
    /// whoever can send it chooses the tenant. A field that is given twice names none.
    #[must_use]
    pub fn trusted_header(name: &'static str) -> Self {
        let parsed = HeaderName::try_from(name);
        let mistake = parsed.is_err().then(|| {
            format!("tenant(Tenant::trusted_header({name:?})) is no name of a header field; use for example \"x-tenant\"")
        });
        let tenant = Self::client_controlled("Tenant::trusted_header", move |head| {
            let mut values = head.headers().get_all(parsed.as_ref().ok()?).iter();
            match (values.next(), values.next()) {
                (Some(value), None) => value.to_str().ok().map(str::to_owned),
                _ => None,
            }
        });
        Self { mistake, ..tenant }
    }

    pub(crate) fn mistake(&self) -> Option<String> {
        self.mistake.clone()
    }

    /// The tenant as a label of the host name, counted from the left: 0 is `acme` in `acme.example.com`. Only
    /// where somebody checks the host: whoever can send `Host` chooses the tenant.
    #[must_use]
    pub fn trusted_host_label(index: usize) -> Self {
        Self::client_controlled("Tenant::trusted_host_label", move |head| {
            let authority = authority(head.uri(), head.headers())?;
            let host = authority
                .rsplit_once(':')
                .map_or(&*authority, |(host, _)| host);
            let is_address = host.starts_with('[')
                || host
                    .split('.')
                    .all(|l| l.bytes().all(|b| b.is_ascii_digit()));
            if is_address {
                None
            } else {
                host.split('.').nth(index).map(str::to_owned)
            }
        })
    }

    /// The tenant as a parameter of the path. Only where the handler checks that the client may see it: whoever
    /// can send the path chooses the tenant.
    #[must_use]
    pub fn trusted_path_param(name: &'static str) -> Self {
        Self::client_controlled("Tenant::trusted_path_param", move |head| head.param(name))
    }

    /// The tenant as the application finds it. Counts as controlled by the client, since the cache cannot know
    /// better: with credentials on the request it needs a witness (`authenticated_by`).
    #[must_use]
    pub fn from_fn(
        find: impl Fn(&RequestHead<'_>) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        Self::client_controlled("Tenant::from_fn", find)
    }

    fn client_controlled(
        what: &'static str,
        find: impl Fn(&RequestHead<'_>) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        Self {
            find: Arc::new(find),
            what,
            is_witness: false,
            mistake: None,
        }
    }

    pub(crate) fn of(&self, head: &RequestHead<'_>) -> Found {
        Found::new((self.find)(head))
    }

    pub(crate) fn is_witness(&self) -> bool {
        self.is_witness
    }

    pub(crate) fn what(&self) -> &'static str {
        self.what
    }
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }
}

/// Who is asking: found where the application's authentication layer put it. For routes whose answers are
/// [`per_principal`](crate::PgCacheLayer::per_principal).
#[derive(Clone)]
pub struct Principal(Arc<Finder>);

impl Principal {
    /// The principal out of a request extension that the application's authentication layer inserts. Like
    /// [`Tenant::extension`], this is a witness.
    ///
    /// ```
    /// # use tower_pgcache::Principal;
    /// #[derive(Clone)]
    /// struct Claims { sub: String }
    /// let principal = Principal::extension(|c: &Claims| c.sub.clone());
    /// # let _ = principal;
    /// ```
    #[must_use]
    pub fn extension<T: Clone + Send + Sync + 'static>(
        name: impl Fn(&T) -> String + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(move |head| {
            head.extensions().get::<T>().map(&name)
        }))
    }

    pub(crate) fn of(&self, head: &RequestHead<'_>) -> Found {
        Found::new((self.0)(head))
    }
}

impl fmt::Debug for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Principal::extension")
    }
}
