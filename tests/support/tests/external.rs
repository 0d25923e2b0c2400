//! `DATABASE_URL`. The variable is the process's, so each case runs in a process of its own: this program again.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests

use std::process::{Command, Output};

use test_support::{Database, Server};
use tokio_postgres::Client;

const ROLE: &str = "TEST_SUPPORT_USER";

/// Not a test: the process that uses `DATABASE_URL`.
#[tokio::test]
async fn user() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let database = test_support::try_database().await;
    if role == "killed" {
        let _database = database.unwrap();
        std::process::abort(); // runs no destructor, like SIGKILL
    }
    match database {
        Ok(database) => use_it(database).await,
        Err(e) => println!("error: {e}"),
    }
}

async fn use_it(database: Database) {
    let client = database.connect().await;
    let name: String = client
        .query_one("SELECT current_database()::text", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(name, database.name());
    println!("used {name}");
    // The client is still connected when the last handle goes.
    drop(database.clone());
    client.simple_query("SELECT 1").await.unwrap();
    drop(database);
}

fn run_user(role: &str, url: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "user", "--nocapture"])
        .env(ROLE, role)
        .env("DATABASE_URL", url)
        .output()
        .unwrap()
}

async fn leftovers(client: &Client) -> Vec<String> {
    let sql = "SELECT datname::text FROM pg_database WHERE datname LIKE 'pgcache_test_%' AND datname <> current_database()";
    let rows = client.query(sql, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn databases_do_not_pile_up() {
    let server = Server::start().unwrap();
    let database = server.database().await;
    let client = database.connect().await;
    let url = database.url();

    let output = run_user("ordinary", &url);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && stdout.contains("used pgcache_test_"),
        "{output:?}"
    );
    assert_eq!(leftovers(&client).await, [""; 0]);

    assert!(!run_user("killed", &url).status.success());
    let left = leftovers(&client).await;
    assert_eq!(left.len(), 1);
    client
        .batch_execute("CREATE DATABASE pgcache_test_of_somebody")
        .await
        .unwrap();
    let ours = format!("pgcache_test_{}_0_0", std::process::id()); // a process that runs
    client
        .batch_execute(&format!("CREATE DATABASE {ours}"))
        .await
        .unwrap();

    assert!(run_user("ordinary", &url).status.success());
    let mut left = leftovers(&client).await;
    left.sort();
    assert_eq!(left, [ours, "pgcache_test_of_somebody".into()]);
}

#[tokio::test]
async fn a_role_without_createdb_is_told() {
    let server = Server::start().unwrap();
    let database = server.database().await;
    database
        .connect()
        .await
        .batch_execute("CREATE ROLE poor LOGIN")
        .await
        .unwrap();
    let url = database.url().replace("postgres@", "poor@");

    let output = run_user("ordinary", &url);

    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        stdout.contains(r#"ALTER ROLE "poor" CREATEDB"#),
        "{output:?}"
    );
}

#[test]
fn a_server_that_does_not_answer_is_named() {
    let output = run_user("ordinary", "postgres://postgres@127.0.0.1:1/x");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        stdout.contains("error: The server of DATABASE_URL"),
        "{output:?}"
    );
}
