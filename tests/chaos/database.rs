//! What happens to the schema and to what stands in it.

use std::time::Duration;

use crate::harness::{Settings, Stage, case};

const A_WHILE: Duration = Duration::from_millis(300);

#[test]
fn a_table_is_dropped() {
    case(async {
        let mut stage = Stage::new().await;
        stage.serve(&stage.settings()).await;
        for table in ["entry", "invalidation", "epoch"] {
            stage
                .sql_at_last(&format!("DROP TABLE pgcache.{table} CASCADE"))
                .await;
            stage.suffer(A_WHILE).await;
            // a schema without one of its tables is nobody's; somebody has to drop it
            stage.sql_at_last("DROP SCHEMA pgcache CASCADE").await;
            stage.is_watched_again().await;
            stage.recover().await;
        }
        stage.end().await;
    });
}

#[test]
fn the_schema_is_renamed_and_renamed_back() {
    case(async {
        let mut stage = Stage::new().await;
        stage.serve(&stage.settings()).await;
        for _ in 0..2 {
            stage
                .sql_at_last("ALTER SCHEMA pgcache RENAME TO elsewhere")
                .await;
            stage.suffer(A_WHILE).await;
            // the instances have made a new one
            stage
                .sql_at_last(
                    "BEGIN; DROP SCHEMA IF EXISTS pgcache CASCADE;
                     ALTER SCHEMA elsewhere RENAME TO pgcache; COMMIT",
                )
                .await;
            stage.recover().await;
        }
        stage.end().await;
    });
}

#[test]
fn rights_are_revoked_and_granted_again() {
    const REVOKED: [(&str, &str); 3] = [
        (
            "REVOKE USAGE ON SCHEMA pgcache FROM app",
            "GRANT USAGE ON SCHEMA pgcache TO app",
        ),
        (
            "REVOKE ALL ON ALL TABLES IN SCHEMA pgcache FROM app",
            "GRANT ALL ON ALL TABLES IN SCHEMA pgcache TO app",
        ),
        (
            "ALTER ROLE app NOLOGIN;
             SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'",
            "ALTER ROLE app LOGIN",
        ),
    ];
    case(async {
        let mut stage = Stage::new().await;
        stage.serve(&stage.settings()).await;
        for (revoke, grant) in REVOKED {
            stage.sql_at_last(revoke).await;
            stage.suffer(A_WHILE).await;
            stage.sql_at_last(grant).await;
            stage.recover().await;
        }
        stage.end().await;
    });
}

/// What is read back does not agree with its checksum, or is another page's.
#[test]
fn rows_are_corrupted() {
    const DAMAGES: [&str; 7] = [
        "SET body = 'garbage'",
        "SET body = body || '\\x00'",
        "SET body = substr(body, 1, length(body) / 2)",
        "SET head = 'garbage'",
        "SET head = ''",
        "SET checksum = decode(md5(key::text), 'hex')",
        "SET (head, body, checksum) = (SELECT o.head, o.body, o.checksum FROM pgcache.entry o
                                        WHERE o.key > e.key ORDER BY o.key LIMIT 1)
          WHERE EXISTS (SELECT FROM pgcache.entry o WHERE o.key > e.key)",
    ];
    case(async {
        let mut stage = Stage::new().await;
        let settings = Settings {
            memory: 0,
            ..stage.settings()
        };
        stage.serve(&settings).await;
        for damage in DAMAGES {
            for _ in 0..2 {
                stage
                    .sql_at_last(&format!("UPDATE pgcache.entry e {damage}"))
                    .await;
                stage.suffer(Duration::from_millis(20)).await;
            }
            stage.recover().await;
        }
        stage.end().await;
    });
}

/// The proof that the others could fail: transactions say what they change, and nobody writes it down.
#[test]
fn stale_answers_are_noticed() {
    case(async {
        let mut stage = Stage::new().await;
        stage.serve(&stage.settings()).await;
        let deaf = "CREATE OR REPLACE FUNCTION
            pgcache.invalidate_scopes(kinds text[], names text[], tenants text[], entities text[])
            RETURNS void LANGUAGE sql AS ''";
        stage.sql(deaf).await;
        stage.until("stale answers", || stage.stale() > 0).await;
    });
}
