//! How a schema with partitions is made, and what becomes of one that is there.

use test_support::Database;
use test_support::logs::{keep_logs, logged};
use tokio_postgres::Client;
use tower_pgcache::{ConfigError, PgCache};

use crate::{Instance, builder, entries_by_partition, number, text};

/// Whether each table that holds entries is UNLOGGED (u) or LOGGED (p).
async fn persistence(sql: &Client) -> String {
    let query =
        "SELECT string_agg(c.relname || ' ' || c.relpersistence::text, ', ' ORDER BY c.relname)
                   FROM pgcache.entry_table t JOIN pg_class c ON c.oid = t.relation";
    text(sql, query).await
}

#[tokio::test]
async fn the_partitions_are_unlogged_or_durable() {
    for (durable, expected) in [
        (false, "entry_0 u, entry_1 u, entry_2 u"),
        (true, "entry_0 p, entry_1 p, entry_2 p"),
    ] {
        let database = test_support::database().await;
        let sql = database.connect().await;
        let instance = Instance::new(&database, |b| b.partitions(3).durable(durable)).await;
        assert_eq!(persistence(&sql).await, expected);
        let indexes = "SELECT count(*) FROM pg_class i JOIN pg_index x ON x.indexrelid = i.oid
                        WHERE x.indrelid IN (SELECT relation FROM pgcache.entry_table
                                              UNION ALL SELECT toast FROM pgcache.entry_table)
                          AND (i.relpersistence = 'p') = $1";
        let indexes: i64 = sql.query_one(indexes, &[&durable]).await.unwrap().get(0);
        assert_eq!(indexes, 6);
        let found = instance.cache.capabilities().await.unwrap();
        assert_eq!((found.durable, found.partitions), (durable, Some(3)));
        assert_eq!(found.warnings, Vec::<String>::new());
    }
}

/// What was tuned for one table holds for each partition, and the table has what it had.
#[tokio::test]
async fn partitions_are_made_as_the_table_is_without_them() {
    const TABLES: &str = "
        SELECT DISTINCT array_to_string(c.reloptions, ' ') || ' / ' || array_to_string(t.reloptions, ' ')
          FROM pg_class c JOIN pg_class t ON t.oid = c.reltoastrelid
         WHERE c.oid IN (SELECT relation FROM $.entry_table)";
    const COLUMNS: &str = "
        SELECT string_agg(DISTINCT columns, ' | ') FROM
          (SELECT string_agg(concat_ws(' ', a.attname, a.attnum, a.atttypid::regtype, a.attnotnull, a.attstorage,
                                       pg_get_expr(d.adbin, d.adrelid)), ', ' ORDER BY a.attnum) AS columns
             FROM pg_attribute a LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
            WHERE a.attnum > 0 AND a.attrelid IN (SELECT relation FROM $.entry_table UNION ALL SELECT '$.entry'::regclass)
            GROUP BY a.attrelid) c";
    let database = test_support::database().await;
    let sql = database.connect().await;
    Instance::new(&database, |b| b.schema("plain")).await;
    Instance::new(&database, |b| b.schema("split").partitions(4)).await;
    for query in [TABLES, COLUMNS] {
        let plain = text(&sql, &query.replace('$', "plain")).await;
        assert!(
            plain.contains("autovacuum") || plain.contains("body"),
            "{plain}"
        );
        let split = text(&sql, &query.replace('$', "split")).await;
        assert_eq!(split.replace("split.", "plain."), plain);
    }
    let key = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'split.entry'::regclass AND conname = 'entry_pkey'";
    assert_eq!(text(&sql, key).await, "PRIMARY KEY (key)");
}

/// Without the setting, everything by which keys are asked for is as if there were no such thing.
#[tokio::test]
async fn without_the_setting_there_is_one_table() {
    let database = test_support::database().await;
    let sql = database.connect().await;
    let instance = Instance::new(&database, |b| b).await;
    assert_eq!(persistence(&sql).await, "entry u");
    let found = instance.cache.capabilities().await.unwrap();
    assert_eq!((found.partitions, found.warnings.len()), (None, 0));
    for function in ["lookup", "add_uses"] {
        let body = format!("SELECT prosrc FROM pg_proc WHERE oid = 'pgcache.{function}'::regproc");
        let body = text(&sql, &body).await;
        assert!(body.contains("keys") && !body.contains("LOOP"), "{body}");
    }
}

async fn warnings(cache: &PgCache) -> Vec<String> {
    cache.capabilities().await.unwrap().warnings
}

/// An instance with another number than a schema has that is there: it serves, and says so.
async fn joins(database: &Database, found: Option<u32>, configured: Option<u32>) {
    let with = |count: Option<u32>| {
        let builder = builder(database.pool(4)).schema("shared");
        match count {
            Some(count) => builder.partitions(count),
            None => builder,
        }
    };
    let first = Instance::of(with(found).build().unwrap());
    first.get_all(0..20, 100).await;
    assert_eq!(warnings(&first.cache).await, Vec::<String>::new());
    let before = logged().len();
    let second = Instance::of(with(configured).build().unwrap());
    second.cache.migrate().await.unwrap();
    assert_eq!(second.get_all(0..40, 100).await, 20);
    assert_eq!(first.get_all(0..40, 100).await, 40);
    second.cache.cleanup().await.unwrap();
    assert_eq!(second.cache.capabilities().await.unwrap().partitions, found);

    let said = warnings(&second.cache).await;
    let log = logged()[before..].to_owned();
    let Some(wanted) = configured else {
        assert_eq!(
            (said.len(), log.contains("WARN")),
            (0, false),
            "{said:?} {log}"
        );
        return;
    };
    let has = found.map_or("one table".to_owned(), |n| format!("{n} partitions"));
    for words in [
        &*format!("partitions({wanted})"),
        &has,
        "DROP SCHEMA \"shared\"",
    ] {
        assert!(said.len() == 1 && said[0].contains(words), "{said:?}");
    }
    assert!(log.contains("WARN") && log.contains(&said[0]), "{log}");
}

#[tokio::test]
async fn a_schema_that_exists_stays_as_it_is_and_the_instance_says_so() {
    keep_logs();
    for (found, configured) in [(None, Some(4)), (Some(4), Some(8)), (Some(4), None)] {
        joins(&test_support::database().await, found, configured).await;
    }
}

#[tokio::test]
async fn so_many_there_may_be_and_no_more() {
    for count in [2, 32] {
        let database = test_support::database().await;
        let sql = database.connect().await;
        let instance = Instance::new(&database, |b| b.partitions(count)).await;
        assert_eq!(entries_by_partition(&sql).await.len(), count as usize);
        instance.get_all(0..64, 100).await;
        assert_eq!(instance.get_all(0..64, 100).await, 64);
        assert_eq!(instance.cache.cleanup().await.unwrap().entries, 0);
        assert_eq!(number(&sql, "SELECT entries FROM pgcache.room").await, 64);
    }
}

fn mistake(configured: Result<PgCache, ConfigError>) -> String {
    configured.unwrap_err().to_string()
}

#[tokio::test]
async fn wrong_numbers_are_refused_with_the_mend() {
    let database = test_support::database().await;
    let engine = || builder(database.pool(1));
    for count in [0, 1, 33, u32::MAX] {
        let said = mistake(engine().partitions(count).build());
        let wanted = format!("engine: partitions({count}); use 2 to 32");
        assert!(said.contains(&wanted), "{said}");
    }
    let said = mistake(engine().partitions(8).max_bytes((8 << 20) - 1).build());
    assert!(
        said.contains("engine: partitions(8); use a max_bytes of at least 8 MiB"),
        "{said}"
    );
    assert!(engine().partitions(8).max_bytes(8 << 20).build().is_ok());
}

/// The partitions belong to the owner, and the instance needs no rights but those that it is granted.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_and_an_application_that_is_not() {
    let server = crate::life::start().await; // for roles that may log in
    let database = server.database().await;
    let admin = database.connect().await;
    let (owner, app) = ("owner", "app");
    let create = format!(
        "CREATE ROLE {owner} NOLOGIN; CREATE ROLE {app} LOGIN; GRANT {owner} TO {app};
         GRANT CREATE ON DATABASE {name} TO {app}, {owner}",
        name = database.name()
    );
    admin.batch_execute(&create).await.unwrap();
    let mut config = database.config();
    config.user(app);
    let pool = |config| {
        let manager = tower_pgcache::bb8_postgres::PostgresConnectionManager::new(
            config,
            tower_pgcache::tokio_postgres::NoTls,
        );
        tower_pgcache::bb8::Pool::builder()
            .max_size(4)
            .build_unchecked(manager)
    };
    let cache = builder(pool(config.clone()))
        .owner(owner)
        .partitions(4)
        .build()
        .unwrap();
    cache.ready().await.unwrap();
    let owners = "SELECT string_agg(DISTINCT pg_get_userbyid(c.relowner), ',') FROM pg_class c
                   WHERE c.relnamespace = 'pgcache'::regnamespace";
    assert_eq!(text(&admin, owners).await, owner);
    // from now on by its grants alone
    admin
        .batch_execute(&format!("REVOKE {owner} FROM {app}"))
        .await
        .unwrap();
    let instance = Instance::of(builder(pool(config)).build().unwrap());
    instance.get_all(0..20, 100).await;
    assert_eq!(instance.get_all(0..20, 100).await, 20);
    instance.cache.cleanup().await.unwrap();
    assert_eq!(
        instance.cache.capabilities().await.unwrap().partitions,
        Some(4)
    );
}
