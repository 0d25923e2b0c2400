//! Programs that change the tables, and note in the ledger what they do.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use serde_json::json;
use tokio::time::sleep;
use tower_pgcache::tokio_postgres::{Client, Error as SqlError, NoTls, Row};

use super::http::Client as Http;
use super::ledger::{Change, Table};
use super::reader::{self, Kind};
use super::{Error, ORDERS, PRODUCTS, Run, TENANTS};
use test_support::random::Random;

/// The pause before a writer tries to connect again to a server that is down.
const RETRY: Duration = Duration::from_millis(20);

/// How a transaction ends.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Commit,
    Rollback,
    TwoPhase,
}

impl Table {
    const ALL: [Self; 3] = [Self::Product, Self::Price, Self::Order];

    fn name(self) -> &'static str {
        match self {
            Self::Product => "product",
            Self::Price => "price",
            Self::Order => "orders",
        }
    }

    fn id(self) -> &'static str {
        match self {
            Self::Product | Self::Order => "id",
            Self::Price => "product_id",
        }
    }

    /// The ids that are there from the start, and that come back when they were deleted.
    fn rows(self) -> i64 {
        match self {
            Self::Product | Self::Price => PRODUCTS,
            Self::Order => ORDERS,
        }
    }

    /// `id`, `tenant_id` and `version` of a changed row.
    fn returning(self) -> String {
        format!("RETURNING {} AS id, tenant_id, version", self.id())
    }

    fn changes(self, rows: &[Row]) -> Vec<Change> {
        let change = |row: &Row| Change {
            row: (self, row.get("id")),
            version: row.get("version"),
            tenant: row.get("tenant_id"),
        };
        rows.iter().map(change).collect()
    }
}

struct Writer {
    run: Arc<Run>,
    number: u64,
    random: Random,
    transactions: u64,
    https: Vec<Http>,
    /// The last change that is known to be committed.
    last: Option<Change>,
}

pub(super) async fn write(run: Arc<Run>, number: u64) {
    let mut writer = Writer {
        random: Random::new(run.plan.seed, 2000 + number),
        https: run
            .addresses
            .iter()
            .map(|address| Http::new(*address))
            .collect(),
        transactions: 0,
        last: None,
        run,
        number,
    };
    while !writer.run.is_over() {
        match writer.connect().await {
            Ok(sql) => writer.work(&sql).await,
            Err(_) => sleep(RETRY).await,
        }
    }
}

impl Writer {
    /// Also ends what an earlier connection has prepared: it would hold its locks forever.
    async fn connect(&self) -> Result<Client, SqlError> {
        let url = &self.run.database_url;
        let (sql, connection) = tower_pgcache::tokio_postgres::connect(url, NoTls).await?;
        tokio::spawn(connection);
        let prepared = sql
            .query(
                "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() AND gid LIKE $1",
                &[&format!("freshness-{}-%", self.number)],
            )
            .await?;
        for row in prepared {
            let gid: &str = row.get(0);
            sql.batch_execute(&format!("COMMIT PREPARED '{gid}'"))
                .await?;
        }
        Ok(sql)
    }

    /// Until the connection breaks.
    async fn work(&mut self, sql: &Client) {
        let run = self.run.clone();
        loop {
            let Ok(permit) = run.may_write.acquire().await else {
                return; // it is over
            };
            if sql.is_closed() {
                return; // perhaps long ago: somebody else has the permit
            }
            permit.forget();
            let began = Instant::now();
            match self.change_something(sql).await {
                Ok(()) => {
                    run.tally.wrote();
                    self.look().await;
                }
                Err(error) => {
                    // a deadlock, or the server has gone
                    if sql.is_closed() || sql.batch_execute("ROLLBACK").await.is_err() {
                        return self.run.refused(began, || format!("a writer: {error}"));
                    }
                    self.run.tally.gave_up();
                }
            }
        }
    }

    /// Nobody asks sooner after a commit than who has made it.
    async fn look(&mut self) {
        let Some(Change { row, tenant, .. }) = self.last.take() else {
            return;
        };
        let kind = Kind::that_shows(row, &mut self.random);
        let tenant = tenant.unwrap_or_else(|| self.random.of(&TENANTS).to_owned());
        for _ in 0..2 {
            let which = self.random.below(self.https.len());
            let client = &self.https[which];
            reader::ask(&self.run, client, kind, &tenant, Duration::ZERO).await;
        }
    }

    async fn change_something(&mut self, sql: &Client) -> Result<(), Error> {
        let table = self.random.of(&Table::ALL);
        match self.random.below(100) {
            0..=24 => self.at_once(sql, table).await,
            25..=39 => self.over_http().await,
            40..=52 => self.several(sql, End::Commit).await,
            53..=58 => self.several(sql, End::Rollback).await,
            59..=64 if self.run.two_phase => self.several(sql, End::TwoPhase).await,
            59..=72 => self.moved(sql, table).await,
            73..=78 => self.savepoints(sql).await,
            79..=83 => self.replaced(sql, table).await,
            84..=87 => self.deleted(sql, table).await,
            88..=94 => self.revived(sql, table).await,
            95..=97 => self.all_rows(sql, table).await,
            _ => self.truncated(sql, table).await,
        }
    }

    /// A transaction of one statement.
    async fn at_once(&mut self, sql: &Client, table: Table) -> Result<(), Error> {
        let changes = self.touch(sql, table).await?;
        self.run.ledger.committed(&changes);
        self.last = changes.last().cloned();
        Ok(())
    }

    /// An update of one row that leaves it where it is.
    async fn touch(&mut self, sql: &Client, table: Table) -> Result<Vec<Change>, Error> {
        let id = 1 + self.random.below(table.rows());
        update(sql, table, "", &format!("{} = {id}", table.id())).await
    }

    async fn over_http(&mut self) -> Result<(), Error> {
        let tenant = self.random.of(&TENANTS);
        let id = 1 + self.random.below(PRODUCTS);
        let (table, method, path, body) = match self.random.below(5) {
            0..=1 => (
                Table::Product,
                Method::PUT,
                format!("/products/{id}"),
                json!({"name": "Changed", "stock": id}),
            ),
            2..=3 => (
                Table::Price,
                Method::PUT,
                format!("/products/{id}/price"),
                json!({"amount": id}),
            ),
            _ => (
                Table::Order,
                Method::POST,
                "/orders".to_owned(),
                json!({"product_id": id, "quantity": 1}),
            ),
        };
        let which = self.random.below(self.https.len());
        let began = Instant::now();
        let answer = self.https[which].write(method, tenant, &path, &body).await;
        match answer {
            Ok(answer) if answer.status.is_success() => {
                let numbers = (answer.body["id"].as_i64(), answer.body["version"].as_i64());
                let (Some(id), Some(version)) = numbers else {
                    self.run.tally.failed(format!("{path}: {}", answer.body));
                    return Ok(());
                };
                self.run.ledger.committed(&[Change {
                    row: (table, id),
                    version,
                    tenant: Some(tenant.to_owned()),
                }]);
            }
            Ok(answer) if answer.status.is_client_error() => {} // it is another tenant's
            Ok(answer) => self
                .run
                .refused(began, || format!("{path}: {}", answer.status)),
            Err(error) => self.run.tally.failed(format!("{path}: {error}")),
        }
        Ok(())
    }

    /// Several rows of all tables, in one transaction.
    async fn several(&mut self, sql: &Client, end: End) -> Result<(), Error> {
        sql.batch_execute("BEGIN").await?;
        let mut changes = Vec::new();
        for table in Table::ALL {
            for _ in 0..1 + self.random.below(3) {
                changes.extend(self.touch(sql, table).await?);
            }
        }
        self.end(sql, changes, end).await
    }

    /// A row that becomes another tenant's.
    async fn moved(&mut self, sql: &Client, table: Table) -> Result<(), Error> {
        let tenant = self.random.of(&TENANTS);
        let id = 1 + self.random.below(table.rows());
        sql.batch_execute("BEGIN").await?;
        let mut changes = Vec::new();
        // a product mostly with its price
        let both = table == Table::Product && self.random.below(4) > 0;
        let tables: &[Table] = if both { &Table::ALL[..2] } else { &[table] };
        for table in tables {
            let set = format!("tenant_id = '{tenant}',");
            changes.extend(update(sql, *table, &set, &format!("{} = {id}", table.id())).await?);
        }
        self.end(sql, changes, End::Commit).await
    }

    async fn savepoints(&mut self, sql: &Client) -> Result<(), Error> {
        sql.batch_execute("BEGIN").await?;
        let mut changes = self.touch(sql, Table::Product).await?;
        sql.batch_execute("SAVEPOINT a").await?;
        let undone = self.touch(sql, Table::Price).await?;
        sql.batch_execute("ROLLBACK TO a; SAVEPOINT b").await?;
        self.run.ledger.rolled_back(&undone);
        changes.extend(self.touch(sql, Table::Order).await?);
        sql.batch_execute("RELEASE b").await?;
        self.end(sql, changes, End::Commit).await
    }

    /// Deleted and inserted again by one transaction, perhaps for another tenant.
    async fn replaced(&mut self, sql: &Client, table: Table) -> Result<(), Error> {
        let id = 1 + self.random.below(table.rows());
        sql.batch_execute("BEGIN").await?;
        let mut changes = delete(sql, table, &format!("{} = {id}", table.id())).await?;
        if !changes.is_empty() {
            changes.extend(self.insert(sql, table, &[id]).await?);
        }
        self.end(sql, changes, End::Commit).await
    }

    async fn deleted(&mut self, sql: &Client, table: Table) -> Result<(), Error> {
        let id = 1 + self.random.below(table.rows());
        sql.batch_execute("BEGIN").await?;
        let mut changes = delete(sql, table, &format!("{} = {id}", table.id())).await?;
        // what came over HTTP would become ever more
        let others = format!("{} > {}", table.id(), table.rows());
        changes.extend(delete(sql, table, &others).await?);
        self.end(sql, changes, End::Commit).await
    }

    /// Everything that is missing is there again.
    async fn revived(&mut self, sql: &Client, table: Table) -> Result<(), Error> {
        let missing = sql
            .query(
                &format!(
                    "SELECT i FROM generate_series(1::bigint, {}) i WHERE NOT EXISTS (SELECT FROM {} WHERE {} = i)",
                    table.rows(),
                    table.name(),
                    table.id()
                ),
                &[],
            )
            .await?;
        let missing: Vec<i64> = missing.iter().map(|row| row.get(0)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        sql.batch_execute("BEGIN").await?;
        let changes = self.insert(sql, table, &missing).await?;
        self.end(sql, changes, End::Commit).await
    }

    /// More than the table's `max_entities`.
    async fn all_rows(&mut self, sql: &Client, table: Table) -> Result<(), Error> {
        sql.batch_execute("BEGIN").await?;
        let changes = update(sql, table, "", "true").await?;
        self.end(sql, changes, End::Commit).await
    }

    /// Sometimes filled again by the same transaction.
    async fn truncated(&mut self, sql: &Client, table: Table) -> Result<(), Error> {
        let name = table.name();
        // nobody else may add rows that this would not know of
        sql.batch_execute(&format!(
            "BEGIN; LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE"
        ))
        .await?;
        let select = format!(
            "SELECT {} AS id, NULL::text AS tenant_id, nextval('shop_version') AS version FROM {name}",
            table.id()
        );
        let mut changes = table.changes(&sql.query(&select, &[]).await?);
        sql.batch_execute(&format!("TRUNCATE {name}")).await?;
        if self.random.below(2) == 0 {
            let all: Vec<i64> = (1..=table.rows()).collect();
            changes.extend(self.insert(sql, table, &all).await?);
        }
        self.end(sql, changes, End::Commit).await
    }

    /// The version is given by an update that follows: an insert may wait for the end of another transaction that
    /// deletes the row, with a version that it had before.
    async fn insert(
        &mut self,
        sql: &Client,
        table: Table,
        ids: &[i64],
    ) -> Result<Vec<Change>, Error> {
        let tenant = self.random.of(&TENANTS);
        let (columns, values) = match table {
            Table::Product => (
                "name, category, stock",
                "'Again ' || i, (array['tools', 'toys'])[1 + i % 2], 1",
            ),
            Table::Price => ("amount", "7"),
            Table::Order => ("product_id, quantity", "1 + i % 30, 1"),
        };
        let inserted = sql
            .query(
                &format!(
                    "INSERT INTO {} ({id}, tenant_id, {columns}) SELECT i, '{tenant}', {values} FROM unnest($1::bigint[]) i
                     ON CONFLICT DO NOTHING RETURNING {id}",
                    table.name(),
                    id = table.id()
                ),
                &[&ids],
            )
            .await?;
        let inserted: Vec<String> = inserted
            .iter()
            .map(|row| row.get::<_, i64>(0).to_string())
            .collect();
        if inserted.is_empty() {
            return Ok(Vec::new());
        }
        let which = format!("{} IN ({})", table.id(), inserted.join(", "));
        update(sql, table, "", &which).await
    }

    async fn end(&mut self, sql: &Client, changes: Vec<Change>, end: End) -> Result<(), Error> {
        let ledger = &self.run.ledger;
        if end == End::Rollback {
            ledger.rolled_back(&changes);
            return Ok(sql.batch_execute("ROLLBACK").await?);
        }
        ledger.note(&changes);
        let ended = if end == End::TwoPhase {
            self.transactions += 1;
            let gid = format!("freshness-{}-{}", self.number, self.transactions);
            let prepared = sql
                .batch_execute(&format!("PREPARE TRANSACTION '{gid}'"))
                .await;
            match prepared {
                Ok(()) => sql.batch_execute(&format!("COMMIT PREPARED '{gid}'")).await,
                Err(error) => Err(error),
            }
        } else {
            sql.batch_execute("COMMIT").await
        };
        ended?; // if not, nobody knows
        ledger.committed(&changes);
        self.last = changes.last().cloned();
        Ok(())
    }
}

async fn update(sql: &Client, table: Table, set: &str, which: &str) -> Result<Vec<Change>, Error> {
    let statement = format!(
        "UPDATE {} SET {set} version = nextval('shop_version') WHERE {which} {}",
        table.name(),
        table.returning()
    );
    Ok(table.changes(&sql.query(&statement, &[]).await?))
}

/// The version of a deleted row is a new one too.
async fn delete(sql: &Client, table: Table, which: &str) -> Result<Vec<Change>, Error> {
    let statement = format!(
        "DELETE FROM {} WHERE {which} RETURNING {} AS id, NULL::text AS tenant_id, nextval('shop_version') AS version",
        table.name(),
        table.id()
    );
    Ok(table.changes(&sql.query(&statement, &[]).await?))
}
