//! How long one UPDATE takes that changes 1, 100 or 10,000 rows, of 100 tenants; one connection.

use std::time::Instant;

use tokio_postgres::Statement;

use crate::candidates::Table;
use crate::options::Options;
use crate::report::{Rounds, median, table};

const TENANTS: usize = 100;
/// Rows, and how often in a round.
const COLUMNS: [(i32, usize); 3] = [(1, 400), (100, 50), (10_000, 5)];

pub(crate) async fn measure(tables: &[Table], options: &Options) -> String {
    let mut rounds = Rounds::new();
    let mut updates = Vec::new();
    for table in tables {
        let name = table.candidate.name().to_owned();
        rounds.push((name, vec![Vec::new(); COLUMNS.len()]));
        table.deal(TENANTS, 1).await;
        let update = "UPDATE item SET price = price + 1 WHERE id < $1";
        updates.push(table.sql.prepare(update).await.unwrap());
    }
    for _ in 0..options.rounds {
        for (column, (rows, times)) in COLUMNS.into_iter().enumerate() {
            let mut took = vec![Vec::new(); tables.len()];
            for table in tables {
                table.tidy().await;
            }
            for _ in 0..times {
                for ((table, update), took) in tables.iter().zip(&updates).zip(&mut took) {
                    if rows > 1000 {
                        table.tidy().await;
                    }
                    took.push(time(table, update, rows).await);
                }
            }
            for (took, row) in took.into_iter().zip(&mut rounds) {
                row.1[column].push(median(took.into_iter()));
            }
        }
    }
    let columns = COLUMNS.map(|(rows, _)| format!("UPDATE of {rows} rows"));
    format!(
        "One connection, {TENANTS} tenants; milliseconds (ratio to no trigger):\n\n{}",
        table("ms", &columns, &rounds)
    )
}

/// Milliseconds.
async fn time(table: &Table, update: &Statement, rows: i32) -> f64 {
    let begin = Instant::now();
    table.sql.execute(update, &[&rows]).await.unwrap();
    begin.elapsed().as_secs_f64() * 1000.0
}
