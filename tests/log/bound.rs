//! A day of writes in little time: what the log remembers stays within its bound, at no entry's expense but those
//! that it has to be at.

use tokio_postgres::Client;

use crate::database_with_schema;

const MAX_ROWS: i64 = 10_000;
/// Changes between two runs of `prune`.
const BATCH: i64 = 5_000;
const BATCHES: i64 = 25;
/// A run of `prune` forgets what the run before it has folded.
const MOST_IN_LOG: i64 = 2 * BATCH;
const TRANSACTIONS_PER_BATCH: i64 = 5;

/// An entry that depends on one entity of a domain, stored now.
async fn enter(sql: &Client, key: &str, domain: &str, entity: &str) {
    sql.execute(
        "INSERT INTO pgcache.entry
         SELECT convert_to($1, 'UTF8'), p.id, pg_current_snapshot(),
                ARRAY[pgcache.name_hash('d', $2) # pgcache.tenant_hash('t') # pgcache.entity_hash('d', $3),
                      pgcache.coarse_key('d', $2)],
                now(), 'infinity', 'infinity', false, NULL, NULL, '', '', NULL, NULL, '{}', '', '', ''
           FROM pgcache.epoch p",
        &[&key, &domain, &entity],
    )
    .await
    .unwrap();
}

async fn is_valid(sql: &Client, key: &str) -> bool {
    let query =
        "SELECT usable AND unchanged FROM pgcache.entry_state WHERE key = convert_to($1, 'UTF8')";
    sql.query_one(query, &[&key]).await.unwrap().get(0)
}

async fn number(sql: &Client, query: &str) -> i64 {
    sql.query_one(query, &[]).await.unwrap().get(0)
}

/// Changes these entities of the busy domain: what `pgcache.invalidate` does, for many at once.
async fn change(sql: &Client, entities: std::ops::Range<i64>) {
    sql.execute(
        "INSERT INTO pgcache.invalidation (xid, keys, kind, name, tenant, entity)
         SELECT pg_current_xact_id(),
                pgcache.invalidation_keys(h.name, h.tenant, pgcache.entity_hash('d', n::text)),
                'd', 'busy', 't', n::text
           FROM (SELECT pgcache.name_hash('d', 'busy'), pgcache.tenant_hash('t') OFFSET 0) AS h (name, tenant)
          CROSS JOIN generate_series($1::bigint, $2::bigint - 1) AS n",
        &[&entities.start, &entities.end],
    )
    .await
    .unwrap();
}

async fn prune(sql: &Client) {
    sql.execute("SELECT pgcache.prune($1)", &[&MAX_ROWS])
        .await
        .unwrap();
    let log = number(sql, "SELECT count(*) FROM pgcache.invalidation").await;
    assert!(log <= MOST_IN_LOG, "{log} rows in the log");
    let changed = number(sql, "SELECT count(*) FROM pgcache.changed").await;
    assert!(changed <= MAX_ROWS, "{changed} rows are remembered");
}

#[tokio::test]
async fn many_writes_stay_within_the_bound_and_cost_quiet_domains_nothing() {
    let database = database_with_schema().await;
    let sql = database.connect().await;
    enter(&sql, "quiet, changed", "quiet", "1").await;
    enter(&sql, "quiet", "quiet", "2").await;
    enter(&sql, "busy, changed", "busy", "7").await;
    enter(&sql, "busy", "busy", "none of them").await;
    sql.batch_execute("SELECT pgcache.invalidate('quiet', 't', '1')")
        .await
        .unwrap();

    // below the bound: two rows for each entity
    change(&sql, 0..MAX_ROWS / 5).await;
    for _ in 0..3 {
        prune(&sql).await;
        assert!(is_valid(&sql, "busy").await, "lost below the bound");
        assert!(!is_valid(&sql, "busy, changed").await);
    }

    let mut entered = Vec::new();
    for batch in 1..=BATCHES {
        let key = format!("before batch {batch}");
        let first = batch * BATCH;
        enter(&sql, &key, "busy", &(first + 3).to_string()).await;
        assert!(is_valid(&sql, &key).await, "nothing has changed since");
        entered.push(key);

        let size = BATCH / TRANSACTIONS_PER_BATCH;
        for part in 0..TRANSACTIONS_PER_BATCH {
            let first = first + part * size;
            change(&sql, first..first + size).await;
        }
        prune(&sql).await;
        for stale in ["quiet, changed", "busy, changed"] {
            assert!(!is_valid(&sql, stale).await, "{stale}, batch {batch}");
        }
        for key in &entered {
            assert!(!is_valid(&sql, key).await, "{key}, after {batch}");
        }
        assert!(is_valid(&sql, "quiet").await, "batch {batch}");
    }
    enter(&sql, "later", "busy", "7").await;
    prune(&sql).await;
    assert!(is_valid(&sql, "later").await);
}
