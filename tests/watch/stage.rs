//! A database with the cache's schema, and what a statement leaves in the log.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use test_support::Database;
use test_support::logs::keep_logs;
use tokio::sync::mpsc;
use tokio_postgres::{AsyncMessage, Client, NoTls};
use tower_pgcache::{PgCache, PgCacheBuilder};

pub(crate) const MINUTE: Duration = Duration::from_secs(60);

/// Rows of the tenants 1 and 2 whose entity is the primary key.
pub(crate) const ITEMS: &str = "
    CREATE TABLE item (id int PRIMARY KEY, tenant int, name text, price int);
    INSERT INTO item VALUES (1, 1, 'a', 10), (2, 1, 'b', 20), (3, 2, 'c', 30), (4, NULL, 'd', 40);
    SELECT pgcache.watch('item', tenant_column => 'tenant', entity_column => 'id')";

pub(crate) struct Stage {
    pub(crate) database: Database,
    pub(crate) sql: Client,
}

impl Stage {
    pub(crate) async fn new(setup: &str) -> Self {
        let database = test_support::database().await;
        builder(&database).build().unwrap().ready().await.unwrap();
        let sql = database.connect().await;
        run(&sql, setup).await;
        Self { database, sql }
    }

    pub(crate) fn cache(&self) -> PgCache {
        builder(&self.database).build().unwrap()
    }

    /// What these statements of one transaction bring into the log: `domain tenant/entity`, `*` for all, sorted.
    pub(crate) async fn changes(&self, statements: &str) -> Vec<String> {
        self.changes_by(&self.sql, statements).await
    }

    pub(crate) async fn changes_by(&self, client: &Client, statements: &str) -> Vec<String> {
        run(&self.sql, "DELETE FROM pgcache.invalidation").await;
        run(client, statements).await;
        self.log().await
    }

    pub(crate) async fn log(&self) -> Vec<String> {
        texts(
            &self.sql,
            "SELECT DISTINCT name || ' ' || coalesce(tenant, '*') || '/' || coalesce(entity, '*') COLLATE \"C\" AS change
               FROM pgcache.recent_invalidations ORDER BY 1",
        )
        .await
    }

    #[track_caller]
    pub(crate) fn expect<'a>(
        &'a self,
        statements: &'a str,
        changes: &'a [&str],
    ) -> impl Future<Output = ()> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            assert_eq!(
                self.changes(statements).await,
                changes,
                "{statements} ({caller})"
            );
        }
    }

    pub(crate) async fn major(&self) -> i32 {
        let number = text(&self.sql, "SHOW server_version_num").await;
        number.parse::<i32>().unwrap() / 10_000
    }

    /// A role of this database only: roles belong to the whole server. `$role` in `grants` is its name.
    pub(crate) async fn role(&self, suffix: &str, grants: &str) -> String {
        let role = format!("{}_{suffix}", self.database.name());
        let grants = grants.replace("$role", &role);
        run(&self.sql, &format!("CREATE ROLE {role}; {grants}")).await;
        role
    }

    pub(crate) async fn connect_as(&self, role: &str) -> Client {
        let client = self.database.connect().await;
        run(&client, &format!("SET ROLE {role}")).await;
        client
    }

    /// A connection, and what the server says on it.
    pub(crate) async fn with_messages(&self) -> (Client, mpsc::UnboundedReceiver<AsyncMessage>) {
        let (client, mut connection) = self.database.config().connect(NoTls).await.unwrap();
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut messages = stream::poll_fn(move |cx| connection.poll_message(cx));
        tokio::spawn(async move {
            while let Some(Ok(message)) = messages.next().await {
                let _ = sender.send(message);
            }
        });
        (client, receiver)
    }
}

/// Deadlines that a busy machine does not reach.
pub(crate) fn builder(database: &Database) -> PgCacheBuilder {
    keep_logs();
    PgCache::builder(database.pool(4))
        .lookup_deadline(MINUTE)
        .store_deadline(MINUTE)
}

pub(crate) async fn run(client: &Client, statements: &str) {
    if let Err(error) = client.batch_execute(statements).await {
        panic!("{statements}: {error:?}");
    }
}

pub(crate) async fn text(client: &Client, query: &str) -> String {
    texts(client, query).await.concat()
}

/// The first column.
pub(crate) async fn texts(client: &Client, query: &str) -> Vec<String> {
    let rows = client.simple_query(query).await;
    let rows = rows.unwrap_or_else(|error| panic!("{query}: {error:?}"));
    rows.iter()
        .filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => {
                Some(row.get(0).unwrap_or("NULL").to_owned())
            }
            _ => None,
        })
        .collect()
}

/// Message and hint of the refusal.
pub(crate) async fn refusal(client: &Client, statement: &str) -> (String, String) {
    let error = client.batch_execute(statement).await;
    let error = error.expect_err(statement);
    let error = error.as_db_error().expect("an answer of the server");
    (
        error.message().to_owned(),
        error.hint().unwrap_or_default().to_owned(),
    )
}

/// Returns once somebody waits for a lock of the table.
pub(crate) async fn somebody_waits(client: &Client, table: &str) {
    let query = format!(
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = '{table}'::regclass
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    );
    while text(client, &query).await == "0" {
        tokio::task::yield_now().await;
    }
}
