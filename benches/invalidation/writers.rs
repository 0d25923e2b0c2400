//! How many transactions per second 32 connections get through. Each changes one row, and no two the same, so
//! that nobody waits for anybody but through a trigger.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Barrier;
use tokio_postgres::{Client, Statement};

use crate::candidates::{ROWS, Table};
use crate::options::Options;
use crate::report::{Rounds, table};
use test_support::random::Random;

const CONNECTIONS: usize = 32;
const OPEN: Duration = Duration::from_millis(2);

/// What a connection does again and again.
#[derive(Debug, Clone, Copy)]
enum Transaction {
    Statement,
    /// With other work between the UPDATE and the COMMIT.
    StaysOpen,
}

const COLUMNS: [(&str, Transaction, usize); 4] = [
    ("single statement, 1 tenant", Transaction::Statement, 1),
    ("single statement, 100 tenants", Transaction::Statement, 100),
    ("open for 2 ms, 1 tenant", Transaction::StaysOpen, 1),
    ("open for 2 ms, 100 tenants", Transaction::StaysOpen, 100),
];

pub(crate) async fn measure(tables: &[Table], options: &Options) -> String {
    let empty = |table: &Table| {
        let name = table.candidate.name().to_owned();
        (name, vec![Vec::new(); COLUMNS.len()])
    };
    let mut rounds: Rounds = tables.iter().map(empty).collect();
    for _ in 0..options.rounds {
        for (column, (_, transaction, tenants)) in COLUMNS.into_iter().enumerate() {
            for (table, row) in tables.iter().zip(&mut rounds) {
                let rate = turn(table, transaction, tenants, options.turn()).await;
                row.1[column].push(rate);
            }
        }
    }
    let columns = COLUMNS.map(|(name, ..)| name.to_owned());
    format!(
        "{CONNECTIONS} connections, each with prepared statements; transactions per second (ratio to no trigger):\n\n{}",
        table("transactions/s", &columns, &rounds)
    )
}

async fn turn(table: &Table, transaction: Transaction, tenants: usize, time: Duration) -> f64 {
    table.deal(tenants, CONNECTIONS).await;
    table.tidy().await;
    let start = Arc::new(Barrier::new(CONNECTIONS));
    let mut tasks = Vec::new();
    for number in 0..CONNECTIONS {
        let sql = table.database.connect().await;
        let mut writer = Writer::new(sql, number, transaction).await;
        let start = start.clone();
        tasks.push(tokio::spawn(async move {
            for _ in 0..5 {
                writer.write().await; // plans are made, functions compiled
            }
            start.wait().await;
            writer.write_for(time).await
        }));
    }
    let mut rate = 0.0;
    for task in tasks {
        rate += task.await.unwrap();
    }
    rate
}

struct Writer {
    sql: Client,
    update: Statement,
    transaction: Transaction,
    number: usize,
    random: Random,
}

impl Writer {
    async fn new(sql: Client, number: usize, transaction: Transaction) -> Self {
        let update = "UPDATE item SET price = price + 1 WHERE id = $1";
        Self {
            update: sql.prepare(update).await.unwrap(),
            sql,
            transaction,
            number,
            random: Random::new(0, number as u64),
        }
    }

    /// Transactions per second.
    async fn write_for(&mut self, time: Duration) -> f64 {
        let begin = Instant::now();
        let mut count = 0.0;
        while begin.elapsed() < time {
            self.write().await;
            count += 1.0;
        }
        count / begin.elapsed().as_secs_f64()
    }

    async fn write(&mut self) {
        let id = self.random.below(ROWS / CONNECTIONS) * CONNECTIONS + self.number;
        let id = i32::try_from(id).unwrap();
        match self.transaction {
            Transaction::Statement => {
                self.sql.execute(&self.update, &[&id]).await.unwrap();
            }
            Transaction::StaysOpen => {
                self.sql.batch_execute("BEGIN").await.unwrap();
                self.sql.execute(&self.update, &[&id]).await.unwrap();
                tokio::time::sleep(OPEN).await;
                self.sql.batch_execute("COMMIT").await.unwrap();
            }
        }
    }
}
