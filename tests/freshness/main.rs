//! No answer is older than what was committed before it was asked for: three instances on one database, under
//! everything that may go wrong. `cargo run --example freshness` runs the same for as long as one likes.
//!
//! Each case takes two seconds, or `FRESHNESS_SECONDS`; `FRESHNESS_SEED` repeats a run as far as that is possible.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;
#[path = "../../examples/shop/mod.rs"]
mod shop;

use std::process::Command;
use std::time::Duration;

use harness::{Disturbance, Plan, Report};
use shop::{Options, Shop};
use tokio::sync::Mutex;

/// The command line of an instance, which is this program again.
const INSTANCE: &str = "FRESHNESS_INSTANCE";

/// One after the other: each has several busy processes.
static TURN: Mutex<()> = Mutex::const_new(());

/// No test: what the others run in processes of their own.
#[tokio::test]
async fn instance() {
    let Ok(arguments) = std::env::var(INSTANCE) else {
        return;
    };
    std::thread::spawn(|| {
        // ends with whoever started it
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    let options = Options::parse(arguments.lines().map(str::to_owned)).unwrap();
    let shop = Shop::open(&options).await.unwrap();
    println!("{}", shop.announcement());
    shop.serve().await.unwrap();
}

fn command(arguments: &[String]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "instance", "--nocapture"])
        .env(INSTANCE, arguments.join("\n"));
    command
}

fn variable(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(default, |value| value.parse().expect(name))
}

async fn outcome(plan: Plan) -> Report {
    let _turn = TURN.lock().await;
    let plan = Plan {
        time: Duration::from_secs(variable("FRESHNESS_SECONDS", 1)),
        seed: variable("FRESHNESS_SEED", 1),
        ..plan
    };
    let report = plan.run(command).await.unwrap();
    println!("{report}");
    report
}

/// What every plan has to come to.
async fn holds(plan: Plan) {
    const BOUND: Duration = Duration::from_millis(200);
    for (memory, max_staleness) in [(0, None), (1 << 20, None), (1 << 20, Some(BOUND))] {
        holds_with(Plan {
            memory: Some(memory),
            max_staleness,
            ..plan.clone()
        })
        .await;
    }
}

async fn holds_with(plan: Plan) {
    let disturbed = !plan.disturbances.is_empty();
    let report = outcome(plan).await;
    assert_eq!((report.stale, report.failed), (0, 0), "{report}");
    assert!(report.hits > 0 && report.reads > report.hits, "{report}");
    assert!(report.writes > 0, "{report}");
    assert!(!disturbed || report.disturbances > 0, "{report}");
}

fn under(disturbance: Disturbance) -> Plan {
    Plan {
        disturbances: vec![disturbance],
        ..Plan::default()
    }
}

#[tokio::test]
async fn when_nothing_goes_wrong() {
    holds(Plan::default()).await;
}

#[tokio::test]
async fn with_handlers_that_take_long() {
    holds(Plan {
        long_fills: true,
        ..Plan::default()
    })
    .await;
}

#[tokio::test]
async fn when_connections_are_terminated() {
    holds(under(Disturbance::Terminate)).await;
}

#[tokio::test]
async fn when_instances_are_stopped_for_a_while() {
    holds(under(Disturbance::Stop)).await;
}

#[tokio::test]
async fn when_the_server_crashes() {
    holds(under(Disturbance::Crash)).await;
}

#[tokio::test]
async fn while_a_transaction_is_open() {
    holds(under(Disturbance::Idle)).await;
}

#[tokio::test]
async fn while_the_log_is_pruned_and_vacuumed() {
    holds(under(Disturbance::Prune)).await;
}

#[tokio::test]
async fn when_everything_happens_at_once() {
    holds(Plan {
        long_fills: true,
        disturbances: Disturbance::ALL.to_vec(),
        ..Plan::default()
    })
    .await;
}

/// The proof that the others could fail: nobody tells the cache of changes by SQL.
#[tokio::test]
async fn stale_answers_are_noticed() {
    let report = outcome(Plan {
        watched: false,
        ..Plan::default()
    })
    .await;
    assert!(report.stale > 0, "{report}");
    assert_eq!(report.failed, 0, "{report}");
}
