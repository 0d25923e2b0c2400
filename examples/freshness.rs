//! Whether any answer is older than what was committed before it was asked for: the shop in several processes on one
//! database, writers, and clients that check. As `tests/freshness`, for as long as one likes.
//!
//! ```sh
//! cargo run --release --example freshness -- --seconds 60 --disturb all
//! ```
//!
//! Prints reads, stale answers and latencies; the exit code is 1 if there was a stale answer or a failed request.

#[path = "../tests/freshness/harness/mod.rs"]
mod harness;
#[path = "shop/mod.rs"]
mod shop;

use std::process::{Command, ExitCode};
use std::str::FromStr;
use std::time::Duration;

use harness::{Disturbance, Error, Plan};
use shop::{Options, Shop};

const USAGE: &str = "known: --instances N, --clients N, --writers N, --seconds N, --database-url URL, \
    --max-staleness MS, --memory BYTES, --seed N, --reads-per-write N, --long-fills, \
    --disturb terminate|stop|crash|idle|prune|all, --unwatched";

#[tokio::main]
async fn main() -> Result<ExitCode, Error> {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.next_if(|first| first == "--instance").is_some() {
        serve(arguments).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let program = std::env::current_exe()?;
    let plan = parse(arguments)?;
    let report = plan
        .run(|arguments| {
            let mut command = Command::new(&program);
            command.arg("--instance").args(arguments);
            command
        })
        .await?;
    println!("{report}");
    Ok(if report.stale + report.failed > 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// An instance, until whoever has started it is gone.
async fn serve(arguments: impl Iterator<Item = String>) -> Result<(), Error> {
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    let options = Options::parse(arguments)?;
    let shop = Shop::open(&options).await.map_err(|e| e.to_string())?;
    println!("{}", shop.announcement());
    Ok(shop.serve().await?)
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Plan, Error> {
    let mut plan = Plan {
        time: Duration::from_secs(10),
        ..Plan::default()
    };
    while let Some(name) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{name} needs a value"));
        match name.as_str() {
            "--instances" => plan.instances = number(&name, &value()?)?,
            "--clients" => plan.clients = number(&name, &value()?)?,
            "--writers" => plan.writers = number(&name, &value()?)?,
            "--seconds" => plan.time = Duration::from_secs(number(&name, &value()?)?),
            "--database-url" => plan.database_url = Some(value()?),
            "--max-staleness" => {
                plan.max_staleness = Some(Duration::from_millis(number(&name, &value()?)?));
            }
            "--memory" => plan.memory = Some(number(&name, &value()?)?),
            "--seed" => plan.seed = number(&name, &value()?)?,
            "--reads-per-write" => plan.reads_per_write = number(&name, &value()?)?,
            "--long-fills" => plan.long_fills = true,
            "--unwatched" => plan.watched = false,
            "--disturb" => plan.disturbances.extend(disturbances(&value()?)?),
            other => return Err(format!("unknown argument {other}; {USAGE}").into()),
        }
    }
    if plan.instances == 0 {
        return Err("--instances 0; use at least 1".into());
    }
    if plan.database_url.is_some() && plan.disturbances.contains(&Disturbance::Crash) {
        return Err("only a server of its own is crashed: leave out --database-url, or name other disturbances".into());
    }
    Ok(plan)
}

fn disturbances(name: &str) -> Result<Vec<Disturbance>, Error> {
    Ok(match name {
        "terminate" => vec![Disturbance::Terminate],
        "stop" => vec![Disturbance::Stop],
        "crash" => vec![Disturbance::Crash],
        "idle" => vec![Disturbance::Idle],
        "prune" => vec![Disturbance::Prune],
        "all" => Disturbance::ALL.to_vec(),
        other => return Err(format!("--disturb {other}; {USAGE}").into()),
    })
}

fn number<T: FromStr>(name: &str, value: &str) -> Result<T, String>
where
    T::Err: std::fmt::Display,
{
    value.parse().map_err(|e| format!("{name} {value}: {e}"))
}
