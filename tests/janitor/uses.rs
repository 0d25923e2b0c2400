//! What is of use stays.

use tower_pgcache::PgCacheBuilder;

use crate::{HOUR, ITEM, Instance, entries, is_stored, number};

const HOT: std::ops::Range<u64> = 0..20;

/// Many times as much as there may be goes by, each URL once; some are asked for again and again.
async fn flood(configure: impl Fn(PgCacheBuilder) -> PgCacheBuilder) {
    let database = test_support::database().await;
    let sql = database.connect().await;
    let instance = Instance::new(&database, |b| {
        configure(b.max_entries(200).cleanup_interval(HOUR))
    })
    .await;
    for wave in 1..20 {
        instance.get_all(HOT, 10).await;
        instance.get_all(HOT, 10).await;
        let first = wave * 100;
        instance.get_all(first..first + 100, 10).await;
        instance.cache.cleanup().await.unwrap();
    }
    for id in HOT {
        assert!(is_stored(&sql, id).await, "{id} is gone");
    }
    assert!(entries(&sql).await <= 200);
    assert!(instance.cache.stats().evicted > 1_000);
}

#[tokio::test]
async fn what_is_used_survives_a_flood_of_what_is_not() {
    flood(|builder| builder).await;
}

#[tokio::test]
async fn hits_in_memory_are_uses_too() {
    flood(|builder| builder.memory(1 << 20)).await;
    flood(|builder| builder.memory(1 << 20).max_staleness(HOUR)).await;
}

async fn value(sql: &tokio_postgres::Client, id: u64) -> f64 {
    let query = "SELECT value - pgcache.value_now() FROM pgcache.entry WHERE path LIKE $1";
    let row = sql.query_one(query, &[&format!("/{id}/%")]).await.unwrap();
    row.get(0)
}

#[tokio::test]
async fn use_counts_and_neither_age_nor_rewriting_does() {
    let database = test_support::database().await;
    let sql = database.connect().await;
    let instance = Instance::new(&database, |b| b.max_entries(3)).await;
    instance.get_all(0..3, 10).await;
    let long_ago =
        "UPDATE pgcache.entry SET value = value - 10, born_at = born_at - interval '10 min'";
    sql.batch_execute(long_ago).await.unwrap();
    // old, and used
    for _ in 0..4 {
        assert!(instance.get(0, 10).await.is_hit());
    }
    // old, and filled again
    instance.cache.invalidate([ITEM.entity(1)]).await.unwrap();
    instance.get(1, 10).await;
    instance.cache.settled().await;
    instance.cache.cleanup().await.unwrap();
    let values = [
        value(&sql, 0).await,
        value(&sql, 1).await,
        value(&sql, 2).await,
    ];
    assert!((1.9..2.1).contains(&values[0]), "{values:?}: four uses");
    assert!((-0.1..0.1).contains(&values[1]), "{values:?}: one");
    assert!(
        (-10.1..-9.9).contains(&values[2]),
        "{values:?}: one, ten hours ago"
    );

    instance.get_all(3..4, 10).await;
    instance.cache.cleanup().await.unwrap();
    assert!(!is_stored(&sql, 2).await);
    assert!(is_stored(&sql, 0).await);
}

#[tokio::test]
async fn uses_are_written_without_waiting_for_anybody() {
    let database = test_support::database().await;
    let (sql, holder) = (database.connect().await, database.connect().await);
    let instance = Instance::new(&database, |b| b).await;
    instance.get_all(0..2, 10).await;
    for id in [0, 0, 1, 1] {
        assert!(instance.get(id, 10).await.is_hit());
    }
    holder
        .batch_execute("BEGIN; SELECT FROM pgcache.entry WHERE path = '/0/10' FOR UPDATE")
        .await
        .unwrap();
    instance.cache.cleanup().await.unwrap();
    assert!(value(&sql, 0).await < 0.5);
    assert!(value(&sql, 1).await > 1.0);
    holder.batch_execute("COMMIT").await.unwrap();
}

#[tokio::test]
async fn nothing_is_written_for_uses_while_there_is_room_enough() {
    let database = test_support::database().await;
    let sql = database.connect().await;
    let instance = Instance::new(&database, |b| b.max_entries(100)).await;
    instance.get_all(0..10, 10).await;
    instance.cache.cleanup().await.unwrap();
    let versions = "SELECT sum(xmin::text::bigint)::bigint FROM pgcache.entry";
    let before = number(&sql, versions).await;
    instance.get_all(0..10, 10).await;
    instance.cache.cleanup().await.unwrap();
    assert_eq!(number(&sql, versions).await, before);
}

#[tokio::test]
async fn values_add_up_and_neither_overflow_nor_underflow() {
    let database = test_support::database().await;
    let sql = database.connect().await;
    Instance::new(&database, |b| b).await;
    for (value, uses, now, expected) in [
        (0.0, 1.0, 0.0, 1.0),
        (0.0, 3.0, 0.0, 2.0),
        (10.0, 1.0, 10.0, 11.0),
        (0.0, 1.0, 500_000.0, 500_000.0),
        (500_000.0, 1.0, 0.0, 500_000.0),
        (-1e300, 1e300, 0.0, 996.578_428_466_209),
    ] {
        let row = sql
            .query_one(
                "SELECT pgcache.value_used($1, $2, $3)",
                &[&value, &uses, &now],
            )
            .await
            .unwrap();
        let got: f64 = row.get(0);
        assert!((got - expected).abs() < 1e-6, "{value} {uses} {now}: {got}");
    }
    // each value lies below the end of its class, and not below that of the one before
    let wrong = number(
        &sql,
        "SELECT count(*) FROM (SELECT 489000 - exp(n / 100.0::float8) + exp(-n / 100.0::float8) FROM generate_series(-1000, 1000) n) AS v (value),
                LATERAL (SELECT pgcache.value_class(v.value, 489000)) c (class)
          WHERE NOT (c.class BETWEEN 1 AND 999)
             OR v.value >= pgcache.value_class_end(c.class, 489000) + 1e-9
             OR c.class > 1 AND v.value < pgcache.value_class_end(c.class - 1, 489000) - 1e-9",
    )
    .await;
    assert_eq!(wrong, 0);
}
