//! What cannot be watched is refused with a reason and a mend.

use crate::stage::{Stage, refusal, run};
use tower_pgcache::Watch;

#[tokio::test]
async fn relations_and_arguments_that_will_not_do() {
    let stage = Stage::new(
        "CREATE TYPE mood AS ENUM ('glad'); CREATE DOMAIN moody AS mood;
         CREATE TABLE item (id int PRIMARY KEY, m mood, d moody, z timestamptz, j jsonb, f float8, a int[], gone int);
         ALTER TABLE item DROP gone;
         CREATE TABLE keyless (id int); CREATE TABLE enum_key (m mood PRIMARY KEY, v int);
         CREATE TABLE \"Straße\" (id int);
         CREATE VIEW v AS SELECT * FROM item; CREATE MATERIALIZED VIEW mv AS SELECT 1 AS id; CREATE SEQUENCE s;
         CREATE TEMP TABLE own (id int)",
    )
    .await;
    for (arguments, message, hint) in [
        ("'v'", "v is a view", "the tables that it reads"),
        ("'mv'", "mv is a materialized view", "refresh()"),
        ("'s'", "s is not a table", "Watch a table"),
        ("'own'", "is a temporary table", "Only its own session"),
        (
            "'pg_class'",
            "pg_class is a table of the system",
            "tables of your own",
        ),
        (
            "'pgcache.entry'",
            "pgcache.entry is a table of the system or of the cache",
            "tables of your own",
        ),
        ("0", "no such table", ""),
        ("NULL", "no such table", ""),
        ("'item', tenant_column => 'no'", "item has no column no", ""),
        (
            "'item', entity_column => 'No'",
            "item has no column \"No\"",
            "",
        ),
        ("'item', columns => '{id,no}'", "item has no column no", ""),
        (
            "'item', entity_column => 'gone'",
            "item has no column gone",
            "",
        ),
        (
            "'item', entity_column => 'ctid'",
            "item has no column ctid",
            "",
        ),
        (
            "'item', columns => '{}'",
            "must name at least one column",
            "Leave it out",
        ),
        (
            "'item', columns => '{NULL}'",
            "must name at least one column",
            "Leave it out",
        ),
        (
            "'item', tenant_column => 'm'",
            "has the type public.mood, which cannot name a tenant",
            "a generated column",
        ),
        (
            "'item', tenant_column => 'd'",
            "has the type public.moody, which cannot name a tenant",
            "a generated column",
        ),
        (
            "'item', tenant_column => 'z'",
            "has the type timestamp with time zone, which cannot name",
            "integer, numeric, uuid",
        ),
        (
            "'item', entity_column => 'j'",
            "has the type jsonb, which cannot name",
            "integer, numeric, uuid",
        ),
        (
            "'item', entity_column => 'f'",
            "has the type double precision, which cannot name",
            "integer, numeric, uuid",
        ),
        (
            "'item', entity_column => 'a'",
            "has the type integer[], which cannot name",
            "integer, numeric, uuid",
        ),
        (
            "'item', max_entities => 0",
            "max_entities must be at least 1, not 0",
            "",
        ),
        (
            "'item', max_entities => NULL",
            "max_entities must be at least 1, not NULL",
            "",
        ),
        (
            "'keyless', columns => '{id}'",
            "has no primary key",
            "Add a primary key",
        ),
        (
            "'enum_key', columns => '{v}'",
            "has no primary key (of integers, uuids or text)",
            "Add a primary key",
        ),
        (
            "'item', 'Bad Name'",
            "'Bad Name' is not a domain name",
            "1 to 63 characters",
        ),
        ("'\"Straße\"'", "no domain can be named after", "domain =>"),
    ] {
        let (got, got_hint) =
            refusal(&stage.sql, &format!("SELECT pgcache.watch({arguments})")).await;
        assert!(got.contains(message), "{arguments}: {got}");
        assert!(got_hint.contains(hint), "{arguments}: {got_hint}");
    }
    let (message, hint) = refusal(&stage.sql, "SELECT pgcache.unwatch('item')").await;
    assert!(
        message.contains("item is not watched") && hint.contains("watched_tables"),
        "{message} {hint}"
    );
    stage.expect("INSERT INTO item VALUES (1)", &[]).await; // nothing was left half done
}

#[tokio::test]
async fn a_type_of_an_extension_is_refused() {
    let stage = Stage::new("").await;
    if stage
        .sql
        .batch_execute("CREATE EXTENSION citext")
        .await
        .is_err()
    {
        return; // not with every server
    }
    run(
        &stage.sql,
        "CREATE TABLE item (id citext PRIMARY KEY, v int)",
    )
    .await;
    let (message, _) = refusal(
        &stage.sql,
        "SELECT pgcache.watch('item', entity_column => 'id')",
    )
    .await;
    assert!(
        message.contains("has the type public.citext, which cannot name"),
        "{message}"
    );
    run(
        &stage.sql,
        "SELECT pgcache.watch('item'); INSERT INTO item VALUES ('a')",
    )
    .await;
    stage
        .expect("UPDATE item SET id = 'A'", &["item */*"])
        .await;
}

#[tokio::test]
async fn from_rust_the_refusal_is_the_error() {
    let stage = Stage::new("CREATE VIEW v AS SELECT 1").await;
    let cache = stage.cache();
    for (watch, text) in [
        (Watch::table("v"), "is a view"),
        (Watch::table("nowhere"), "does not exist"),
    ] {
        let error = cache.watch(watch).await.unwrap_err();
        let error = format!("{error:#}: {:?}", std::error::Error::source(&error));
        assert!(error.contains(text), "{error}");
    }
}

#[tokio::test]
async fn the_default_domain_is_the_name_without_its_prefix() {
    let stage = Stage::new("CREATE TABLE tv_item (id int); CREATE TABLE \"TB_Price\" (id int); CREATE TABLE tvb_x (id int);
        SELECT pgcache.watch('tv_item'), pgcache.watch('\"TB_Price\"'), pgcache.watch('tvb_x')").await;
    stage.expect("INSERT INTO tv_item VALUES (1); INSERT INTO \"TB_Price\" VALUES (1); INSERT INTO tvb_x VALUES (1)",
        &["item */*", "price */*", "tvb_x */*"]).await;
}
