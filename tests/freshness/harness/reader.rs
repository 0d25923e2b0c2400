//! Clients that read, and check what they read.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::Value;

use super::http::{Answer, Ask, Client};
use super::ledger::{Floor, RowId, Shown, Table};
use super::{PRODUCTS, Run, TENANTS};
use test_support::random::Random;

/// Products that are asked for often, so that there are hits while everything changes.
const POPULAR: i64 = 4;

#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Item(i64),
    Products,
    Orders,
    Report,
    Totals,
}

impl Kind {
    fn any(random: &mut Random) -> Self {
        match random.below(20) {
            0..=3 => Self::Item(1 + random.below(PRODUCTS)),
            4..=9 => Self::Item(1 + random.below(POPULAR)),
            10..=13 => Self::Products,
            14..=15 => Self::Orders,
            16..=17 => Self::Report,
            _ => Self::Totals,
        }
    }

    /// An answer that shows this row.
    pub(super) fn that_shows((table, id): RowId, random: &mut Random) -> Self {
        match (table, random.below(4)) {
            (Table::Product, 0) => Self::Totals,
            (Table::Product, 1) => Self::Report,
            (Table::Product | Table::Price, 2) => Self::Products,
            (Table::Product | Table::Price, _) => Self::Item(id),
            (Table::Order, _) => Self::Orders,
        }
    }

    fn path(self) -> String {
        match self {
            Self::Item(id) => format!("/products/{id}"),
            Self::Products => "/products".to_owned(),
            Self::Orders => "/orders".to_owned(),
            Self::Report => "/report".to_owned(),
            Self::Totals => "/totals".to_owned(),
        }
    }

    /// Which rows its answers may show.
    fn concerns(self, (table, id): RowId) -> bool {
        match self {
            Self::Item(item) => id == item && table != Table::Order,
            Self::Products => table != Table::Order,
            Self::Orders => table == Table::Order,
            Self::Report => true,
            Self::Totals => table == Table::Product,
        }
    }
}

pub(super) async fn read(run: Arc<Run>, number: u64) {
    let client =
        Client::new(run.addresses[usize::try_from(number).unwrap_or(0) % run.addresses.len()]);
    let mut random = Random::new(run.plan.seed, 1000 + number);
    while !run.is_over() {
        let kind = Kind::any(&mut random);
        let tenant = random.of(&TENANTS);
        let hold = match run.plan.long_fills && random.below(4) == 0 {
            true => Duration::from_millis(random.below(300)),
            false => Duration::ZERO,
        };
        ask(&run, &client, kind, tenant, hold).await;
    }
}

/// Asks, and checks the answer.
pub(super) async fn ask(run: &Run, client: &Client, kind: Kind, tenant: &str, hold: Duration) {
    let began = Instant::now();
    let floor = run.floor(began, |row| kind.concerns(row));
    let path = &kind.path();
    let outcome = client.get(&Ask { tenant, path, hold }).await;
    run.tally.took(began.elapsed());
    match outcome {
        Ok(answer) => check(run, kind, tenant, began, &floor, &answer),
        Err(error) => run.tally.failed(format!("GET {path}: {error}")),
    }
}

fn check(run: &Run, kind: Kind, tenant: &str, began: Instant, floor: &Floor, answer: &Answer) {
    let status = answer.status;
    if status.is_server_error() {
        run.refused(began, || format!("GET {}: {status}", kind.path()));
        return;
    }
    let Some(shown) = shown(kind, tenant, answer) else {
        let body = &answer.body;
        let failure = format!("GET {}: {status} {body}", kind.path());
        return run.tally.failed(failure);
    };
    run.checked(answer.is_hit);
    let wrong = run.ledger.judge(floor, &shown);
    if !wrong.is_empty() {
        run.tally.stale(format!(
            "GET {} for {tenant} ({}), asked {:.3} s and answered {:.3} s after the start: {}",
            kind.path(),
            answer.cache_status,
            (began - run.began).as_secs_f64(),
            run.began.elapsed().as_secs_f64(),
            wrong.join("; ")
        ));
    }
}

/// `None` if it is not such an answer.
fn shown(kind: Kind, tenant: &str, answer: &Answer) -> Option<Shown> {
    let mut shown = Shown::default();
    let mine = || Some(tenant.to_owned());
    let body = &answer.body;
    match kind {
        Kind::Item(id) => {
            if answer.status == StatusCode::OK {
                product(&mut shown, tenant, body)?;
            } else if answer.status != StatusCode::NOT_FOUND {
                return None;
            }
            let asked_for = (Table::Product, id);
            shown.single.push((asked_for, tenant.to_owned()));
        }
        Kind::Products => {
            for row in body["products"].as_array()? {
                product(&mut shown, tenant, row)?;
            }
            shown.complete.push((Table::Product, mine()));
        }
        Kind::Orders => {
            for row in body["orders"].as_array()? {
                let id = (Table::Order, row["id"].as_i64()?);
                let version = row["version"].as_i64()?;
                shown.rows.push((id, version, tenant.to_owned()));
            }
            shown.complete.push((Table::Order, mine()));
        }
        Kind::Report => {
            for row in body["categories"].as_array()? {
                versions(&mut shown, tenant, Table::Product, &row["product_versions"])?;
                versions(&mut shown, tenant, Table::Price, &row["price_versions"])?;
                versions(&mut shown, tenant, Table::Order, &row["order_versions"])?;
            }
            shown.complete.push((Table::Product, mine()));
        }
        Kind::Totals => {
            for row in body["tenants"].as_array()? {
                let versions_of = &row["product_versions"];
                versions(
                    &mut shown,
                    row["tenant"].as_str()?,
                    Table::Product,
                    versions_of,
                )?;
            }
            shown.complete.push((Table::Product, None));
        }
    }
    Some(shown)
}

fn product(shown: &mut Shown, tenant: &str, row: &Value) -> Option<()> {
    let (id, version) = (row["id"].as_i64()?, row["version"].as_i64()?);
    let rows = &mut shown.rows;
    rows.push(((Table::Product, id), version, tenant.to_owned()));
    let price = (Table::Price, id);
    match row["price"]["version"].as_i64() {
        Some(version) => rows.push((price, version, tenant.to_owned())),
        None => shown.single.push((price, tenant.to_owned())),
    }
    Some(())
}

fn versions(shown: &mut Shown, tenant: &str, table: Table, of: &Value) -> Option<()> {
    for (id, version) in of.as_object()? {
        let row = (table, id.parse().ok()?);
        shown.rows.push((row, version.as_i64()?, tenant.to_owned()));
    }
    Some(())
}
