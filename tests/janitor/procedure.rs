//! The same from SQL, for `pg_cron`.

use test_support::copies_of_an_entry;
use tokio_postgres::error::SqlState;

use crate::{ITEM, Instance, entries, number};

#[tokio::test]
async fn an_ordinary_role_cleans_up_whatever_the_defaults_are() {
    let database = test_support::database().await;
    let owner = database.connect().await;
    let instance = Instance::new(&database, |b| b).await;
    instance.get_all(0..400, 100).await;
    owner
        .batch_execute("UPDATE pgcache.entry SET keep_until = now() WHERE path LIKE '/1_/%'")
        .await
        .unwrap();
    instance.cache.invalidate([ITEM.entity(500)]).await.unwrap();

    let role = format!("{}_cron", database.name());
    owner
        .batch_execute(&format!(
            "CREATE ROLE {role}; GRANT USAGE ON SCHEMA pgcache TO {role}"
        ))
        .await
        .unwrap();
    let cron = database.connect().await;
    cron.batch_execute(&format!("SET ROLE {role}"))
        .await
        .unwrap();
    let refused = cron.batch_execute("CALL pgcache.cleanup()").await;
    assert_eq!(
        refused.unwrap_err().code(),
        Some(&SqlState::INSUFFICIENT_PRIVILEGE)
    );
    owner
        .batch_execute(&format!(
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA pgcache TO {role};
             GRANT EXECUTE ON ALL ROUTINES IN SCHEMA pgcache TO {role}"
        ))
        .await
        .unwrap();
    for defaults in [
        "SET search_path = pg_temp, public",
        "SET default_transaction_isolation = serializable",
        "SET default_transaction_read_only = on",
    ] {
        cron.batch_execute(defaults).await.unwrap();
    }
    for _ in 0..3 {
        cron.batch_execute("CALL pgcache.cleanup(max_entries => 300)")
            .await
            .unwrap();
    }
    assert_eq!(entries(&owner).await, 291);
    assert_eq!(
        number(&owner, "SELECT count(*) FROM pgcache.invalidation").await,
        0
    );
    for wrong in [
        "max_entries => 0",
        "max_bytes => -1",
        "max_log_rows => 0",
        "max_bytes => NULL",
    ] {
        let call = format!("CALL pgcache.cleanup({wrong})");
        let error = cron.batch_execute(&call).await.unwrap_err();
        assert_eq!(
            error.code(),
            Some(&SqlState::INVALID_PARAMETER_VALUE),
            "{wrong}"
        );
    }
    drop(cron);
    owner
        .batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}"))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_run_is_bounded_and_the_next_one_goes_on_from_there() {
    let database = test_support::database().await;
    let sql = database.connect().await;
    let instance = Instance::new(&database, |b| b).await;
    instance.get_all(0..1, 1_000).await;
    copies_of_an_entry(&sql, 10_000, "'keep_until', now()").await;
    let mut runs = 0;
    while entries(&sql).await > 1 {
        sql.batch_execute("CALL pgcache.cleanup(seconds => 0)")
            .await
            .unwrap();
        runs += 1;
        assert!(runs < 100);
    }
    assert!(runs > 1, "one step each");
}
