//! [`Tenant`]: how the cache learns whose request it is.

use std::fmt;
use std::sync::Arc;

use http::Extensions;

/// Where the tenant of a request is found. Each tenant has entries of its own, and a request without a tenant
/// is not cached.
#[derive(Clone)]
pub struct Tenant(Arc<Finder>);

type Finder = dyn Fn(&Extensions) -> Option<String> + Send + Sync;

impl Tenant {
    /// The tenant out of a request extension that the application's authentication layer inserts.
    ///
    /// This is also the *witness* that somebody has authenticated the request: with
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
        Self(Arc::new(move |extensions| extensions.get::<T>().map(&name)))
    }

    /// `None` also for a name with a NUL, which text in Postgres cannot hold.
    pub(crate) fn of(&self, extensions: &Extensions) -> Option<String> {
        (self.0)(extensions).filter(|name| !name.contains('\0'))
    }
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tenant::extension")
    }
}
