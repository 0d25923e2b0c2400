//! The life of a private server, while its owner lives.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests

mod common;

use std::io::ErrorKind;
use std::time::Duration;

use test_support::{Options, Server};
use tokio::time::timeout;

use common::processes_of;

#[tokio::test]
async fn drop_leaves_no_process_and_no_file() {
    let server = Server::start().unwrap();
    let dir = server.run_dir().to_owned();
    let client = server.database().await.connect().await;
    client.simple_query("SELECT 1").await.unwrap();
    assert!(!processes_of(&dir).is_empty());

    drop(server);

    assert!(!dir.exists());
    assert_eq!(processes_of(&dir), [""; 0]);
}

#[tokio::test]
async fn databases_are_empty_and_apart() {
    let server = Server::start().unwrap();
    let (one, two) = tokio::join!(server.database(), server.database());
    assert_ne!(one.name(), two.name());
    for database in [one, two] {
        let client = database.pool(2).get_owned().await.unwrap();
        client.batch_execute("CREATE TABLE t ()").await.unwrap();
    }
}

#[tokio::test]
async fn url_leads_to_the_same_database() {
    let server = Server::start().unwrap();
    let database = server.database().await;
    let (client, connection) = tokio_postgres::connect(&database.url(), tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    let row = client.query_one(
        "SELECT current_database()::text, current_setting('server_version_num')::int",
        &[],
    );
    let row = row.await.unwrap();
    assert_eq!(row.get::<_, &str>(0), database.name());
    let version: i32 = row.get(1);
    assert_eq!(u32::try_from(version).unwrap() / 10_000, server.major());
}

#[tokio::test]
async fn options_win_over_defaults() {
    let options = Options::new()
        .config("max_connections", "17")
        .config("track_commit_timestamp", "on");
    let server = Server::with(options).unwrap();
    let client = server.database().await.connect().await;
    let sql = "SELECT current_setting('max_connections') || ' ' || current_setting('track_commit_timestamp')";
    let setting: String = client.query_one(sql, &[]).await.unwrap().get(0);
    assert_eq!(setting, "17 on");
}

#[test]
fn a_start_that_fails_shows_the_log() {
    let error = Server::with(Options::new().config("no_such_setting", "1")).unwrap_err();
    assert!(error.to_string().contains("no_such_setting"), "{error}");
}

#[tokio::test]
async fn a_crash_keeps_what_is_committed() {
    let mut server = Server::start().unwrap();
    let database = server.database().await;
    let client = database.connect().await;
    let sql = "CREATE TABLE logged AS SELECT generate_series(1, 1000) i;
               CREATE UNLOGGED TABLE unlogged AS TABLE logged";
    client.batch_execute(sql).await.unwrap();
    // A child that is busy must not survive the postmaster.
    let busy = database.connect().await;
    let busy = tokio::spawn(async move {
        busy.batch_execute("SELECT count(*) FROM generate_series(1, 1e12)")
            .await
    });
    let sql = "INSERT INTO logged VALUES (1001)";
    assert_eq!(client.execute(sql, &[]).await.unwrap(), 1);

    server.kill9().unwrap();
    assert!(busy.await.unwrap().is_err());
    assert!(client.simple_query("SELECT 1").await.is_err());
    server.launch().unwrap();

    let client = database.connect().await;
    let sql = "SELECT (SELECT count(*) FROM logged), (SELECT count(*) FROM unlogged)";
    let row = client.query_one(sql, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (1001, 0));
}

#[tokio::test]
async fn an_orderly_stop_keeps_unlogged_tables() {
    let mut server = Server::start().unwrap();
    let database = server.database().await;
    let sql = "CREATE UNLOGGED TABLE unlogged AS SELECT 1";
    database.connect().await.batch_execute(sql).await.unwrap();

    server.stop().unwrap();
    assert!(server.stop().is_err());
    server.launch().unwrap();
    assert!(server.launch().is_err());

    let client = database.connect().await;
    let sql = "SELECT count(*) FROM unlogged";
    assert_eq!(
        client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0),
        1
    );
    assert!(server.log().contains("ready to accept connections"));
}

#[tokio::test]
async fn a_paused_server_answers_when_it_is_resumed() {
    let server = Server::start().unwrap();
    let client = server.database().await.connect().await;
    client.simple_query("SELECT 1").await.unwrap();

    server.pause().unwrap();
    let query = client.simple_query("SELECT 2");
    tokio::pin!(query);
    // How long there is no answer is all that shows from here.
    timeout(Duration::from_millis(200), &mut query)
        .await
        .unwrap_err();

    server.resume().unwrap();
    query.await.unwrap();
}

#[tokio::test]
async fn a_paused_server_can_be_stopped_killed_and_dropped() {
    let mut server = Server::start().unwrap();
    let dir = server.run_dir().to_owned();
    let _client = server.database().await.connect().await;
    server.pause().unwrap();
    server.stop().unwrap();
    server.launch().unwrap();
    server.pause().unwrap();
    server.kill9().unwrap();
    server.launch().unwrap();
    server.pause().unwrap();
    drop(server);
    assert!(!dir.exists());
}

#[test]
fn a_killed_server_can_be_dropped() {
    let mut server = Server::start().unwrap();
    let dir = server.run_dir().to_owned();
    server.kill9().unwrap();
    drop(server);
    assert!(!dir.exists());
}

#[test]
fn client_programs_are_set_up() {
    let server = Server::start().unwrap();
    let output = server
        .command("psql")
        .args(["-XAtc", "SHOW port", "postgres"])
        .output();
    match output {
        Ok(output) => {
            let port = String::from_utf8(output.stdout).unwrap();
            assert_eq!(port.trim_end(), server.port().to_string());
        }
        // Fetched binaries come without clients.
        Err(e) => assert_eq!(e.kind(), ErrorKind::NotFound),
    }
}

#[tokio::test]
#[ignore = "fetches five packages the first time"]
async fn a_version_that_is_not_installed_is_fetched() {
    for major in 14..=18 {
        let server = Server::with(Options::new().major(major)).unwrap();
        assert_eq!(server.major(), major);
        let client = server.database().await.connect().await;
        client.simple_query("SELECT 1").await.unwrap();
    }
}
