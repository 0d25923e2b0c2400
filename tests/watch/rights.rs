//! Whoever writes to a watched table needs no right here, and can make nothing of what runs for him.

use test_support::logs::logged;

use crate::stage::{ITEMS, Stage, refusal, run, text};

#[tokio::test]
async fn a_writer_needs_nothing_but_the_table() {
    let stage = Stage::new(ITEMS).await;
    let role = stage
        .role(
            "writer",
            "GRANT INSERT, UPDATE, DELETE, TRUNCATE, SELECT ON item TO $role",
        )
        .await;
    let writer = stage.connect_as(&role).await;
    for (statement, changes) in [
        ("INSERT INTO item VALUES (5, 1)", &["item 1/5"] as &[&str]),
        (
            "UPDATE item SET price = 1 WHERE id IN (1, 3)",
            &["item 1/1", "item 2/3"],
        ),
        ("DELETE FROM item WHERE id = 5", &["item 1/5"]),
        ("TRUNCATE item", &["item */*"]),
    ] {
        assert_eq!(
            stage.changes_by(&writer, statement).await,
            changes,
            "{statement}"
        );
    }
    for denied in [
        "SELECT pgcache.watch_1()",
        "SELECT pgcache.watch('item')",
        "SELECT FROM pgcache.watched",
        "SELECT pgcache.invalidate('item')",
    ] {
        assert!(
            refusal(&writer, denied)
                .await
                .0
                .contains("permission denied"),
            "{denied}"
        );
    }
    run(
        &stage.sql,
        &format!("GRANT USAGE ON SCHEMA pgcache TO {role}"),
    )
    .await;
    for denied in [
        "CREATE TEMP TABLE mine (id int, tenant int); CREATE TRIGGER t AFTER INSERT ON mine EXECUTE FUNCTION pgcache.watch_1()",
        "SELECT pgcache.watch('item')",
        "SELECT pgcache.unwatch('item')",
        "SELECT pgcache.cascade('a', 'b')",
        "SELECT pgcache.notify()",
        "SELECT pgcache.record_unwatch('item')",
        "SELECT * FROM pgcache.adopt_fraiseql()",
        "SELECT pgcache.drop_trigger_function('item')",
        "SELECT pgcache.doorbell()",
        "SELECT pgcache.forget_dropped()",
    ] {
        assert!(
            refusal(&writer, denied)
                .await
                .0
                .contains("permission denied"),
            "{denied}"
        );
    }
    drop(writer);
    run(
        &stage.sql,
        &format!("DROP OWNED BY {role}; DROP ROLE {role}"),
    )
    .await;
}

#[tokio::test]
async fn row_level_security_hides_nothing_from_the_log() {
    let stage = Stage::new(ITEMS).await;
    let role = stage.role("writer", "GRANT ALL ON item TO $role").await;
    run(&stage.sql, "ALTER TABLE item ENABLE ROW LEVEL SECURITY; ALTER TABLE item FORCE ROW LEVEL SECURITY;
        CREATE POLICY w ON item FOR UPDATE USING (true) WITH CHECK (true); CREATE POLICY r ON item FOR SELECT USING (tenant = 1);
        CREATE POLICY d ON item FOR DELETE USING (tenant = 1)").await;
    let writer = stage.connect_as(&role).await;
    assert_eq!(
        stage.changes_by(&writer, "UPDATE item SET price = 0").await,
        ["item */4", "item 1/1", "item 1/2", "item 2/3"]
    );
    assert_eq!(
        stage
            .changes_by(&writer, "DELETE FROM item WHERE id < 9")
            .await,
        ["item 1/1", "item 1/2"]
    );
    drop(writer);
    run(
        &stage.sql,
        &format!("DROP OWNED BY {role}; DROP ROLE {role}"),
    )
    .await;
}

const TRAPS: &str = "
    CREATE FUNCTION $schema.trap() RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped as %', current_user; END $$;
    CREATE FUNCTION $schema.pg_current_xact_id() RETURNS xid8 LANGUAGE sql AS $$ SELECT $schema.trap(); SELECT '3'::xid8 $$;
    CREATE FUNCTION $schema.record_send(record) RETURNS bytea LANGUAGE plpgsql AS $$ BEGIN PERFORM $schema.trap(); RETURN ''; END $$;
    CREATE FUNCTION $schema.differ(record, record) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN PERFORM $schema.trap(); RETURN false; END $$;
    CREATE FUNCTION $schema.same(int, int) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN PERFORM $schema.trap(); RETURN false; END $$;
    CREATE OPERATOR $schema.*<> (FUNCTION = $schema.differ, LEFTARG = record, RIGHTARG = record);
    CREATE OPERATOR $schema.= (FUNCTION = $schema.same, LEFTARG = int, RIGHTARG = int);
    CREATE DOMAIN $schema.text AS int CHECK (false);
    CREATE TABLE $schema.invalidation (xid int); CREATE TABLE $schema.old_rows (id int); CREATE TABLE $schema.new_rows (id int);";

#[tokio::test]
async fn what_a_writer_puts_into_its_search_path_is_not_used() {
    let stage = Stage::new(ITEMS).await;
    run(
        &stage.sql,
        "CREATE TABLE keyless (id int, v int); INSERT INTO keyless VALUES (1, 1);
                     SELECT pgcache.watch('keyless', entity_column => 'id')",
    )
    .await;
    let grants = format!(
        "GRANT ALL ON item, keyless TO $role; CREATE SCHEMA trap AUTHORIZATION $role; GRANT TEMPORARY ON DATABASE {} TO $role",
        stage.database.name()
    );
    let role = stage.role("writer", &grants).await;
    for schema in ["trap", "pg_temp"] {
        let writer = stage.connect_as(&role).await;
        run(&writer, &TRAPS.replace("$schema", schema)).await;
        run(
            &writer,
            &format!("SET search_path = {schema}, pg_catalog, public"),
        )
        .await;
        for (statement, changes) in [
            (
                "INSERT INTO public.item VALUES (9, 1)",
                &["item 1/9"] as &[&str],
            ),
            (
                "UPDATE public.item SET price = coalesce(price, 0) + 1 WHERE id OPERATOR(pg_catalog.<) 3",
                &["item 1/1", "item 1/2"],
            ),
            ("UPDATE public.keyless SET v = v + 1", &["keyless */1"]),
            (
                "DELETE FROM public.item WHERE id OPERATOR(pg_catalog.=) 9",
                &["item 1/9"],
            ),
        ] {
            assert_eq!(
                stage.changes_by(&writer, statement).await,
                changes,
                "{schema}: {statement}"
            );
        }
    }
    run(
        &stage.sql,
        &format!("DROP OWNED BY {role} CASCADE; DROP ROLE {role}"),
    )
    .await;
}

#[tokio::test]
async fn the_schema_of_a_role_that_cannot_log_in_and_an_application_that_is_its_member() {
    let database = test_support::database().await;
    let sql = database.connect().await;
    let (owner, app) = (
        format!("{}_owner", database.name()),
        format!("{}_app", database.name()),
    );
    run(&sql, &format!(
        "CREATE ROLE {owner} NOLOGIN; CREATE ROLE {app} IN ROLE {owner}; GRANT CREATE ON DATABASE {} TO {app}, {owner};
         CREATE TABLE item (id int PRIMARY KEY, tenant int); GRANT SELECT, INSERT, TRIGGER ON item TO {app}", database.name())).await;
    let mut config = database.config();
    config.options(format!("-c role={app}"));
    let pool = tower_pgcache::bb8::Pool::builder()
        .max_size(2)
        .build_unchecked(tower_pgcache::bb8_postgres::PostgresConnectionManager::new(
            config,
            tokio_postgres::NoTls,
        ));
    let cache = tower_pgcache::PgCache::builder(pool)
        .store_deadline(crate::stage::MINUTE)
        .owner(&owner)
        .build()
        .unwrap();
    cache.ready().await.unwrap();
    // nothing but TRIGGER on the table
    cache
        .watch(tower_pgcache::Watch::table("item").entity_column("id"))
        .await
        .unwrap();
    cache
        .watch(tower_pgcache::Watch::table("item").entity_column("id"))
        .await
        .unwrap();
    assert_eq!(cache.capabilities().await.unwrap().watched_tables, 1);
    let owners = "SELECT string_agg(DISTINCT relowner::regrole::text, ',') FROM pg_class WHERE relnamespace = 'pgcache'::regnamespace";
    assert_eq!(text(&sql, owners).await, owner);
    let owners = "SELECT string_agg(DISTINCT proowner::regrole::text, ',') FROM pg_proc WHERE pronamespace = 'pgcache'::regnamespace";
    assert_eq!(text(&sql, owners).await, owner);
    let open = "SELECT string_agg(proname, ',' ORDER BY proname) FROM pg_proc p WHERE pronamespace = 'pgcache'::regnamespace
                   AND (proacl IS NULL OR EXISTS (SELECT FROM aclexplode(proacl) a WHERE a.grantee = 0))";
    assert_eq!(text(&sql, open).await, "invalidate,invalidate_scopes");
    run(
        &sql,
        "DELETE FROM pgcache.invalidation; INSERT INTO item VALUES (1, 1)",
    )
    .await;
    assert_eq!(
        text(
            &sql,
            "SELECT name || entity FROM pgcache.recent_invalidations"
        )
        .await,
        "item1"
    );
    cache.close().await;
    drop(cache);
    let clear = format!(
        "DROP OWNED BY {app} CASCADE; DROP OWNED BY {owner} CASCADE; DROP ROLE {app}; DROP ROLE {owner}"
    );
    run(&sql, &clear).await;
}

#[tokio::test]
async fn a_superuser_is_told_of_the_better_way() {
    Stage::new("").await;
    let log = logged();
    assert!(
        log.contains("installed by a superuser") && log.contains("owner(..)"),
        "{log}"
    );
}
