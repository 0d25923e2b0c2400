//! What is stored, found, replaced and invalidated.

use test_support::http::{Answer, send};
use tokio_postgres::Client;

use crate::{ITEM, Instance, entries, entries_by_partition, number};

#[tokio::test]
async fn answers_are_stored_in_all_partitions_and_found() {
    let database = test_support::database().await;
    let sql = database.connect().await;
    let instance = Instance::split(&database).await;
    assert_eq!(instance.get_all(0..100, 3_000).await, 0);
    let stored = entries_by_partition(&sql).await;
    assert_eq!(stored.len(), 4);
    assert!(stored.iter().all(|count| *count > 5), "{stored:?}");
    assert_eq!(stored.iter().sum::<i64>(), 100);
    assert_eq!(instance.get_all(0..100, 3_000).await, 100);
    assert_eq!(
        number(&sql, "SELECT count(*) FROM pgcache.entries WHERE valid").await,
        100
    );
    assert_eq!(number(&sql, "SELECT entries FROM pgcache.stats").await, 100);

    // another instance, which does not ask for partitions, finds them too
    let other = Instance::new(&database, |b| b).await;
    assert_eq!(other.get_all(0..120, 3_000).await, 100);
    assert_eq!(entries(&sql).await, 120);
}

/// Lookups that come while one is under way go together in the next statement, of which some have answers, and some not.
#[tokio::test]
async fn many_lookups_in_one_statement_get_an_answer_each() {
    let database = test_support::database().await;
    let instance = Instance::new(&database, |b| b.partitions(4).lookup_connections(1)).await;
    instance.get_all(0..60, 100).await;
    instance.cache.invalidate([ITEM.entity(7)]).await.unwrap();
    let answers = futures_util::future::join_all((0..80).map(|id| instance.get(id, 100))).await;
    for (id, answer) in answers.iter().enumerate() {
        assert_eq!(answer.is_hit(), id < 60 && id != 7, "{id}");
    }
}

#[tokio::test]
async fn changes_invalidate_what_depends_on_them_and_nothing_else() {
    let database = test_support::database().await;
    let sql = database.connect().await;
    let instance = Instance::split(&database).await;
    instance.get_all(0..40, 100).await;
    for id in 0..20 {
        instance.cache.invalidate([ITEM.entity(id)]).await.unwrap();
    }
    assert_eq!(instance.get_all(0..20, 100).await, 0);
    assert_eq!(instance.get_all(0..40, 100).await, 40);
    assert_eq!(entries(&sql).await, 40, "they were replaced");

    sql.batch_execute("SELECT pgcache.invalidate('item')")
        .await
        .unwrap();
    assert_eq!(instance.get_all(0..40, 100).await, 0);
    // what was folded is looked up by another way
    for id in 0..20 {
        instance.cache.invalidate([ITEM.entity(id)]).await.unwrap();
    }
    sql.batch_execute("SELECT pgcache.fold()").await.unwrap();
    assert_eq!(instance.get_all(20..40, 100).await, 20);
    assert_eq!(instance.get_all(0..20, 100).await, 0);
    instance.cache.clear().await.unwrap();
    assert_eq!(instance.get_all(0..40, 100).await, 0);
    assert_eq!(instance.get_all(0..40, 100).await, 40);
}

/// How many entries are valid, and not, by the one view that decides; and for how many of them, lookups say something else.
async fn judged(sql: &Client) -> (i64, i64, i64) {
    let query = "
        WITH judged AS MATERIALIZED (
            SELECT s.key, s.usable AND s.unchanged AS valid, s.revalidatable FROM pgcache.entry_state s
             WHERE s.keep_until > now()
        ), keys AS MATERIALIZED (
            SELECT array_agg(e.key) AS wanted FROM pgcache.entry e
        ), of_use AS MATERIALIZED (
            SELECT l.key, l.valid, l.head FROM keys, pgcache.lookup(keys.wanted, false) l
        ), whatever AS MATERIALIZED (
            SELECT l.key, l.valid, l.head FROM keys, pgcache.lookup(keys.wanted, true) l
        )
        SELECT count(*) FILTER (WHERE j.valid), count(*) FILTER (WHERE NOT j.valid),
               count(*) FILTER (WHERE a.valid IS DISTINCT FROM j.valid
                                   OR o.valid IS DISTINCT FROM CASE WHEN j.valid OR j.revalidatable THEN j.valid END
                                   OR a.head IS DISTINCT FROM e.head)
          FROM judged j JOIN pgcache.entry e USING (key)
          FULL JOIN whatever a USING (key) FULL JOIN of_use o USING (key)";
    let row = sql.query_one(query, &[]).await.unwrap();
    (row.get(0), row.get(1), row.get(2))
}

/// Entries with all sorts of snapshots, of transactions that have changed what they depend on, and of others.
#[tokio::test]
async fn lookups_say_of_each_entry_what_the_view_says() {
    const SNAPSHOTS: &str = "
        UPDATE pgcache.entry e SET revalidatable = random() < 0.3,
               keep_until = CASE WHEN random() < 0.1 THEN now() ELSE now() + interval '1 h' END,
               snapshot = (SELECT format('%s:%s:%s', coalesce(min(x), now.xmax - back), now.xmax - back, string_agg(x::text, ',' ORDER BY x))
                             FROM (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS xmax,
                                          floor(random() * 60)::bigint AS back, e.key) now
                             LEFT JOIN generate_series(now.xmax - back - 20, now.xmax - back - 1) x ON random() < 0.1
                            GROUP BY now.xmax, back)::pg_snapshot";
    let database = test_support::database().await;
    let sql = database.connect().await;
    let instance = Instance::split(&database).await;
    instance.get_all(0..100, 100).await;
    let (mut all_valid, mut all_invalid) = (0, 0);
    for round in 0..12 {
        for _ in 0..10 {
            let change = "SELECT pgcache.invalidate('item', NULL, floor(random() * 100)::text)";
            sql.batch_execute(change).await.unwrap();
            sql.batch_execute("SELECT pg_current_xact_id()")
                .await
                .unwrap();
        }
        match round % 4 {
            1 => sql.batch_execute("SELECT pgcache.fold()").await.unwrap(),
            2 => instance.cache.clear().await.unwrap(),
            _ => {}
        }
        sql.batch_execute(SNAPSHOTS).await.unwrap();
        let (valid, invalid, wrong) = judged(&sql).await;
        assert_eq!(wrong, 0, "of {valid} and {invalid}, in round {round}");
        (all_valid, all_invalid) = (all_valid + valid, all_invalid + invalid);
    }
    assert!(
        all_valid > 100 && all_invalid > 100,
        "{all_valid} {all_invalid}"
    );
}

async fn in_language(instance: &Instance, id: u64, language: &str) -> Answer {
    let asked = http::Request::get(format!("/in/{id}"))
        .header("accept-language", language)
        .body(axum::body::Body::empty());
    let answer = send(&instance.app, asked.unwrap()).await;
    assert_eq!(answer.text(), language);
    instance.cache.settled().await;
    answer
}

/// The variants of a URI stand in other partitions than the row that names them.
#[tokio::test]
async fn variants_are_found_and_the_oldest_give_way() {
    let database = test_support::database().await;
    let sql = database.connect().await;
    let instance = Instance::split(&database).await;
    for n in 0..40 {
        assert!(!in_language(&instance, 1, &format!("l{n}")).await.is_hit());
    }
    assert_eq!(
        entries(&sql).await,
        33,
        "the latest 32, and what names them"
    );
    assert!(entries_by_partition(&sql).await.iter().all(|n| *n > 0));
    let cold = Instance::new(&database, |b| b).await;
    for n in 8..40 {
        assert!(in_language(&cold, 1, &format!("l{n}")).await.is_hit());
    }
    assert!(!in_language(&cold, 1, "l7").await.is_hit());
}
