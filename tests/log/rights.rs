//! Who may invalidate, and that nobody can make the function run code of theirs.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::database_with_schema;

async fn keys(sql: &Client) -> Vec<(String, Vec<i64>)> {
    let rows = sql
        .query(
            "SELECT name || coalesce('/' || entity, ''), keys FROM pgcache.invalidation ORDER BY 1",
            &[],
        )
        .await
        .unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// Roles belong to the whole server, so the name is made of the database's.
async fn role(owner: &Client, database: &str, grants: &str) -> String {
    let role = format!("{database}_app");
    owner
        .batch_execute(&format!(
            "CREATE ROLE {role}; {}",
            grants.replace("$role", &role)
        ))
        .await
        .unwrap();
    role
}

async fn drop_role(owner: &Client, role: &str) {
    owner
        .batch_execute(&format!(
            "RESET ROLE; DROP OWNED BY {role} CASCADE; DROP ROLE {role}"
        ))
        .await
        .unwrap();
}

#[tokio::test]
async fn usage_on_the_schema_is_enough_to_invalidate_and_for_nothing_else() {
    let database = database_with_schema().await;
    let owner = database.connect().await;
    let role = role(
        &owner,
        database.name(),
        "GRANT USAGE ON SCHEMA pgcache TO $role",
    )
    .await;
    let app = database.connect().await;
    app.batch_execute(&format!("SET ROLE {role}"))
        .await
        .unwrap();

    app.batch_execute("SELECT pgcache.invalidate('product'); SELECT pgcache.invalidate_scopes('{d}', '{price}', '{a}', '{1}')")
        .await
        .unwrap();
    assert_eq!(keys(&owner).await.len(), 2);
    for denied in [
        "SELECT FROM pgcache.invalidation",
        "SELECT FROM pgcache.entry_state",
        "DELETE FROM pgcache.entry",
        "SELECT pgcache.clear()",
        "SELECT pgcache.fold()",
        "SELECT pgcache.prune()",
        "SELECT pgcache.renew_epoch()",
    ] {
        let error = app.batch_execute(denied).await.unwrap_err();
        assert_eq!(
            error.code(),
            Some(&SqlState::INSUFFICIENT_PRIVILEGE),
            "{denied}"
        );
    }
    drop(app);
    drop_role(&owner, &role).await;
}

#[tokio::test]
async fn a_name_that_is_no_domain_is_refused_with_the_rule() {
    let database = database_with_schema().await;
    let sql = database.connect().await;
    let long = "x".repeat(64);
    for bad in [
        None,
        Some(""),
        Some("Product"),
        Some("a b"),
        Some("ä"),
        Some("a\n"),
        Some(&*long),
    ] {
        let error = sql
            .execute("SELECT pgcache.invalidate($1)", &[&bad])
            .await
            .unwrap_err();
        let error = error.as_db_error().unwrap();
        assert_eq!(error.code(), &SqlState::INVALID_PARAMETER_VALUE);
        assert!(
            error.message().ends_with(" is not a domain name"),
            "{}",
            error.message()
        );
        assert!(
            error.message().contains(bad.unwrap_or("NULL")),
            "{}",
            error.message()
        );
        assert!(error.hint().unwrap().contains("1 to 63 characters"));
    }
    assert!(keys(&sql).await.is_empty());
}

/// Functions, operators, types and tables of the caller's, before the real ones in its `search_path`.
const TRAPS: &str = "
    CREATE FUNCTION $schema.trap() RETURNS void LANGUAGE plpgsql
        AS $$ BEGIN RAISE EXCEPTION 'trapped as %', current_user; END $$;
    CREATE FUNCTION $schema.sha256(bytea) RETURNS bytea LANGUAGE sql AS $$ SELECT $schema.trap(); SELECT $1 $$;
    CREATE FUNCTION $schema.convert_to(text, name) RETURNS bytea LANGUAGE sql AS $$ SELECT $schema.trap(); SELECT ''::bytea $$;
    CREATE FUNCTION $schema.length(bytea) RETURNS integer LANGUAGE sql AS $$ SELECT $schema.trap(); SELECT 1 $$;
    CREATE FUNCTION $schema.pg_current_xact_id() RETURNS xid8 LANGUAGE sql AS $$ SELECT $schema.trap(); SELECT '3'::xid8 $$;
    CREATE FUNCTION $schema.quote_literal(text) RETURNS text LANGUAGE sql AS $$ SELECT $schema.trap(); SELECT '' $$;
    CREATE FUNCTION $schema.concat_text(text, text) RETURNS text LANGUAGE sql AS $$ SELECT $schema.trap(); SELECT '' $$;
    CREATE FUNCTION $schema.no_match(text, text) RETURNS boolean LANGUAGE sql AS $$ SELECT $schema.trap(); SELECT false $$;
    CREATE OPERATOR $schema.|| (FUNCTION = $schema.concat_text, LEFTARG = text, RIGHTARG = text);
    CREATE OPERATOR $schema.!~ (FUNCTION = $schema.no_match, LEFTARG = text, RIGHTARG = text);
    CREATE DOMAIN $schema.xid8 AS text CHECK (false);
    CREATE TABLE $schema.invalidation (xid integer);";

#[tokio::test]
async fn what_the_caller_puts_into_its_search_path_is_not_used() {
    let database = database_with_schema().await;
    let owner = database.connect().await;
    let role = role(
        &owner,
        database.name(),
        "GRANT USAGE ON SCHEMA pgcache TO $role; CREATE SCHEMA trap AUTHORIZATION $role;
         GRANT TEMPORARY ON DATABASE $db TO $role"
            .replace("$db", database.name())
            .as_str(),
    )
    .await;
    const CHANGES: &str = "SELECT pgcache.invalidate('product', 'a', 'ä'); \
                           SELECT pgcache.invalidate_scopes('{u}', '{/}', '{a}', '{1}')";
    owner.batch_execute(CHANGES).await.unwrap();
    let expected = keys(&owner).await;

    for schema in ["trap", "pg_temp"] {
        owner
            .batch_execute("DELETE FROM pgcache.invalidation")
            .await
            .unwrap();
        let app = database.connect().await;
        app.batch_execute(&format!("SET ROLE {role}"))
            .await
            .unwrap();
        app.batch_execute(&TRAPS.replace("$schema", schema))
            .await
            .unwrap();
        app.batch_execute(&format!("SET search_path = {schema}, pg_catalog"))
            .await
            .unwrap();
        if schema == "trap" {
            // the traps work (those in pg_temp are not even found by name)
            let error = app
                .query("SELECT sha256('a'::bytea)", &[])
                .await
                .unwrap_err();
            assert!(
                error
                    .as_db_error()
                    .unwrap()
                    .message()
                    .starts_with("trapped")
            );
        }
        app.batch_execute(CHANGES).await.unwrap();
        let refused = app
            .batch_execute("SELECT pgcache.invalidate('No Domain')")
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Some(&SqlState::INVALID_PARAMETER_VALUE));
        assert_eq!(keys(&owner).await, expected, "{schema}");
    }
    drop_role(&owner, &role).await;
}
