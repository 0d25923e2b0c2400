//! The schema: its name, its version, and the SQL that is made for it.
//!
//! 1. The scripts are plain SQL in which `pgcache.` stands for the schema.
//! 2. A schema is created, or brought up to [`VERSION`], in one transaction, by one of any number of instances:
//!    the others wait for it at an advisory lock of that transaction.
//! 3. `CREATE SCHEMA` is issued only if there is none: a role without CREATE on the database may own it.
//! 4. A schema of another version is left as it is.
//! 5. Whether its entries are partitioned is decided when a schema is created, and found in the catalog from then on.

use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, GenericClient, Transaction};

use super::kept::{Keepable, Record};
use super::{Snapshot, Store, write_transaction};
use crate::error::{Error, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The scripts that lead from each version to the next. A published script never changes.
const MIGRATIONS: [&str; 1] = [concat!(
    include_str!("sql/schema_1/tables.sql"),
    include_str!("sql/schema_1/read.sql"),
    include_str!("sql/schema_1/log.sql"),
    include_str!("sql/schema_1/housekeeping.sql"),
    include_str!("sql/schema_1/janitor.sql"),
    include_str!("sql/schema_1/trigger_source.sql"),
    include_str!("sql/schema_1/watch.sql"),
    include_str!("sql/schema_1/cascades.sql"),
    include_str!("sql/schema_1/messages.sql"),
    include_str!("sql/schema_1/fraiseql.sql"),
    include_str!("sql/schema_1/rights.sql"),
    include_str!("sql/schema_1/views.sql"),
)];

/// What follows each of them where the entries are partitioned.
const MIGRATIONS_OF_PARTITIONS: [&str; MIGRATIONS.len()] =
    [include_str!("sql/schema_1/partitioned.sql")];

/// The version that this crate reads and writes.
pub(super) const VERSION: i32 = MIGRATIONS.len() as i32;

/// The name of a schema: an identifier that needs no quotes to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SchemaName(String);

#[cfg(feature = "test-util")]
impl SchemaName {
    /// `suffix` has digits, small letters and underscores.
    pub(crate) fn unique(suffix: &str) -> Self {
        Self(format!("pgcache_{suffix}"))
    }
}

impl Default for SchemaName {
    fn default() -> Self {
        Self("pgcache".to_owned())
    }
}

/// What is wrong with the name, if anything.
pub(crate) fn check_name(name: &str) -> Result<SchemaName, String> {
    let starts_well = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    let goes_on_well = name
        .chars()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if starts_well && goes_on_well && name.len() <= 63 && !name.starts_with("pg_") {
        return Ok(SchemaName(name.to_owned()));
    }
    Err(format!(
        "schema({name:?}): use 1 to 63 characters out of a-z, 0-9 and `_`, beginning with a letter or `_`, and not with `pg_`"
    ))
}

/// The statements, for one schema.
#[derive(Debug)]
pub(super) struct Sql {
    pub(super) schema: String,
    pub(super) lookup: String,
    pub(super) feed: String,
    pub(super) feed_kept: Keepable,
    /// That searches for changes, and that does not.
    pub(super) lookup_kept: Keepable,
    pub(super) lookup_unsearched: Keepable,
    pub(super) claim_lease: String,
    pub(super) give_back: String,
    pub(super) give_back_with_answers: String,
    pub(super) unchanged_between: String,
    pub(super) unchanged_but_by: String,
    pub(super) vouch: String,
    pub(super) store: String,
    pub(super) store_marker: String,
    pub(super) freshen: String,
    pub(super) delete_keys: String,
    pub(super) delete_keys_of_partitions: String,
    pub(super) invalidate: String,
    pub(super) clear: String,
    pub(super) fold_if_due: String,
    pub(super) prune: String,
    pub(super) claim_housekeeping: String,
    pub(super) clean_step: String,
    pub(super) report: String,
    pub(super) add_uses: String,
    pub(super) claim_vacuum: String,
    pub(super) tables_to_vacuum: String,
    pub(super) capabilities: String,
    #[cfg(feature = "test-util")]
    expire: String,
    drop_schema: String,
    renew_epoch: String,
    version: String,
    partitions: String,
}

impl Sql {
    pub(super) fn for_schema(SchemaName(schema): &SchemaName) -> Self {
        let sql = |script: &str| in_schema(script, schema);
        let kept = |script: &str, types, trial| Keepable {
            text: sql(script),
            types,
            trial,
            plan: sql(include_str!("sql/plan.sql")),
            record: Record::default(),
        };
        let lookup = |script| {
            kept(
                script,
                [Type::BYTEA_ARRAY, Type::BOOL],
                [Box::new(Vec::<&[u8]>::new()), Box::new(false)],
            )
        };
        Self {
            schema: schema.clone(),
            lookup: sql("SELECT * FROM pgcache.lookup($1, $2)"),
            claim_lease: sql("SELECT pgcache.claim($1, $2, $3, $4)"),
            give_back: sql(
                "DELETE FROM pgcache.lease WHERE place = pgcache.lease_place($1) AND key = $1 AND holder = $2 AND released IS NULL",
            ),
            give_back_with_answers: sql(include_str!("sql/give_back_with_answers.sql")),
            unchanged_between: sql("SELECT pgcache.unchanged_between($1, $2, $3)"),
            unchanged_but_by: sql(include_str!("sql/unchanged_but_by.sql")),
            vouch: sql(include_str!("sql/vouch.sql")),
            feed: sql("SELECT pgcache.feed($1::text::pg_snapshot, $2)"),
            feed_kept: kept(
                include_str!("sql/feed_kept.sql"),
                [Type::PG_SNAPSHOT, Type::INT4],
                [Box::new(Snapshot::first()), Box::new(0)],
            ),
            lookup_kept: lookup(include_str!("sql/lookup_kept.sql")),
            lookup_unsearched: lookup(include_str!("sql/lookup_unsearched.sql")),
            store: sql(include_str!("sql/store.sql")),
            store_marker: sql(include_str!("sql/store_marker.sql")),
            freshen: sql(include_str!("sql/freshen.sql")),
            delete_keys: sql(include_str!("sql/delete_keys.sql")),
            delete_keys_of_partitions: sql(include_str!("sql/delete_keys_of_partitions.sql")),
            invalidate: sql(
                "SELECT pgcache.invalidate_scopes($1, $2, $3, $4), pg_current_xact_id()::text AS xid",
            ),
            clear: sql("SELECT pgcache.clear()"),
            fold_if_due: sql(include_str!("sql/fold_if_due.sql")),
            prune: sql("SELECT pgcache.prune($1)"),
            claim_housekeeping: sql(include_str!("sql/claim_housekeeping.sql")),
            clean_step: sql("SELECT * FROM pgcache.clean_step($1, $2)"),
            report: sql("SELECT * FROM pgcache.report($1, $2, $3, $4, $5)"),
            add_uses: sql("SELECT pgcache.add_uses($1, $2)"),
            claim_vacuum: sql("SELECT pgcache.claim_vacuum($1, $2)"),
            tables_to_vacuum: sql(include_str!("sql/tables_to_vacuum.sql")),
            capabilities: sql(include_str!("sql/capabilities.sql")),
            #[cfg(feature = "test-util")]
            expire: sql("UPDATE pgcache.entry SET expires_at = clock_timestamp() \
                 WHERE path = $2 AND authority = coalesce($1, authority) AND vary IS NULL"),
            drop_schema: format!("DROP SCHEMA \"{schema}\" CASCADE"),
            renew_epoch: sql(
                "SELECT pgcache.renew_epoch(), current_setting('default_transaction_isolation') = 'read committed'",
            ),
            version: sql("SELECT coalesce(max(version), 0) FROM pgcache.migration"),
            partitions: sql(
                "SELECT count(*) FROM pg_inherits WHERE inhparent = to_regclass('pgcache.entry')::oid",
            ),
        }
    }
}

impl Sql {
    /// A statement in which `pgcache.` stands for the schema.
    pub(super) fn in_schema(&self, statement: &str) -> String {
        in_schema(statement, &self.schema)
    }
}

fn in_schema(script: &str, schema: &str) -> String {
    script
        .replace("/*all_seen*/", include_str!("sql/all_seen.sql"))
        .replace("/*usable*/", include_str!("sql/usable.sql"))
        .replace("/*unchanged*/", include_str!("sql/unchanged.sql"))
        .replace("pgcache.", &format!("\"{schema}\"."))
        .replace("/*schema*/", &format!("\"{schema}\""))
}

/// How a schema is created.
#[derive(Debug, Clone)]
pub(crate) struct Creation {
    pub(crate) durable: bool,
    /// The role that shall own everything, instead of the one that is connected.
    pub(crate) owner: Option<String>,
    /// Into how many tables the entries are split; `None`: they stand in one.
    pub(crate) partitions: Option<u32>,
}

impl Creation {
    /// A script, with what differs from schema to schema.
    fn complete(&self, script: &str) -> String {
        let split = self.partitions.map(|count| {
            include_str!("sql/schema_1/partitions.sql").replace("/*count*/", &count.to_string())
        });
        let persistence = if self.durable { "" } else { "UNLOGGED" };
        script
            .replace("/*partitions*/", &split.unwrap_or_default())
            .replace("/*persistence*/", persistence)
    }
}

impl Store {
    /// Makes sure of a schema of the right version (created or migrated if `create` says how) and of an epoch. Returns into how
    /// many tables its entries are split, if they are.
    pub(crate) async fn prepare(
        self: &Arc<Self>,
        create: Option<Creation>,
        within: Duration,
    ) -> Result<Option<u32>, Error> {
        self.run(within, move |store, mut connection| async move {
            let client = connection.client();
            let found = version(client, &store.sql).await?;
            if found != Some(VERSION) {
                let Some(creation) = create else {
                    return Err(mismatch(&store.sql.schema, found));
                };
                migrate(client, &store.sql, creation).await?;
            }
            renew_epoch(client, &store).await?;
            let partitions = partitions(client, &store.sql).await?;
            let is_partitioned = partitions.is_some();
            store
                .is_partitioned
                .store(is_partitioned, Ordering::Relaxed);
            Ok(partitions)
        })
        .await
    }
}

impl Store {
    pub(crate) async fn drop_schema(self: &Arc<Self>, within: Duration) -> Result<(), Error> {
        self.run(within, |store, mut connection| async move {
            Ok(connection
                .client()
                .batch_execute(&store.sql.drop_schema)
                .await?)
        })
        .await
    }

    /// Lets what is stored for a path expire: at one authority, or at all.
    #[cfg(feature = "test-util")]
    pub(crate) async fn expire(
        self: &Arc<Self>,
        authority: Option<String>,
        path: String,
        within: Duration,
    ) -> Result<(), Error> {
        self.run(within, move |store, mut connection| async move {
            let transaction = write_transaction(connection.client()).await?;
            transaction
                .execute_typed(
                    &store.sql.expire,
                    &[(&authority, Type::TEXT), (&path, Type::TEXT)],
                )
                .await?;
            Ok(transaction.commit().await?)
        })
        .await
    }
}

/// `None`: there is no such schema.
async fn version(client: &impl GenericClient, sql: &Sql) -> Result<Option<i32>, Error> {
    match client.query_typed(&sql.version, &[]).await {
        Ok(rows) => Ok(rows.first().map(|row| row.try_get(0)).transpose()?),
        Err(e)
            if matches!(
                e.code(),
                Some(&SqlState::UNDEFINED_TABLE | &SqlState::INVALID_SCHEMA_NAME)
            ) =>
        {
            Ok(None)
        }
        Err(e) => Err(e.into()),
    }
}

async fn partitions(client: &impl GenericClient, sql: &Sql) -> Result<Option<u32>, Error> {
    let row = client.query_typed_one(&sql.partitions, &[]).await?;
    Ok(counted(row.try_get(0)?))
}

/// The number of partitions; there are none where the entries stand in one table.
pub(super) fn counted(partitions: i64) -> Option<u32> {
    u32::try_from(partitions).ok().filter(|count| *count > 0)
}

fn mismatch(schema: &str, found: Option<i32>) -> Error {
    let message = match found {
        None => format!(
            "there is no schema \"{schema}\": let the cache create it (auto_migrate), or call migrate() with a role that may"
        ),
        Some(v) if v < 1 => format!(
            "schema \"{schema}\" has the unknown version {v}: its table \"migration\" is empty or not the cache's; \
             drop the schema, or give the cache one of its own (schema(\"…\"))"
        ),
        Some(v) if v < VERSION => format!(
            "schema \"{schema}\" has version {v}, older than {VERSION}: call migrate() with a role that may change it"
        ),
        Some(v) => format!(
            "schema \"{schema}\" has version {v}, newer than {VERSION}: this program is too old for it; \
             update tower-pgcache, or give this program a schema of its own (schema(\"…\"))"
        ),
    };
    Error::new(ErrorKind::Schema, message)
}

async fn migrate(client: &mut Client, sql: &Sql, creation: Creation) -> Result<(), Error> {
    let transaction = write_transaction(client).await?;
    // names in the scripts are resolved under this path; `pg_temp` last, or it would come first
    transaction
        .batch_execute("SET LOCAL search_path = pg_catalog, pg_temp")
        .await?;
    let lock = format!("tower-pgcache schema {}", sql.schema);
    transaction
        .query_typed(
            "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))",
            &[(&lock, Type::TEXT)],
        )
        .await?;
    let found = version_in(&transaction, sql).await?;
    match found {
        Some(v) if !(1..=VERSION).contains(&v) => return Err(mismatch(&sql.schema, found)),
        Some(_) => {}
        None => {}
    }
    let caller = become_owner(&transaction, sql, creation.owner.as_deref()).await?;
    if found.is_none() {
        create_empty(&transaction, sql).await?;
    }
    let scripts = MIGRATIONS.iter().zip(MIGRATIONS_OF_PARTITIONS);
    for ((script, of_partitions), version) in scripts.zip(1..).skip(found.unwrap_or(0) as usize) {
        let script = in_schema(&creation.complete(script), &sql.schema);
        transaction.batch_execute(&script).await?;
        if partitions(&transaction, sql).await?.is_some() {
            let script = in_schema(of_partitions, &sql.schema);
            transaction.batch_execute(&script).await?;
        }
        let record = in_schema(
            "INSERT INTO pgcache.migration (version, crate) VALUES ($1, $2)",
            &sql.schema,
        );
        let crate_version = env!("CARGO_PKG_VERSION");
        transaction
            .query_typed(
                &record,
                &[(&version, Type::INT4), (&crate_version, Type::TEXT)],
            )
            .await?;
    }
    if let Some(caller) = caller {
        let grants = include_str!("sql/grants.sql").replace("/*caller*/", &caller);
        transaction
            .batch_execute(&in_schema(&grants, &sql.schema))
            .await?;
    }
    transaction.commit().await?;
    tracing::info!(
        schema = sql.schema,
        version = VERSION,
        "cache schema created or brought up to date"
    );
    Ok(())
}

/// What is made from here on belongs to the owner. Returns the quoted name of the role that was before, if that is another one
/// and needs rights.
async fn become_owner(
    transaction: &Transaction<'_>,
    sql: &Sql,
    owner: Option<&str>,
) -> Result<Option<String>, Error> {
    let row = transaction
        .query_typed_one(
            "SELECT quote_ident(current_user), quote_ident($1), rolsuper FROM pg_roles WHERE rolname = current_user",
            &[(&owner, Type::TEXT)],
        )
        .await?;
    let (caller, is_superuser): (String, bool) = (row.try_get(0)?, row.try_get(2)?);
    let Some(owner) = row.try_get::<_, Option<String>>(1)? else {
        if is_superuser {
            tracing::warn!(
                schema = sql.schema,
                role = caller,
                "the cache is installed by a superuser: its trigger functions will run with all rights. \
                 Better name a role that owns only this schema, PgCacheBuilder::owner(..)"
            );
        }
        return Ok(None);
    };
    let authorization = format!("AUTHORIZATION {owner}");
    create_if_missing(transaction, &sql.schema, &authorization).await?;
    transaction
        .batch_execute(&format!("SET LOCAL ROLE {owner}"))
        .await?;
    Ok((caller != owner && !is_superuser).then_some(caller))
}

/// Not `IF NOT EXISTS`, which needs CREATE on the database even if there is nothing to create.
async fn create_if_missing(
    transaction: &Transaction<'_>,
    schema: &str,
    authorization: &str,
) -> Result<(), Error> {
    let found = transaction
        .query_typed(
            "SELECT FROM pg_namespace WHERE nspname = $1",
            &[(&schema, Type::TEXT)],
        )
        .await?;
    if found.is_empty() {
        let create = format!("CREATE SCHEMA \"{schema}\" {authorization}");
        transaction.batch_execute(&create).await?;
    }
    Ok(())
}

/// [`version`] without an error, which would abort the transaction.
async fn version_in(transaction: &Transaction<'_>, sql: &Sql) -> Result<Option<i32>, Error> {
    const EXISTS: &str = "SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                          WHERE n.nspname = $1 AND c.relname = 'migration'";
    let exists = transaction
        .query_typed(EXISTS, &[(&sql.schema, Type::TEXT)])
        .await?;
    if exists.is_empty() {
        Ok(None)
    } else {
        version(transaction, sql).await
    }
}

async fn create_empty(transaction: &Transaction<'_>, sql: &Sql) -> Result<(), Error> {
    create_if_missing(transaction, &sql.schema, "").await?;
    let table = "CREATE TABLE pgcache.migration (
                     version    integer     PRIMARY KEY,
                     crate      text        NOT NULL,
                     applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
                 )";
    Ok(transaction
        .batch_execute(&in_schema(table, &sql.schema))
        .await?)
}

async fn renew_epoch(client: &mut Client, store: &Store) -> Result<(), Error> {
    let transaction = write_transaction(client).await?;
    let row = transaction
        .query_typed_one(&store.sql.renew_epoch, &[])
        .await?;
    let (good, read_committed): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
    transaction.commit().await?;
    store
        .read_committed
        .store(read_committed, Ordering::Relaxed);
    if good {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Unavailable,
        "the database is a standby, or has prepared transactions from before its cache was emptied: \
         end them (COMMIT PREPARED or ROLLBACK PREPARED, see pg_prepared_xacts)",
    ))
}
