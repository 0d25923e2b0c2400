//! What crashes and copies do to it.

use std::io::Write;
use std::process::Stdio;

use test_support::{Options, Server};

use crate::{Instance, builder, entries, entries_by_partition, number, text};

pub(crate) async fn start() -> Server {
    let start = || Server::with(Options::new());
    tokio::task::spawn_blocking(start).await.unwrap().unwrap()
}

const EPOCH: &str = "SELECT id::text FROM pgcache.epoch";

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_empties_all_partitions_and_it_works_again() {
    let mut server = start().await;
    let database = server.database().await;
    let instance = Instance::split(&database).await;
    instance.get_all(0..30, 3_000).await;
    let before = text(&database.connect().await, EPOCH).await;
    server.kill9().unwrap();
    server.launch().unwrap();
    let sql = database.connect().await;
    assert_eq!(entries(&sql).await, 0);
    instance.cache.ready().await.unwrap();
    assert_ne!(text(&sql, EPOCH).await, before);
    assert_eq!(instance.get_all(0..30, 3_000).await, 0);
    assert_eq!(instance.get_all(0..30, 3_000).await, 30);
    assert!(entries_by_partition(&sql).await.iter().all(|n| *n > 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn durable_partitions_survive_a_crash() {
    let mut server = start().await;
    let database = server.database().await;
    let instance = Instance::new(&database, |b| b.partitions(4).durable(true)).await;
    instance.get_all(0..30, 3_000).await;
    server.kill9().unwrap();
    server.launch().unwrap();
    instance.cache.ready().await.unwrap();
    assert_eq!(instance.get_all(0..30, 3_000).await, 30);
    instance.cache.invalidate([crate::ITEM]).await.unwrap();
    assert_eq!(instance.get_all(0..30, 3_000).await, 0);
}

/// A new epoch empties what belonged to the old one, with DELETE, which who reads does not notice.
#[tokio::test]
async fn a_new_epoch_empties_all_partitions() {
    let database = test_support::database().await;
    let sql = database.connect().await;
    let reader = database.connect().await;
    let instance = Instance::split(&database).await;
    instance.get_all(0..30, 100).await;
    reader
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM pgcache.entry")
        .await
        .unwrap();
    sql.batch_execute("UPDATE pgcache.epoch SET system_identifier = 1")
        .await
        .unwrap();
    let other = Instance::of(builder(database.pool(2)).build().unwrap());
    other.cache.ready().await.unwrap();
    assert_eq!(entries(&sql).await, 0);
    assert_eq!(entries(&reader).await, 30, "as the older snapshot sees it");
    assert_eq!(other.get_all(0..30, 100).await, 0);
    assert_eq!(other.get_all(0..30, 100).await, 30);
}

/// Of the server's own version, or newer.
async fn dump(server: &Server, database: &test_support::Database) -> Option<Vec<u8>> {
    let version = server.command("pg_dump").arg("--version").output().unwrap();
    let version = String::from_utf8(version.stdout).unwrap();
    let digits = version.trim_start_matches(|c: char| !c.is_ascii_digit());
    let major: i64 = digits.split('.').next().unwrap().parse().unwrap();
    let sql = database.connect().await;
    let number = number(&sql, "SELECT current_setting('server_version_num')::bigint").await;
    if major < number / 10_000 {
        return None; // it refuses
    }
    let dump = server
        .command("pg_dump")
        .arg(database.name())
        .output()
        .unwrap();
    assert!(dump.status.success(), "{dump:?}");
    Some(dump.stdout)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_dump_has_its_partitions_and_begins_empty() {
    let server = start().await;
    let database = server.database().await;
    let instance = Instance::new(&database, |b| b.partitions(4).durable(true)).await;
    instance.get_all(0..30, 3_000).await;
    let Some(dump) = dump(&server, &database).await else {
        return;
    };
    let restored = server.database().await;
    let mut psql = server.command("psql");
    let mut psql = psql
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", restored.name()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    psql.stdin.take().unwrap().write_all(&dump).unwrap();
    assert!(psql.wait().unwrap().success());
    let sql = restored.connect().await;
    assert_eq!(entries(&sql).await, 30);
    let copy = Instance::of(builder(restored.pool(4)).build().unwrap());
    assert_eq!(copy.get_all(0..30, 3_000).await, 0);
    assert_eq!(copy.get_all(0..30, 3_000).await, 30);
    let found = copy.cache.capabilities().await.unwrap();
    assert_eq!((found.partitions, found.durable), (Some(4), true));
    assert!(entries_by_partition(&sql).await.iter().all(|n| *n > 0));
    assert_eq!(
        instance.get_all(0..30, 3_000).await,
        30,
        "the original goes on"
    );
}
