//! Tables, views and domains that invalidate by themselves: [`Watch`] and the methods of [`PgCache`] that set it up.
//! Everything here is also an SQL function of the schema, for those who administrate from there.

use std::time::Duration;

use crate::cache::PgCache;
use crate::domain::Domain;
use crate::error::Error;

/// A table to be [watched](PgCache::watch): from then on every transaction that changes its rows, by whatever
/// program, invalidates what depends on them, at its commit.
///
/// ```no_run
/// # use tower_pgcache::{Domain, PgCache, Watch, domain};
/// # const PRODUCT: Domain = domain!("product");
/// # async fn f(cache: PgCache) -> Result<(), tower_pgcache::Error> {
/// cache
///     .watch(Watch::table("product").domain(PRODUCT).tenant_column("tenant_id").entity_column("id"))
///     .await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "has no effect until it is given to `PgCache::watch`"]
pub struct Watch {
    table: String,
    domain: Option<Domain>,
    tenant_column: Option<String>,
    entity_column: Option<String>,
    columns: Option<Vec<String>>,
    max_entities: u32,
    always: bool,
}

impl Watch {
    /// A table, as one writes it in SQL: `product`, `shop.product`, `"Product"`.
    pub fn table(name: impl Into<String>) -> Self {
        Self {
            table: name.into(),
            domain: None,
            tenant_column: None,
            entity_column: None,
            columns: None,
            max_entities: 1000,
            always: false,
        }
    }

    /// The domain that a change of the table is a change of.
    ///
    /// Defaults to the name of the table, without `tv_` or `tb_`.
    pub fn domain(mut self, domain: Domain) -> Self {
        self.domain = Some(domain);
        self
    }

    /// The column that says whose row it is: of an integer, uuid or text type. A change concerns the row's old and
    /// new tenant; NULL means every tenant.
    ///
    /// Defaults to none: every change concerns every tenant.
    pub fn tenant_column(mut self, column: impl Into<String>) -> Self {
        self.tenant_column = Some(column.into());
        self
    }

    /// The column that says which entity of the domain the row is, or belongs to; mostly the primary key. Answers
    /// for other entities stay.
    ///
    /// Defaults to none: every change concerns the whole domain.
    pub fn entity_column(mut self, column: impl Into<String>) -> Self {
        self.entity_column = Some(column.into());
        self
    }

    /// An update that changes none of these columns, nor the tenant or the entity, invalidates nothing. Needs a
    /// primary key.
    ///
    /// Defaults to all columns.
    pub fn columns<C: Into<String>>(mut self, columns: impl IntoIterator<Item = C>) -> Self {
        self.columns = Some(columns.into_iter().map(Into::into).collect());
        self
    }

    /// A statement that changes more entities than this invalidates every entity of their tenants.
    ///
    /// Defaults to 1000.
    pub fn max_entities(mut self, number: u32) -> Self {
        self.max_entities = number;
        self
    }

    /// Also what logical replication applies to the table here invalidates, row by row. Needs a role that owns the
    /// table.
    ///
    /// Defaults to no.
    pub fn always(mut self) -> Self {
        self.always = true;
        self
    }
}

impl From<&str> for Watch {
    fn from(table: &str) -> Self {
        Self::table(table)
    }
}

/// How [`PgCache::adopt_fraiseql`] went for one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Adopted {
    /// The table, or the rule.
    pub item: String,
    /// `adopted`, or why not.
    pub outcome: String,
}

impl PgCache {
    /// Watches a table, with its partitions and the tables that inherit from it. Call it again to change settings, and after adding
    /// partitions, renaming columns or changing their types; if there is nothing to do, it takes no lock. Otherwise
    /// it waits for the transactions that are writing to the table, and they for it, as `CREATE TRIGGER` does.
    ///
    /// The role needs the TRIGGER privilege on the table, and to own the schema of the cache, or EXECUTE on
    /// `pgcache.watch`, `pgcache.record_watch` and USAGE on the schema. Roles that write to the table need nothing.
    ///
    /// What is not seen: what foreign tables change, `ATTACH`, `DETACH` and `DROP` of partitions, `DROP TABLE`,
    /// and sessions with `session_replication_role = replica`, unless [`always`](Watch::always). The view
    /// `pgcache.watched_tables` shows what is watched, and what is amiss.
    ///
    /// # Errors
    ///
    /// If the table cannot be watched: the message says why and what to do. If the lock was not to be had within
    /// the store deadline.
    pub async fn watch(&self, watch: impl Into<Watch>) -> Result<(), Error> {
        let Watch {
            table,
            domain,
            tenant_column,
            entity_column,
            columns,
            max_entities,
            always,
        } = watch.into();
        let max_entities = i32::try_from(max_entities).unwrap_or(i32::MAX);
        let domain = domain.map(|domain| domain.to_string());
        self.administer(
            "SELECT pgcache.watch($1::text::regclass, $2::text, $3::text::name, $4::text::name, $5::text[]::name[], $6::int, $7::bool)::text",
            move |p| {
                p.text(table).text(domain).text(tenant_column).text(entity_column);
                p.texts(columns).int(max_entities).bool(always);
            },
        )
        .await
        .map(drop)
    }

    /// Ends [`watch`](Self::watch), and invalidates the domain. Before a watched table is dropped, call this in
    /// SQL, in the same transaction.
    ///
    /// # Errors
    ///
    /// If the table is not watched, or the role does not own it.
    pub async fn unwatch(&self, table: &str) -> Result<(), Error> {
        let table = table.to_owned();
        self.administer("SELECT pgcache.unwatch($1::text::regclass)::text", |p| {
            p.text(table);
        })
        .await
        .map(drop)
    }

    /// From now on a change of `source` is a change of `target` too: of the same tenant, and of every entity. Cascades
    /// go on from there; circles are allowed.
    ///
    /// # Errors
    ///
    /// If the role does not own the schema, or both domains are the same.
    pub async fn cascade(&self, source: &Domain, target: &Domain) -> Result<(), Error> {
        self.cascade_rule(source, target, None).await
    }

    /// As [`cascade`](Self::cascade), but only of the entity that a column of the changed row names. For rows of
    /// watched tables; where there is no row or no such column, every entity is concerned.
    ///
    /// # Errors
    ///
    /// As [`cascade`](Self::cascade).
    pub async fn cascade_via(
        &self,
        source: &Domain,
        target: &Domain,
        column: &str,
    ) -> Result<(), Error> {
        self.cascade_rule(source, target, Some(column.to_owned()))
            .await
    }

    async fn cascade_rule(
        &self,
        source: &Domain,
        target: &Domain,
        column: Option<String>,
    ) -> Result<(), Error> {
        let (source, target) = (source.to_string(), target.to_string());
        self.administer(
            "SELECT pgcache.cascade($1::text, $2::text, $3::text::name)::text",
            |p| {
                p.text(source).text(target).text(column);
            },
        )
        .await
        .map(drop)
    }

    /// Ends a cascade. Returns whether there was one.
    ///
    /// # Errors
    ///
    /// If the role does not own the schema.
    pub async fn uncascade(&self, source: &Domain, target: &Domain) -> Result<bool, Error> {
        let (source, target) = (source.to_string(), target.to_string());
        let rows = self
            .administer("SELECT pgcache.uncascade($1::text, $2::text)::text", |p| {
                p.text(source).text(target);
            })
            .await?;
        Ok(rows
            .first()
            .and_then(|row| row.first())
            .is_some_and(|v| v == "true"))
    }

    /// Refreshes a materialized view and invalidates its domain, in one transaction. The domain defaults to the name
    /// of the view, without `mv_` or `tv_`. Takes as long as it takes, at most `within`.
    ///
    /// # Errors
    ///
    /// If Postgres refuses, or after `within`.
    pub async fn refresh_materialized_view(
        &self,
        view: &str,
        concurrently: bool,
        domain: Option<&Domain>,
        within: Duration,
    ) -> Result<(), Error> {
        let (view, domain) = (view.to_owned(), domain.map(Domain::to_string));
        self.engine
            .administer(
                "SELECT pgcache.refresh($1::text::regclass, $2::bool, $3::text)::text",
                within,
                |p| {
                    p.text(view).bool(concurrently).text(domain);
                },
            )
            .await
            .map(drop)
    }

    /// Announces every change of a domain on a channel of NOTIFY, for programs outside: one JSON message for each
    /// transaction, tenant and domain, `{"tenant_id": …, "domain": …, "version": …}`. The version is the transaction's
    /// id: distinct, and not in the order of commits. `None` ends it.
    ///
    /// NOTIFY takes a lock of the whole database until commit, which limits how many transactions per second can
    /// write; and a transaction that notifies cannot be prepared (two-phase commit).
    ///
    /// Defaults to none.
    ///
    /// # Errors
    ///
    /// If the role does not own the schema, or writers did not let it in within the store deadline.
    pub async fn notify(&self, channel: Option<&str>) -> Result<(), Error> {
        let channel = channel.map(str::to_owned);
        self.administer("SELECT pgcache.notify($1::text)::text", |p| {
            p.text(channel);
        })
        .await
        .map(drop)
    }

    /// Where the extension `pg_fraiseql_cache` is installed: makes each version that it raises an invalidation here, and
    /// takes over its cascade rules of the type `invalidate`. Returns what was and was not adopted; nothing where there
    /// is no such extension. Call it again for new rules.
    ///
    /// # Errors
    ///
    /// If the role does not own both schemas.
    pub async fn adopt_fraiseql(&self) -> Result<Vec<Adopted>, Error> {
        let rows = self
            .administer("SELECT item, outcome FROM pgcache.adopt_fraiseql()", |_| {})
            .await?;
        let adopted: Vec<Adopted> = rows
            .into_iter()
            .filter_map(|row| <[String; 2]>::try_from(row).ok())
            .map(|[item, outcome]| Adopted { item, outcome })
            .collect();
        for Adopted { item, outcome } in &adopted {
            tracing::info!(item, outcome, "pg_fraiseql_cache");
        }
        Ok(adopted)
    }

    async fn administer(
        &self,
        statement: &str,
        parameters: impl FnOnce(&mut crate::store::Parameters),
    ) -> Result<Vec<Vec<String>>, Error> {
        self.engine
            .administer(statement, self.engine.settings.store_deadline, parameters)
            .await
    }
}
