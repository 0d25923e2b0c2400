//! The tables of `pg_fraiseql_cache`, made by hand.

use crate::stage::{Stage, run};

const A: &str = "00000000-0000-0000-0000-00000000000a";
const SHAPE: &str = "
    CREATE SCHEMA fraiseql_cache;
    CREATE TABLE fraiseql_cache.domain_version (tenant_id uuid, domain text, version bigint NOT NULL DEFAULT 1,
        last_modified timestamptz DEFAULT now(), PRIMARY KEY (tenant_id, domain));
    CREATE TABLE fraiseql_cache.cascade_rules (source_domain text, target_domain text, rule_type text);
    INSERT INTO fraiseql_cache.cascade_rules VALUES ('User', 'post', 'invalidate'), ('post', 'feed', 'notify'), ('x y', 'z', 'invalidate'),
        ('a', 'a', 'invalidate'), ('b', 'c', NULL);";

async fn adopt(stage: &Stage) -> Vec<String> {
    let adopted = stage.cache().adopt_fraiseql().await.unwrap();
    let mut adopted: Vec<_> = adopted
        .iter()
        .map(|a| format!("{}: {}", a.item, a.outcome))
        .collect();
    adopted.sort();
    adopted
}

#[tokio::test]
async fn its_versions_invalidate_and_its_rules_apply() {
    let stage = Stage::new(SHAPE).await;
    let expected = [
        "cascade User -> post: adopted",
        "cascade a -> a: not adopted: a domain always invalidates itself",
        "cascade b -> c: not adopted: rules of the type NULL are not known",
        "cascade post -> feed: not adopted: rules of the type notify are not known",
        "cascade x y -> z: not adopted: not a domain name",
        "fraiseql_cache.domain_version: adopted: its versions invalidate",
    ];
    assert_eq!(adopt(&stage).await, expected);
    assert_eq!(adopt(&stage).await, expected, "again");
    assert!(stage.cache().capabilities().await.unwrap().adopted_fraiseql);
    let both: &[&str] = &[&format!("post {A}/*"), &format!("user {A}/*")];
    for (statement, changes) in [
        (
            format!(
                "INSERT INTO fraiseql_cache.domain_version VALUES ('{A}', 'User'), ('{A}', 'no domain')"
            ),
            both,
        ),
        (
            "UPDATE fraiseql_cache.domain_version SET version = version + 1 WHERE domain = 'User'"
                .to_owned(),
            both,
        ),
        (
            "UPDATE fraiseql_cache.domain_version SET domain = 'feed' WHERE domain = 'User'"
                .to_owned(),
            &[&format!("feed {A}/*"), both[0], both[1]],
        ),
        (
            "DELETE FROM fraiseql_cache.domain_version WHERE domain = 'feed'".to_owned(),
            &[&format!("feed {A}/*")],
        ),
        (
            "DELETE FROM fraiseql_cache.domain_version WHERE false".to_owned(),
            &[],
        ),
        (
            "TRUNCATE fraiseql_cache.domain_version".to_owned(),
            &["* */*"],
        ),
    ] {
        stage.expect(&statement, changes).await;
    }
}

#[tokio::test]
async fn where_there_is_none_nothing_happens() {
    let stage = Stage::new("").await;
    assert!(adopt(&stage).await.is_empty());
    assert!(!stage.cache().capabilities().await.unwrap().adopted_fraiseql);
}

#[tokio::test]
async fn another_shape_is_reported_and_left_alone() {
    for (change, outcome) in [
        (
            "ALTER TABLE fraiseql_cache.domain_version DROP version",
            "fraiseql_cache.domain_version: not adopted: it lacks version",
        ),
        (
            "ALTER TABLE fraiseql_cache.domain_version ALTER tenant_id TYPE text",
            "fraiseql_cache.domain_version: not adopted: it lacks tenant_id uuid or domain text",
        ),
    ] {
        let stage = Stage::new(&format!("{SHAPE}{change}")).await;
        assert_eq!(adopt(&stage).await, [outcome]);
        assert!(!stage.cache().capabilities().await.unwrap().adopted_fraiseql);
    }
    let stage = Stage::new(&format!(
        "{SHAPE} ALTER TABLE fraiseql_cache.cascade_rules DROP rule_type"
    ))
    .await;
    assert_eq!(
        adopt(&stage).await,
        [
            "fraiseql_cache.cascade_rules: not adopted: it lacks rule_type",
            "fraiseql_cache.domain_version: adopted: its versions invalidate",
        ]
    );
}

#[tokio::test]
async fn a_column_that_changes_later_invalidates_everything_and_runs_no_code() {
    let stage = Stage::new(SHAPE).await;
    adopt(&stage).await;
    run(&stage.sql, "CREATE TYPE evil AS (a int);
        CREATE FUNCTION evil_text(evil) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'ran as %', current_user; END $$;
        CREATE CAST (evil AS text) WITH FUNCTION evil_text(evil) AS IMPLICIT;
        ALTER TABLE fraiseql_cache.domain_version ALTER tenant_id TYPE evil USING ROW(1)::evil").await;
    stage
        .expect(
            "INSERT INTO fraiseql_cache.domain_version VALUES (ROW(1), 'post')",
            &["* */*"],
        )
        .await;
    stage
        .expect("DELETE FROM fraiseql_cache.domain_version", &["* */*"])
        .await;
}

#[tokio::test]
async fn two_schemas_adopt_the_same() {
    let stage = Stage::new(SHAPE).await;
    let other = crate::stage::builder(&stage.database)
        .schema("other")
        .build()
        .unwrap();
    adopt(&stage).await;
    assert!(!other.adopt_fraiseql().await.unwrap().is_empty());
    run(
        &stage.sql,
        &format!(
            "DELETE FROM other.invalidation; DELETE FROM pgcache.invalidation;
        INSERT INTO fraiseql_cache.domain_version VALUES ('{A}', 'post')"
        ),
    )
    .await;
    assert_eq!(stage.log().await, [format!("post {A}/*")]);
    assert_eq!(
        crate::stage::text(&stage.sql, "SELECT name FROM other.invalidation").await,
        "post"
    );
}
