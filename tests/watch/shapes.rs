//! Tables of unusual shape.

use crate::stage::{Stage, refusal, run, text};

#[tokio::test]
async fn without_a_primary_key() {
    let stage = Stage::new(
        "CREATE TABLE item (t int, e text, x float8, j json, p point);
         INSERT INTO item VALUES (1, 'a', 1, '{}', '(1,1)'), (1, 'a', 1, '{}', '(1,1)'), (1, 'b', 2, '{}', '(1,1)'), (2, 'c', 3, NULL, NULL);
         SELECT pgcache.watch('item', tenant_column => 't', entity_column => 'e')",
    )
    .await;
    for (statement, changes) in [
        ("UPDATE item SET x = x", &[] as &[&str]),
        ("UPDATE item SET x = 5 WHERE e = 'a'", &["item 1/a"]),
        (
            "UPDATE item SET x = 7 - x WHERE e IN ('b', 'c')",
            &["item 1/b", "item 2/c"],
        ),
        ("UPDATE item SET j = '{ }' WHERE e = 'b'", &["item 1/b"]),
        (
            "UPDATE item SET p = '(1,2)' WHERE e IN ('b', 'c')",
            &["item 1/b", "item 2/c"],
        ),
        (
            "UPDATE item SET t = 3 WHERE e = 'a'",
            &["item 1/a", "item 3/a"],
        ),
        (
            "UPDATE item SET e = 'z' WHERE e = 'b'",
            &["item 1/b", "item 1/z"],
        ),
        (
            "DELETE FROM item WHERE ctid = (SELECT max(ctid) FROM item WHERE e = 'a')",
            &["item 3/a"],
        ),
        (
            "UPDATE item SET x = 0.1 WHERE e IN ('z', 'c')",
            &["item 1/z", "item 2/c"],
        ),
        // two numbers that look alike in this session
        (
            "SET extra_float_digits = -5; UPDATE item SET x = 0.1 + 1e-16 WHERE e IN ('z', 'c'); RESET extra_float_digits",
            &["item 1/z", "item 2/c"],
        ),
    ] {
        stage.expect(statement, changes).await;
    }
}

#[tokio::test]
async fn keys_of_every_kind() {
    let stage = Stage::new("CREATE TYPE mood AS ENUM ('glad', 'sad'); CREATE DOMAIN code AS uuid; CREATE DOMAIN deep AS code").await;
    for (number, (key, values)) in [
        ("k smallint, l text COLLATE \"C\", PRIMARY KEY (l, k)", "(1, 'a'), (1, 'b'), (2, 'a')"),
        ("k mood PRIMARY KEY, l int", "('glad', 1), ('sad', 2)"),
        ("k timestamptz, l int, PRIMARY KEY (k, l)", "('2020-01-01', 1), ('2020-01-01', 2)"),
        ("k deep PRIMARY KEY, l int", "('00000000-0000-0000-0000-000000000001', 1), ('00000000-0000-0000-0000-000000000002', 2)"),
        ("k varchar(5) PRIMARY KEY, l char(3)", "('a', 'x'), ('b', 'y')"),
        ("k \"char\" PRIMARY KEY, l name", "('a', 'x'), ('b', 'y')"),
        ("k numeric PRIMARY KEY, l bool", "(1.0, true), (2, false)"),
        ("k bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, l oid", "(DEFAULT, 1), (DEFAULT, 2)"),
    ]
    .into_iter()
    .enumerate()
    {
        let table = format!("t{number}");
        run(
            &stage.sql,
            &format!(
                "CREATE TABLE {table} ({key}, e int GENERATED ALWAYS AS IDENTITY, v int); INSERT INTO {table} (k, l) VALUES {values};
                 SELECT pgcache.watch('{table}', entity_column => 'e')"
            ),
        )
        .await;
        let one = format!("UPDATE {table} SET v = 1 WHERE e = 2");
        stage.expect(&one, &[&format!("{table} */2")]).await;
        let two = format!("UPDATE {table} SET v = 1 WHERE e < 3");
        stage.expect(&two, &[&format!("{table} */1")]).await;
        stage.expect(&two, &[]).await;
        let third = format!("UPDATE {table} SET v = e");
        let changes = stage.changes(&third).await;
        assert_eq!(changes[0], format!("{table} */2"), "{key}: 1 has the value already");
    }
}

#[tokio::test]
async fn tenants_and_entities_of_every_type() {
    let stage = Stage::new(
        "CREATE DOMAIN code AS uuid; CREATE DOMAIN short AS text CHECK (length(value) < 9)",
    )
    .await;
    let uuid = "0123abcd-0000-0000-0000-000000000001";
    for (number, (type_, value, text)) in [
        ("smallint", "7", "7"),
        ("bigint", "-7", "-7"),
        ("numeric(9,2)", "7", "7.00"),
        ("text", "'a/b'", "a/b"),
        ("varchar(9)", "'Ä'", "Ä"),
        ("char(3)", "'x'", "x"),
        ("name", "'x'", "x"),
        ("\"char\"", "'x'", "x"),
        ("uuid", &format!("'{uuid}'"), uuid),
        ("bool", "true", "true"),
        ("code", &format!("'{uuid}'"), uuid),
        ("short", "'s'", "s"),
        ("oid", "9", "9"),
    ]
    .into_iter()
    .enumerate()
    {
        let setup = format!(
            "CREATE TABLE t{number} (id int PRIMARY KEY, t {type_}, e {type_});
             SELECT pgcache.watch('t{number}', tenant_column => 't', entity_column => 'e', always => true)"
        );
        run(&stage.sql, &setup).await;
        let change = format!("t{number} {text}/{text}");
        for statement in [
            format!("INSERT INTO t{number} VALUES (1, {value}, {value})"),
            format!("INSERT INTO t{number} VALUES (2, {value}, {value}), (3, {value}, {value})"),
            format!("UPDATE t{number} SET id = id + 10"),
            format!("DELETE FROM t{number} WHERE id = 11"),
            format!(
                "SET session_replication_role = replica; UPDATE t{number} SET id = id + 10; RESET session_replication_role"
            ),
        ] {
            stage.expect(&statement, &[&change]).await;
        }
    }
}

#[tokio::test]
async fn names_in_capitals_with_signs_and_of_variables() {
    let stage = Stage::new(
        r#"CREATE SCHEMA "My Shop";
           CREATE TABLE "My Shop"."It's %s $body$" (number int, tenant int, tenants int, entity int, entities int, name text, hash int, old_row int,
               new_row int, old_rows int, o int, n int, r int, w int, s int, v int, c int, differs bool, moved bool, one_by_one int, nobody int,
               "Ten""ant %1$s" int, "E $$" int, "select" int, PRIMARY KEY (number, old_row));
           SELECT pgcache.watch('"My Shop"."It''s %s $body$"', 'odd', 'Ten"ant %1$s', 'E $$', always => true)"#,
    )
    .await;
    let table = r#""My Shop"."It's %s $body$""#;
    for columns in ["NULL", "'{name,new_row,number,select}'", "'{tenant}'"] {
        run(&stage.sql, &format!(
            r#"TRUNCATE {table}; SELECT pgcache.watch('{}', 'odd', 'Ten"ant %1$s', 'E $$', {columns}, always => true)"#,
            table.replace('\'', "''")
        )).await;
        let insert = format!(
            r#"INSERT INTO {table} (number, old_row, tenant, "Ten""ant %1$s", "E $$") VALUES (1, 1, 5, 6, 7), (1, 2, 5, 6, 8)"#
        );
        stage.expect(&insert, &["odd 6/7", "odd 6/8"]).await;
        stage
            .expect(
                &format!("UPDATE {table} SET tenant = 9 WHERE old_row = 1"),
                if columns.contains("name") {
                    &[]
                } else {
                    &["odd 6/7"]
                },
            )
            .await;
        stage
            .expect(
                &format!("UPDATE {table} SET name = 'x', tenant = 10"),
                &["odd 6/7", "odd 6/8"],
            )
            .await;
        let replicated = format!(
            "SET session_replication_role = replica; UPDATE {table} SET name = 'y', tenant = 11 WHERE old_row = 2; RESET session_replication_role"
        );
        stage.expect(&replicated, &["odd 6/8"]).await;
        run(&stage.sql, "SELECT pgcache.cascade('odd', 'other', 'number'), pgcache.cascade('odd', 'third', 'Ten\"ant %1$s')").await;
        let cascading = format!(
            "UPDATE {table} SET tenant = 12 WHERE old_row = 2; UPDATE {table} SET name = 'z' WHERE old_row = 2"
        );
        stage
            .expect(&cascading, &["odd 6/8", "other 6/1", "third 6/6"])
            .await;
        run(
            &stage.sql,
            "SELECT pgcache.uncascade('odd', 'other'), pgcache.uncascade('odd', 'third')",
        )
        .await;
    }
}

#[tokio::test]
async fn dropped_and_generated_columns() {
    let stage = Stage::new(
        "CREATE TABLE item (gone int, id int PRIMARY KEY, gone_too text, t int, e text GENERATED ALWAYS AS ('e' || t) STORED, v int);
         ALTER TABLE item DROP gone, DROP gone_too;
         CREATE TABLE keyless (gone int, t int, v int); ALTER TABLE keyless DROP gone;
         SELECT pgcache.watch('item', tenant_column => 't', entity_column => 'e'), pgcache.watch('keyless', entity_column => 't')",
    )
    .await;
    stage
        .expect(
            "INSERT INTO item (id, t) VALUES (1, 1), (2, 2)",
            &["item 1/e1", "item 2/e2"],
        )
        .await;
    stage
        .expect("UPDATE item SET v = 1", &["item 1/e1", "item 2/e2"])
        .await;
    stage.expect("UPDATE item SET v = 1", &[]).await;
    stage
        .expect(
            "UPDATE item SET t = 3 WHERE id = 1",
            &["item 1/e1", "item 3/e3"],
        )
        .await;
    stage
        .expect(
            "INSERT INTO keyless VALUES (1, 1), (2, 2)",
            &["keyless */1", "keyless */2"],
        )
        .await;
    stage
        .expect("UPDATE keyless SET v = 2", &["keyless */1"])
        .await;
    // a column dropped afterwards is missed by nobody
    run(
        &stage.sql,
        "ALTER TABLE item DROP v; ALTER TABLE item ADD w int DEFAULT 5",
    )
    .await;
    stage
        .expect("UPDATE item SET w = 5 - id", &["item 2/e2", "item 3/e3"])
        .await;
}

#[tokio::test]
async fn a_virtual_column_is_refused() {
    let stage = Stage::new("").await;
    if stage.major().await < 18 {
        return;
    }
    run(
        &stage.sql,
        "CREATE TABLE item (id int PRIMARY KEY, t int, e int GENERATED ALWAYS AS (t + 1) VIRTUAL)",
    )
    .await;
    for arguments in [
        "entity_column => 'e'",
        "tenant_column => 'e'",
        "columns => '{e}'",
    ] {
        let (message, hint) = refusal(
            &stage.sql,
            &format!("SELECT pgcache.watch('item', {arguments})"),
        )
        .await;
        assert!(
            message.contains("column e of public.item is virtual"),
            "{message}"
        );
        assert!(hint.contains("STORED"), "{hint}");
    }
    run(
        &stage.sql,
        "SELECT pgcache.watch('item', entity_column => 'id')",
    )
    .await;
    run(&stage.sql, "INSERT INTO item VALUES (1, 1), (2, 2)").await;
    stage.expect("UPDATE item SET t = 1", &["item */2"]).await;
    stage.expect("UPDATE item SET t = 1", &[]).await;
    run(
        &stage.sql,
        "CREATE TABLE keyless (t int, e int GENERATED ALWAYS AS (t + 1) VIRTUAL);
         SELECT pgcache.watch('keyless', entity_column => 't'), pgcache.cascade('item', 'other', 'e');",
    )
    .await;
    stage
        .expect(
            "INSERT INTO keyless VALUES (1), (2)",
            &["keyless */1", "keyless */2"],
        )
        .await;
    stage
        .expect("UPDATE keyless SET t = 2", &["keyless */1", "keyless */2"])
        .await;
    stage
        .expect("INSERT INTO item VALUES (4, 1)", &["item */4", "other */*"])
        .await;
    // one that was not virtual before fails nobody, and is shown
    run(
        &stage.sql,
        "CREATE TABLE late (id int PRIMARY KEY, t int, e int); INSERT INTO late VALUES (1, 1), (2, 1);
         SELECT pgcache.watch('late', entity_column => 'e', columns => '{id}');
         ALTER TABLE late DROP e; ALTER TABLE late ADD e int GENERATED ALWAYS AS (t + 1) VIRTUAL",
    )
    .await;
    for statement in [
        "INSERT INTO late VALUES (3, 1)",
        "INSERT INTO late VALUES (4, 1), (5, 2)",
        "DELETE FROM late WHERE id = 3",
        "DELETE FROM late WHERE id > 3",
    ] {
        stage.expect(statement, &["late */*"]).await;
    }
    let broken = "SELECT broken_columns FROM pgcache.watched_tables WHERE domain = 'late'";
    assert_eq!(text(&stage.sql, broken).await, "{e}");
}

#[tokio::test]
async fn texts_that_a_collation_counts_as_equal() {
    let stage = Stage::new("").await;
    let setup = "CREATE COLLATION blind (provider = icu, locale = 'und-u-ks-level1', deterministic = false)";
    if let Err(error) = stage.sql.batch_execute(setup).await {
        let message = error.as_db_error().unwrap().message().to_owned();
        assert!(message.contains("ICU is not supported"), "{message}");
        return;
    }
    run(
        &stage.sql,
        "CREATE TABLE item (t text COLLATE blind, e text COLLATE blind, v int, PRIMARY KEY (t, e));
         CREATE TABLE keyless (t text COLLATE blind, e text COLLATE blind, v int);
         SELECT pgcache.watch('item', tenant_column => 't', entity_column => 'e'),
                pgcache.watch('keyless', tenant_column => 't', entity_column => 'e')",
    )
    .await;
    for table in ["item", "keyless"] {
        let expect = async |statement: &str, changes: &[&str]| {
            let changes: Vec<_> = changes
                .iter()
                .map(|change| format!("{table} {change}"))
                .collect();
            assert_eq!(
                stage.changes(&statement.replace("$t", table)).await,
                changes,
                "{statement}"
            );
        };
        expect(
            "INSERT INTO $t VALUES ('a', 'x', 1), ('b', 'x', 1)",
            &["a/x", "b/x"],
        )
        .await;
        expect(
            "UPDATE $t SET t = CASE t WHEN 'a' THEN 'á' ELSE 'ƀ' END",
            &["a/x", "b/x", "á/x", "ƀ/x"],
        )
        .await;
        expect("UPDATE $t SET e = 'ẋ' WHERE t = 'a'", &["á/x", "á/ẋ"]).await;
        expect("UPDATE $t SET v = 2", &["á/ẋ", "ƀ/x"]).await;
    }
}
