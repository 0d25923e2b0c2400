//! [`PgCache`]: the engine's handle.

use std::error::Error as StdError;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bb8::{ManageConnection, Pool};
use http::Uri;
use tokio_postgres::{Client, Config as ConnectConfig, GenericClient, NoTls};

use crate::builder::PgCacheBuilder;
use crate::domain::Scope;
use crate::engine::{Capabilities, Cleaned, Engine, Stats};
use crate::error::Error;
use crate::layer::PgCacheLayer;
use crate::policy::Policy;
use crate::rules::Rules;
use crate::tenant::{Principal, Tenant};

/// A cache in a Postgres database: pool, schema, deadlines, tenant. Clones are handles to one engine.
///
/// Making one needs no runtime, connects to nothing and spawns nothing; the first request (or
/// [`ready`](Self::ready)) connects and creates the schema.
#[derive(Debug, Clone)]
pub struct PgCache {
    pub(crate) engine: Arc<Engine>,
    pub(crate) config: Arc<Config>,
}

/// What the layers of an engine need to know, and what is known of them.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) tenant: Option<Tenant>,
    pub(crate) principal: Option<Principal>,
    pub(crate) cache_status: bool,
    pub(crate) policy: Policy,
    pub(crate) layers: Mutex<Vec<Weak<Rules>>>,
}

impl Config {
    /// A policy with what it inherits, and what is wrong with it.
    pub(crate) fn complete(&self, own: Policy, place: &str) -> (Policy, Vec<String>) {
        complete(
            own,
            &self.policy,
            place,
            self.tenant.as_ref(),
            self.principal.as_ref(),
        )
    }

    fn live_layers(&self) -> Vec<Arc<Rules>> {
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        layers.retain(|layer| layer.strong_count() > 0);
        layers.iter().filter_map(Weak::upgrade).collect()
    }

    pub(crate) fn register(&self, rules: &Arc<Rules>) {
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        layers.retain(|layer| layer.strong_count() > 0);
        layers.push(Arc::downgrade(rules));
    }
}

pub(crate) fn complete(
    own: Policy,
    base: &Policy,
    place: &str,
    tenant: Option<&Tenant>,
    principal: Option<&Principal>,
) -> (Policy, Vec<String>) {
    let policy = own.over(base);
    let mut mistakes = policy.mistakes(tenant, principal);
    // what is inherited is said where it was set
    let inherited = base.mistakes(tenant, principal);
    mistakes.retain(|mistake| !inherited.contains(mistake));
    let placed = mistakes.into_iter().map(|m| format!("{place}: {m}"));
    (policy, placed.collect())
}

impl PgCache {
    /// An engine on the application's own pool, with default settings.
    #[must_use]
    pub fn new<M>(pool: Pool<M>) -> Self
    where
        M: ManageConnection<Connection = Client>,
        M::Error: StdError + Send + Sync + 'static,
    {
        PgCacheBuilder::<Self>::new(pool).with_defaults()
    }

    /// A builder for an engine on the application's own pool.
    #[must_use]
    pub fn builder<M>(pool: Pool<M>) -> PgCacheBuilder<Self>
    where
        M: ManageConnection<Connection = Client>,
        M::Error: StdError + Send + Sync + 'static,
    {
        PgCacheBuilder::new(pool)
    }

    /// An engine with a small pool of its own (1 to 10 connections, no TLS) and default settings, for
    /// applications that use another driver. [`PgCacheBuilder::connecting`] has the settings.
    ///
    /// # Errors
    ///
    /// If `url` is no connection string, or the cache cannot be used: see [`ready`](Self::ready).
    pub async fn connect(url: &str) -> Result<Self, Error> {
        let config: ConnectConfig = url.parse()?;
        let cache = PgCacheBuilder::<Self>::connecting(config, NoTls).with_defaults();
        cache.ready().await?;
        Ok(cache)
    }

    /// A layer of this engine, with the engine's settings.
    #[must_use]
    #[track_caller]
    pub fn layer(&self) -> PgCacheLayer {
        PgCacheLayer::of(self.clone(), None)
    }

    /// An engine that caches nothing and has no database: for tests of an application, and for switching the
    /// cache off by configuration. Whatever is asked of it succeeds.
    #[must_use]
    pub fn disabled() -> Self {
        PgCacheBuilder::<Self>::without_database().with_defaults()
    }

    /// Switches this instance's cache off and on at run time. While it is off, requests pass through, and unsafe
    /// ones still invalidate, for the other instances.
    pub fn set_enabled(&self, on: bool) {
        self.engine.set_enabled(on);
    }

    /// Connects, creates or migrates the schema if `auto_migrate` is on, and makes sure that the cache can be
    /// used. Optional: the first request does it too.
    ///
    /// # Errors
    ///
    /// If the cache cannot be used; [`ErrorKind::Schema`](crate::ErrorKind::Schema) if the schema is missing or of another version.
    pub async fn ready(&self) -> Result<(), Error> {
        self.engine.ready().await
    }

    /// Creates the schema, or brings it up to date, whatever `auto_migrate` says. Needs a role that may create
    /// the schema, or that owns it. Any number of instances may call it at once.
    ///
    /// # Errors
    ///
    /// If the role may not, or the schema is newer than this version of the crate.
    pub async fn migrate(&self) -> Result<(), Error> {
        self.engine.migrate().await
    }

    /// Invalidates scopes in a transaction of its own: what depends on them is gone when this returns.
    ///
    /// Scopes without a tenant concern every tenant.
    ///
    /// ```no_run
    /// # use tower_pgcache::{Domain, PgCache, domain};
    /// # const PRODUCT: Domain = domain!("product");
    /// # async fn f(cache: PgCache) -> Result<(), tower_pgcache::Error> {
    /// cache.invalidate([PRODUCT.entity(42).tenant("acme")]).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// If the invalidation was not committed within the store deadline; after [`ErrorKind::Timeout`](crate::ErrorKind::Timeout) it still
    /// may be.
    pub async fn invalidate<I>(&self, scopes: I) -> Result<(), Error>
    where
        I: IntoIterator,
        I::Item: Into<Scope>,
    {
        self.engine
            .invalidate(scopes.into_iter().map(Into::into).collect())
            .await
    }

    /// Invalidates scopes in the caller's transaction: the commit and the disappearance of every stored answer
    /// that depends on them are one event. Takes no lock that another transaction could wait for.
    ///
    /// The role needs USAGE on the schema and no rights on its tables.
    ///
    /// ```no_run
    /// # use tower_pgcache::{Domain, PgCache, domain, tokio_postgres::Client};
    /// # const PRODUCT: Domain = domain!("product");
    /// # async fn f(cache: PgCache, mut client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let transaction = client.transaction().await?;
    /// transaction.execute("UPDATE product SET price = 5 WHERE id = 42", &[]).await?;
    /// cache.invalidate_in(&transaction, [PRODUCT.entity(42)]).await?;
    /// transaction.commit().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// If Postgres refuses; the transaction is then aborted.
    pub async fn invalidate_in<I>(
        &self,
        client: &impl GenericClient,
        scopes: I,
    ) -> Result<(), Error>
    where
        I: IntoIterator,
        I::Item: Into<Scope>,
    {
        if !self.engine.settings.has_database {
            return Ok(());
        }
        let scopes: Vec<Scope> = scopes.into_iter().map(Into::into).collect();
        self.engine.store.invalidate_in(client, &scopes).await
    }

    /// Invalidates everything stored for a URI, for all tenants. Without an authority (`/products?page=2`) that
    /// is the path on every host. The query is read as the engine's settings say (sorted by default); on a route
    /// with settings of its own for the query, name the URI as these leave it.
    ///
    /// # Errors
    ///
    /// As [`invalidate`](Self::invalidate).
    pub async fn purge_uri(&self, uri: &Uri) -> Result<(), Error> {
        let authority = uri.authority().map(|a| a.as_str().to_ascii_lowercase());
        let query = self.config.policy.query().apply(uri.query());
        let path = crate::request::path_and_query(uri, query.as_deref());
        self.invalidate([Scope::uri(authority.as_deref(), &path)])
            .await
    }

    /// Invalidates everything stored for a tenant.
    ///
    /// # Errors
    ///
    /// As [`invalidate`](Self::invalidate).
    pub async fn purge_tenant(&self, tenant: impl fmt::Display) -> Result<(), Error> {
        self.invalidate([Scope::of_tenant(tenant)]).await
    }

    /// Invalidates everything in the schema, of all applications that share it.
    ///
    /// # Errors
    ///
    /// As [`invalidate`](Self::invalidate).
    pub async fn clear(&self) -> Result<(), Error> {
        self.engine.clear().await
    }

    /// Removes entries that have expired or have been invalid for a while, and those of least use where there is more than
    /// [`max_bytes`](PgCacheBuilder::max_bytes) or [`max_entries`](PgCacheBuilder::max_entries); prunes the invalidation log;
    /// vacuums if enough has gone. All in small steps. An instance does this in the background every `cleanup_interval`.
    ///
    /// In SQL, for `pg_cron`: `CALL pgcache.cleanup()`.
    ///
    /// # Errors
    ///
    /// If the database fails in between; what was removed is removed.
    pub async fn cleanup(&self) -> Result<Cleaned, Error> {
        self.engine.cleanup().await
    }

    /// Waits until nothing is left to write: no body on its way into the cache, no answer queued, no
    /// invalidation overdue. Does not end while the database does not accept an overdue invalidation.
    pub async fn settled(&self) {
        self.engine.settled().await;
    }

    /// Writes what is queued (for at most the store deadline) and stops: from then on requests pass through,
    /// and only unsafe ones still invalidate.
    pub async fn close(&self) {
        self.engine.close().await;
    }

    /// What this instance has done so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut stats = self.engine.stats();
        for rules in self.config.live_layers() {
            let unused = rules.unused();
            stats
                .unused_layers
                .extend(unused.layer.map(ToString::to_string));
            stats
                .unmatched_routes
                .extend(unused.routes.into_iter().map(str::to_owned));
        }
        stats
    }

    /// What is active, as found in the database.
    ///
    /// # Errors
    ///
    /// If the cache cannot be used: see [`ready`](Self::ready).
    pub async fn capabilities(&self) -> Result<Capabilities, Error> {
        self.engine.capabilities(self.config.tenant.is_some()).await
    }
}
