//! The cache never holds a writer up.

use futures_util::future::join_all;
use tokio_postgres::Client;

use crate::database_with_schema;
use test_support::random::Random;

const WRITERS: usize = 32;

/// Connections whose statements fail rather than wait for long.
async fn writers(database: &test_support::Database) -> Vec<Client> {
    let connect = async |_| {
        let sql = database.connect().await;
        sql.batch_execute("SET statement_timeout = '60s'")
            .await
            .unwrap();
        sql
    };
    join_all((0..WRITERS).map(connect)).await
}

#[tokio::test]
async fn writers_to_one_domain_do_not_wait_for_each_other() {
    let database = database_with_schema().await;
    let writers = writers(&database).await;
    for level in ["READ COMMITTED", "SERIALIZABLE"] {
        join_all(writers.iter().map(async |sql| {
            sql.batch_execute(&format!(
                "BEGIN ISOLATION LEVEL {level};
                 SELECT pgcache.invalidate('product');
                 SELECT pgcache.invalidate('product', 'acme', '42');
                 SELECT pgcache.invalidate_scopes('{{d,u}}', '{{product,/}}', '{{NULL,acme}}', '{{42,NULL}}');
                 SELECT pgcache.invalidate('product')"
            ))
            .await
            .unwrap();
        }))
        .await;
        // all have called, none has committed
        let row = database.connect().await;
        let row = row
            .query_one(
                "SELECT count(*) FILTER (WHERE NOT granted),
                        count(DISTINCT pid) FILTER (WHERE relation = 'pgcache.invalidation'::regclass)
                   FROM pg_locks",
                &[],
            )
            .await
            .unwrap();
        assert_eq!(
            (row.get::<_, i64>(0), row.get::<_, i64>(1)),
            (0, WRITERS as i64)
        );
        join_all(
            writers
                .iter()
                .map(async |sql| sql.batch_execute("COMMIT").await.unwrap()),
        )
        .await;
    }
    let rows = writers[0]
        .query_one("SELECT count(*) FROM pgcache.invalidation", &[])
        .await
        .unwrap();
    assert_eq!(
        rows.get::<_, i64>(0),
        2 * 4 * WRITERS as i64,
        "one row per scope and transaction"
    );
}

#[tokio::test]
async fn domains_in_opposite_orders_do_not_deadlock() {
    const ROUNDS: usize = 8;
    let mut random = Random::of_this_run("PGCACHE_TEST_SEED");
    let database = database_with_schema().await;
    let writers = writers(&database).await;
    join_all(writers.iter().map(|sql| {
        let mut random = random.fork();
        async move {
            for _ in 0..ROUNDS {
                sql.batch_execute("BEGIN").await.unwrap();
                for _ in 0..6 {
                    let domain = *random.pick(&["a", "b", "c", "d"]);
                    let entity = *random.pick(&[None, Some("1"), Some("2")]);
                    sql.execute(
                        "SELECT pgcache.invalidate($1, NULL, $2)",
                        &[&domain, &entity],
                    )
                    .await
                    .unwrap();
                }
                if random.percent(20) {
                    sql.batch_execute("SELECT pgcache.fold()").await.unwrap();
                }
                sql.batch_execute("COMMIT").await.unwrap();
            }
        }
    }))
    .await;
}
