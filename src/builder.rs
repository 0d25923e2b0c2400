//! [`PgCacheBuilder`]: the settings of an engine, and of a layer with a table of routes.

use std::error::Error as StdError;
use std::fmt;
use std::marker::PhantomData;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bb8::{ManageConnection, Pool};
use bb8_postgres::PostgresConnectionManager;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{Client, Config as ConnectConfig, Socket};

use crate::cache::{Config, PgCache, complete};
use crate::engine::{Engine, Line, Settings};
use crate::error::ConfigError;
use crate::layer::PgCacheLayer;
use crate::policy::{Policy, policy_setters};
use crate::route::{Route, RouteTable};
use crate::store::{Bounds, Database, Lazy, Nowhere, SchemaName, Source, check_name};
use crate::tenant::{Principal, Tenant};

/// Builds a [`PgCache`] or, with a table of routes, a [`PgCacheLayer`].
///
/// The settings of routes (`ttl`, `domain`, …) are the defaults for every route of the engine.
pub struct PgCacheBuilder<T = PgCache> {
    source: SourceSpec,
    schema: String,
    tenant: Option<Tenant>,
    principal: Option<Principal>,
    cache_status: bool,
    default_ttl: Duration,
    lookup_connections: Option<usize>,
    settings: Settings,
    policy: Policy,
    routes: Vec<Route>,
    builds: PhantomData<fn() -> T>,
}

/// One is no split. More make lookups dear, since each locks all of them: beyond 16 tables and indexes such locks are no
/// longer a backend's own affair (PostgreSQL 14 to 17).
const PARTITIONS: RangeInclusive<u32> = 2..=32;

/// What each takes on the disk without an answer, 0.1 MB, is to be little beside what it holds.
const BYTES_OF_A_PARTITION: i64 = 1 << 20;

/// A moment so far away that no clock can tell it must not come out of a setting.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);

/// The application's pool, or what a pool of our own is made of.
enum SourceSpec {
    Shared(Box<dyn Source>),
    Own {
        connections: RangeInclusive<u32>,
        make: Box<dyn FnOnce(RangeInclusive<u32>) -> Box<dyn Source>>,
    },
}

impl<T> PgCacheBuilder<T> {
    /// On the application's own pool.
    pub fn new<M>(pool: Pool<M>) -> Self
    where
        M: ManageConnection<Connection = Client>,
        M::Error: StdError + Send + Sync + 'static,
    {
        Self::with_source(SourceSpec::Shared(Box::new(pool)))
    }

    /// On a pool of its own, which is made when it is first used. For applications that use another driver.
    pub fn connecting<Tls>(config: ConnectConfig, tls: Tls) -> Self
    where
        Tls: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
        Tls::Stream: Send + Sync,
        Tls::TlsConnect: Send,
        <Tls::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        let make = move |connections: RangeInclusive<u32>| {
            let manager = PostgresConnectionManager::new(config, tls);
            Box::new(Lazy::new(move || {
                Pool::builder()
                    .min_idle(*connections.start())
                    .max_size(*connections.end())
                    .build_unchecked(manager.clone())
            })) as Box<dyn Source>
        };
        Self::with_source(SourceSpec::Own {
            connections: 1..=10,
            make: Box::new(make),
        })
    }

    pub(crate) fn without_database() -> Self {
        let mut builder = Self::with_source(SourceSpec::Shared(Box::new(Nowhere)));
        builder.settings.has_database = false;
        builder
    }

    fn with_source(source: SourceSpec) -> Self {
        Self {
            source,
            schema: "pgcache".to_owned(),
            tenant: None,
            principal: None,
            cache_status: true,
            default_ttl: Duration::from_secs(300),
            lookup_connections: None,
            settings: Settings {
                has_database: true,
                drops_schema: false,
                lookup_deadline: Duration::from_millis(100),
                store_deadline: Duration::from_secs(5),
                change_deadline: Duration::from_secs(2),
                cleanup_interval: Duration::from_secs(60),
                auto_migrate: true,
                durable: false,
                owner: None,
                partitions: None,
                max_log_rows: 1_000_000,
                bounds: Bounds {
                    entries: 1_000_000,
                    bytes: 1 << 30,
                },
                queue_entries: 1024,
                queue_bytes: 32 << 20,
                fill_bytes: 64 << 20,
                compress_from: None,
                memory_bytes: 64 << 20,
                lease_wait: Duration::from_secs(5),
                lease_life: Duration::from_secs(10),
                doorbell: None,
            },
            policy: Policy::default(),
            routes: Vec::new(),
            builds: PhantomData,
        }
    }

    /// How many connections a pool of its own keeps (at least) and makes (at most). Only with
    /// [`connecting`](Self::connecting).
    ///
    /// Defaults to `1..=10`.
    #[must_use]
    pub fn connections(mut self, range: RangeInclusive<u32>) -> Self {
        if let SourceSpec::Own { connections, .. } = &mut self.source {
            *connections = range;
        }
        self
    }

    /// The schema in the database, so that several applications can share one: 1 to 63 characters out of `a-z`,
    /// `0-9` and `_`.
    ///
    /// Defaults to `pgcache`.
    #[must_use]
    pub fn schema(mut self, name: impl Into<String>) -> Self {
        self.schema = name.into();
        self
    }

    /// Where the tenant of a request is found. With one, every tenant has its own entries, and a request without
    /// a tenant is not cached.
    ///
    /// Defaults to none: there are no tenants.
    #[must_use]
    pub fn tenant(mut self, tenant: Tenant) -> Self {
        self.tenant = Some(tenant);
        self
    }

    /// Where the principal of a request is found, for routes that are
    /// [`per_principal`](crate::PgCacheLayer::per_principal).
    ///
    /// Defaults to none.
    #[must_use]
    pub fn principal(mut self, principal: Principal) -> Self {
        self.principal = Some(principal);
        self
    }

    /// Whether answers carry `Cache-Status` (RFC 9211).
    ///
    /// Defaults to `true`.
    #[must_use]
    pub fn cache_status(mut self, on: bool) -> Self {
        self.cache_status = on;
        self
    }

    /// The ttl of rows of the table of routes that have none.
    ///
    /// Defaults to 300 seconds.
    #[must_use]
    pub fn default_ttl(mut self, ttl: Duration) -> Self {
        self.default_ttl = ttl;
        self
    }

    /// How long a request waits for the store before the inner service answers it; at most a day.
    ///
    /// Defaults to 100 ms.
    #[must_use]
    pub fn lookup_deadline(mut self, deadline: Duration) -> Self {
        self.settings.lookup_deadline = deadline;
        self
    }

    /// How many connections lookups use at most, at the same time. Each carries many lookups in one statement; one
    /// is borrowed from the pool while there is work, and a further one only if the others do not keep up.
    ///
    /// The cache also works through a pooler that gives sessions away after each transaction, such as PgBouncer; there
    /// Postgres plans every lookup anew, which takes it about three times as long. (pgAgroal in that mode is not to be used:
    /// it tells its clients the numbers of server processes that are not theirs.)
    ///
    /// Defaults to half of the pool's maximal size, but at least 1 and at most 4.
    #[must_use]
    pub fn lookup_connections(mut self, connections: usize) -> Self {
        self.lookup_connections = Some(connections);
        self
    }

    /// How long anything else may take: storing, invalidating, one step of housekeeping. At most a day.
    ///
    /// Defaults to 5 s.
    #[must_use]
    pub fn store_deadline(mut self, deadline: Duration) -> Self {
        self.settings.store_deadline = deadline;
        self
    }

    /// How long an unsafe request waits for its invalidation while the store does not accept it. Then its answer
    /// goes out; the invalidation is tried on in the background, and this instance serves nothing that it
    /// concerns until it is through. At most a day.
    ///
    /// Defaults to 2 s.
    #[must_use]
    pub fn change_deadline(mut self, deadline: Duration) -> Self {
        self.settings.change_deadline = deadline;
        self
    }

    /// How often expired and invalid entries are removed, by one instance at a time. (More is done at once where
    /// [`max_bytes`](Self::max_bytes) or [`max_entries`](Self::max_entries) asks for it.) Zero switches the background task
    /// off; call [`PgCache::cleanup`] or, in SQL, `CALL pgcache.cleanup()` yourself.
    ///
    /// Defaults to 60 s.
    #[must_use]
    pub fn cleanup_interval(mut self, interval: Duration) -> Self {
        self.settings.cleanup_interval = interval;
        self
    }

    /// Whether the schema is created, or brought up to date, on first use. Without, call
    /// [`PgCache::migrate`] with a role that may, and give the application's role
    /// `USAGE` on the schema, `SELECT, INSERT, UPDATE, DELETE` on its tables and `EXECUTE` on its routines.
    ///
    /// Defaults to `true`.
    #[must_use]
    pub fn auto_migrate(mut self, on: bool) -> Self {
        self.settings.auto_migrate = on;
        self
    }

    /// Whether the tables survive a crash or failover of the server (LOGGED), at the cost of writing the WAL.
    /// Counts when the schema is created.
    ///
    /// Defaults to `false` (UNLOGGED): a crash empties the cache.
    #[must_use]
    pub fn durable(mut self, on: bool) -> Self {
        self.settings.durable = on;
        self
    }

    /// The role that shall own the schema and the functions in it, which run with its rights when somebody writes to a
    /// watched table. Best a role that can do nothing else (`CREATE ROLE pgcache NOLOGIN`), of which the
    /// connected role is a member. The connected role is granted what a cache needs. Counts when the schema is
    /// created.
    ///
    /// Defaults to the role that is connected: that of the application, which is fine, unless it is a superuser.
    #[must_use]
    pub fn owner(mut self, role: impl Into<String>) -> Self {
        self.settings.owner = Some(role.into());
        self
    }

    /// Splits the table of entries into this many, 2 to 32, by the hash of the key. Counts when the schema is created: one that
    /// exists stays as it is, which is logged and in [`Capabilities::warnings`](crate::Capabilities::warnings).
    ///
    /// For very large caches, of many GB: VACUUM then goes over one table, and one index, at a time, and
    /// autovacuum over several at once; nothing gets faster by it. Of 500,000 answers of 1 KB of which a fifth
    /// was rewritten VACUUM takes 0.6 s in one table, and 0.06 to 0.1 s in each of 8 partitions. A lookup of one key takes 10 µs
    /// longer with 8 partitions, and 30 µs with 32; of 32 keys, 10 µs and 20 µs for each (28 µs with one table). Storing
    /// one answer takes 2 ms with 16 partitions and 4 ms with 32, instead of 1.5 ms; 32 at once take 6 ms, instead of 3 ms.
    /// (PostgreSQL 15, 2 cores.)
    ///
    /// [`max_bytes`](Self::max_bytes) and [`max_entries`](Self::max_entries) count all partitions together; of `max_bytes`, each
    /// needs 1 MiB.
    ///
    /// Defaults to none: one table.
    #[must_use]
    pub fn partitions(mut self, count: u32) -> Self {
        self.settings.partitions = Some(count);
        self
    }

    /// How many rows the folded invalidation log may have. Beyond that the oldest go, and entries from before
    /// them count as invalid.
    ///
    /// Defaults to 1,000,000.
    #[must_use]
    pub fn max_log_rows(mut self, rows: u32) -> Self {
        self.settings.max_log_rows = rows.into();
        self
    }

    /// How many bytes of answers the database may hold, of all instances: heads and bodies, and a flat rate for the rest.
    /// Beyond that those of least use go, by how often and how lately they were asked for. On the disk, the tables
    /// stay within twice of it, provided that the role may vacuum (it owns the tables, is a member of
    /// [`owner`](Self::owner), or has `MAINTAIN`) or that autovacuum keeps up; else less is stored. (An instance knows what
    /// there is, and not what the others are storing at the time: that may come on top.)
    ///
    /// An answer of more than a tenth of it is not stored. Instances that share a schema should agree on it.
    ///
    /// Defaults to 1 GiB.
    #[must_use]
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.settings.bounds.bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self
    }

    /// How many answers the database may hold, of all instances. See [`max_bytes`](Self::max_bytes). (For URIs whose
    /// answers vary, one more counts, which names the fields.)
    ///
    /// Defaults to 1,000,000.
    #[must_use]
    pub fn max_entries(mut self, entries: u64) -> Self {
        self.settings.bounds.entries = i64::try_from(entries).unwrap_or(i64::MAX);
        self
    }

    /// From which size on bodies are stored compressed (Zstandard), in bytes. What is served is the same, byte for byte. Answers
    /// that have a `Content-Encoding` are stored as they are, and so are bodies that do not get smaller by an eighth.
    ///
    /// Of 64 KB of JSON a quarter is stored, 14.7 KB. To compress it takes 0.16 ms of a processor, in the background; to unpack it
    /// 0.055 ms, for each hit that is not from memory, which the shorter way through the database makes up for (0.35 ms
    /// for all of the hit, with or without). Of 4 KB a third is stored, for 13 µs and 6 µs. What cannot be compressed costs
    /// 14 µs in vain, and is stored as it is. (PostgreSQL 15, 2 cores; Zstandard's level 3.) `pgcache.entries` says how long what
    /// is compressed is `unpacked`.
    ///
    /// [`max_bytes`](Self::max_bytes) counts what is stored; what an answer may have at most, a tenth of it, and
    /// [`memory`](Self::memory) count what is served.
    ///
    /// All instances that share a schema need the feature, whether they have this setting or not: to one without it, a
    /// compressed answer is a miss, and is replaced.
    ///
    /// Needs the feature `compression`; without it, this is a [`ConfigError`].
    ///
    /// Defaults to none: everything is stored as it is.
    #[must_use]
    pub fn compress_from(mut self, bytes: usize) -> Self {
        self.settings.compress_from = Some(bytes);
        self
    }

    /// How much may wait to be stored: answers, and their bytes. What comes when the queue is full is not stored.
    ///
    /// Defaults to 1,024 answers and 32 MiB.
    #[must_use]
    pub fn store_queue(mut self, answers: usize, bytes: usize) -> Self {
        (self.settings.queue_entries, self.settings.queue_bytes) = (answers, bytes);
        self
    }

    /// How many bytes of bodies may be on their way at once: read from handlers and not yet by clients, or not yet known
    /// to be good (answers to requests that change something, and those made from what a replica has). Bodies beyond that
    /// pass through unstored, at the client's pace.
    ///
    /// Defaults to 64 MiB.
    #[must_use]
    pub fn fill_memory(mut self, bytes: usize) -> Self {
        self.settings.fill_bytes = bytes;
        self
    }

    /// How long a request waits for an answer that another request, on any instance, is having computed already. Then
    /// it asks the inner service itself. Zero: requests do not wait for each other. At most a day.
    ///
    /// Defaults to 5 s.
    #[must_use]
    pub fn lease_wait(mut self, at_most: Duration) -> Self {
        self.settings.lease_wait = at_most;
        self
    }

    /// Listens, on a connection of its own, for commits that invalidate, so that with [`max_staleness`](Self::max_staleness)
    /// answers in memory are given up sooner than they have to. Makes commits that invalidate send a bare NOTIFY, which takes
    /// a lock of the whole database until they have ended, and cannot be part of a prepared transaction;
    /// `SELECT pgcache.doorbell(false)` ends that.
    ///
    /// Losing the connection costs latency only. Not through PgBouncer in transaction mode.
    ///
    /// Defaults to none.
    #[must_use]
    pub fn listen<Tls>(mut self, config: ConnectConfig, tls: Tls) -> Self
    where
        Tls: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
        Tls::Stream: Send + Sync,
        Tls::TlsConnect: Send,
        <Tls::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        self.settings.doorbell = Some(Arc::new(Line { config, tls }));
        self
    }

    /// After what time the other instances take it that the one that is computing an answer has died. Longer than
    /// handlers take; at most a day.
    ///
    /// Defaults to 10 s.
    #[must_use]
    pub fn lease_life(mut self, life: Duration) -> Self {
        self.settings.lease_life = life;
        self
    }

    /// How many bytes of answers this instance keeps in memory, besides what the database holds. What is in memory is
    /// checked against the database for each request (many at once with one small statement), or as often as
    /// [`max_staleness`](Self::max_staleness) says. Zero: nothing is kept.
    ///
    /// Defaults to 64 MiB.
    #[must_use]
    pub fn memory(mut self, bytes: usize) -> Self {
        self.settings.memory_bytes = bytes;
        self
    }

    policy_setters!();

    fn policy_mut(&mut self) -> &mut Policy {
        &mut self.policy
    }

    fn mistakes(&self) -> Vec<String> {
        let (_, mut mistakes) = complete(
            self.policy.clone(),
            &Policy::default(),
            "engine",
            self.tenant.as_ref(),
            self.principal.as_ref(),
        );
        let mut wrong = Vec::from_iter(check_name(&self.schema).err());
        wrong.extend(self.tenant.as_ref().and_then(Tenant::mistake));
        let durations = [
            ("default_ttl", self.default_ttl),
            ("lookup_deadline", self.settings.lookup_deadline),
            ("store_deadline", self.settings.store_deadline),
            ("change_deadline", self.settings.change_deadline),
            ("lease_life", self.settings.lease_life),
        ];
        for (name, duration) in durations {
            if duration.is_zero() {
                wrong.push(format!(
                    "{name}(0); use a duration of at least a millisecond"
                ));
            }
        }
        let waits = [
            ("lookup_deadline", self.settings.lookup_deadline),
            ("store_deadline", self.settings.store_deadline),
            ("change_deadline", self.settings.change_deadline),
            ("lease_wait", self.settings.lease_wait),
            ("lease_life", self.settings.lease_life),
        ];
        for (name, duration) in waits {
            if duration > LONGEST_WAIT {
                wrong.push(format!(
                    "{name}(…) of more than a day; use what a client would wait for"
                ));
            }
        }
        if self.settings.max_log_rows == 0 {
            wrong.push("max_log_rows(0); use at least 1".to_owned());
        }
        if self.settings.bounds.bytes == 0 {
            wrong.push("max_bytes(0); use at least a few MiB".to_owned());
        }
        if self.settings.bounds.entries == 0 {
            wrong.push("max_entries(0); use at least 1".to_owned());
        }
        wrong.extend(self.partitions_mistake());
        wrong.extend(self.compression_mistake());
        if self.lookup_connections == Some(0) {
            wrong.push("lookup_connections(0); use at least 1".to_owned());
        }
        if let SourceSpec::Own { connections, .. } = &self.source {
            if connections.is_empty() || *connections.end() == 0 {
                wrong.push(format!(
                    "connections({connections:?}): the range is empty; use for example 1..=10"
                ));
            }
        }
        mistakes.extend(
            wrong
                .into_iter()
                .map(|mistake| format!("engine: {mistake}")),
        );
        mistakes
    }

    fn partitions_mistake(&self) -> Option<String> {
        let count = self.settings.partitions?;
        let room = self.settings.bounds.bytes / BYTES_OF_A_PARTITION;
        let mend = if !PARTITIONS.contains(&count) {
            let (least, most) = PARTITIONS.into_inner();
            format!("use {least} to {most}, or leave it out for one table")
        } else if i64::from(count) > room {
            format!("use a max_bytes of at least {count} MiB, or leave it out for one table")
        } else {
            return None;
        };
        Some(format!("partitions({count}); {mend}"))
    }

    fn compression_mistake(&self) -> Option<String> {
        let least = self.settings.compress_from?;
        let largest = usize::try_from(self.settings.bounds.bytes / 10).unwrap_or(usize::MAX);
        let mend = if !cfg!(feature = "compression") {
            "needs the feature `compression` of tower-pgcache".to_owned()
        } else if least == 0 {
            "use at least 1, better some thousand".to_owned()
        } else if least > largest {
            format!(
                "what is larger than a tenth of max_bytes is not stored at all; use at most {largest}"
            )
        } else {
            return None;
        };
        Some(format!("compress_from({least}); {mend}"))
    }

    /// Settings that were not checked, or that need no check.
    fn assemble(self, schema: &SchemaName) -> PgCache {
        let source = match self.source {
            SourceSpec::Shared(source) => source,
            SourceSpec::Own { connections, make } => make(connections),
        };
        PgCache {
            engine: Engine::new(
                Database::new(source, schema, self.lookup_connections),
                self.settings,
            ),
            config: Arc::new(Config {
                tenant: self.tenant,
                principal: self.principal,
                cache_status: self.cache_status,
                policy: self.policy,
                layers: Mutex::default(),
            }),
        }
    }

    fn checked_schema(&self) -> Result<SchemaName, ConfigError> {
        check_name(&self.schema).map_err(|mistake| ConfigError::one(format!("engine: {mistake}")))
    }
}

impl PgCacheBuilder<PgCache> {
    /// The engine. Connects to nothing and spawns nothing.
    ///
    /// # Errors
    ///
    /// All mistakes in the settings at once.
    pub fn build(self) -> Result<PgCache, ConfigError> {
        ConfigError::check(self.mistakes())?;
        let schema = self.checked_schema()?;
        Ok(self.assemble(&schema))
    }

    pub(crate) fn with_defaults(self) -> PgCache {
        self.assemble(&SchemaName::default())
    }

    /// With a schema of its own, which is dropped when the cache is closed.
    #[cfg(feature = "test-util")]
    pub(crate) fn ephemeral(mut self, schema: &SchemaName) -> PgCache {
        self.settings.drops_schema = true;
        self.assemble(schema)
    }
}

impl PgCacheBuilder<PgCacheLayer> {
    /// Adds a row to the table of routes. Requests that no row matches have the engine's settings.
    #[must_use]
    pub fn route(mut self, route: Route) -> Self {
        self.routes.push(route);
        self
    }

    /// The layer. Connects to nothing and spawns nothing.
    ///
    /// # Errors
    ///
    /// All mistakes in the settings and in the table at once.
    #[track_caller]
    pub fn build(mut self) -> Result<PgCacheLayer, ConfigError> {
        let mut mistakes = self.mistakes();
        let routes = std::mem::take(&mut self.routes);
        let complete = |own: Policy, place: &str| {
            complete(
                own,
                &self.policy,
                place,
                self.tenant.as_ref(),
                self.principal.as_ref(),
            )
        };
        let table = RouteTable::new(routes, complete, self.default_ttl, &mut mistakes);
        ConfigError::check(mistakes)?;
        let schema = self.checked_schema()?;
        Ok(PgCacheLayer::of(self.assemble(&schema), Some(table)))
    }
}

impl<T> fmt::Debug for PgCacheBuilder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgCacheBuilder")
            .field("schema", &self.schema)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
