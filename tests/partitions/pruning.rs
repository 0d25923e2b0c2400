//! Which partitions are looked into.

use std::collections::BTreeMap;

use test_support::{copies_of_an_entry, until};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Transaction};

use crate::{Instance, MINUTE, number};

/// The partition of the entry for `/{id}/100`, and its key.
async fn place(sql: &Client, id: u64) -> (String, Vec<u8>) {
    let query = "SELECT tableoid::regclass::text, key FROM pgcache.entry WHERE path = $1";
    let row = sql.query_one(query, &[&format!("/{id}/100")]).await;
    let row = row.unwrap();
    (row.get(0), row.get(1))
}

/// What of the entries this session has looked into, and what it has read through: how often.
async fn looked_into(transaction: &Transaction<'_>) -> BTreeMap<String, (i64, i64)> {
    let query = "SELECT relid::regclass::text, coalesce(idx_scan, 0), seq_scan FROM pg_stat_xact_user_tables
                  WHERE relid IN (SELECT relation FROM pgcache.entry_table)";
    let rows = transaction.query(query, &[]).await.unwrap();
    let counts = rows
        .iter()
        .map(|row| (row.get(0), (row.get(1), row.get(2))));
    counts.collect()
}

/// Runs a statement with a key, and undoes it. It may look into one partition, by its index.
async fn looks_only_into(sql: &mut Client, statement: &str, (partition, key): &(String, Vec<u8>)) {
    let transaction = sql.transaction().await.unwrap();
    let before = looked_into(&transaction).await;
    let keys: &[&[u8]] = &[key];
    let keys = (&keys as &(dyn ToSql + Sync), Type::BYTEA_ARRAY);
    transaction.query_typed(statement, &[keys]).await.unwrap();
    let after = looked_into(&transaction).await;
    transaction.rollback().await.unwrap();
    for (table, (by_index, through)) in after {
        let (by_index_before, through_before) = before.get(&table).copied().unwrap_or_default();
        assert_eq!(through, through_before, "{statement} reads {table}");
        let looked = by_index > by_index_before;
        assert_eq!(looked, table == *partition, "{statement}: {table}");
    }
}

/// Also when what it depends on was changed, and by a plan that is kept.
#[tokio::test]
async fn a_key_is_looked_for_in_its_partition_only() {
    let database = test_support::database().await;
    let (mut sql, other) = (database.connect().await, database.connect().await);
    let instance = Instance::split(&database).await;
    instance.get_all(0..30, 100).await;
    // of a small table it may cost less to read all
    copies_of_an_entry(&other, 2_000, "'path', '/' || n").await;
    other.batch_execute("ANALYZE pgcache.entry").await.unwrap();
    let change = crate::ITEM.entity(3);
    instance.cache.invalidate([change]).await.unwrap();
    let delete = include_str!("../../src/store/sql/delete_keys_of_partitions.sql");
    for id in 0..30 {
        let place = place(&other, id).await;
        for statement in [
            "SELECT count(*) FROM pgcache.lookup($1, true)",
            "SELECT pgcache.add_uses($1, '{2}')",
            "SELECT count(*) FROM pgcache.entry_state WHERE key = $1[1]",
            delete,
        ] {
            looks_only_into(&mut sql, statement, &place).await;
        }
    }
}

/// From the request on: the lookup, what is stored, and the uses that are written down.
#[tokio::test]
async fn a_request_touches_the_partition_of_its_key_only() {
    let database = test_support::database().await;
    let sql = database.connect().await;
    let version = "SELECT current_setting('server_version_num')::bigint";
    if number(&sql, version).await < 150_000 {
        return; // its statistics come when they like
    }
    let instance = Instance::split(&database).await;
    instance.get(1, 100).await;
    instance.cache.settled().await;
    for _ in 0..10 {
        assert!(instance.get(1, 100).await.is_hit());
    }
    instance.cache.invalidate([crate::ITEM]).await.unwrap();
    assert!(!instance.get(1, 100).await.is_hit());
    instance.cache.settled().await;
    instance.cache.close().await;
    drop(instance);
    // a session reports what it did at its end, at the latest
    let others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    until(MINUTE, "no other session", || async {
        number(&sql, others).await == 0
    })
    .await;
    let (partition, _) = place(&sql, 1).await;
    let query = "SELECT relid::regclass::text, coalesce(idx_scan, 0), seq_scan, n_tup_ins + n_tup_upd FROM pg_stat_user_tables
                  WHERE relid IN (SELECT relation FROM pgcache.entry_table)";
    let mut read_through = Vec::new();
    for row in sql.query(query, &[]).await.unwrap() {
        let (table, by_index, written): (String, i64, i64) = (row.get(0), row.get(1), row.get(3));
        if table == partition {
            assert!(
                by_index > 10 && written >= 2,
                "{table}: {by_index}, {written}"
            );
        } else {
            assert_eq!((by_index, written), (0, 0), "{table}");
        }
        read_through.push(row.get::<_, i64>(2));
    }
    // when the epoch began
    assert_eq!(read_through, [read_through[0]; 4]);
}
