//! A shop with several tenants on real tables. The tables are watched, so that whatever program changes them, the
//! answers that depend on the changed rows are gone with its commit, on all instances.
//!
//! ```sh
//! cargo run --example shop                # serves on 127.0.0.1:3000; GET / says what there is
//! cargo run --example shop -- --once      # a few requests to itself; exit code 0 if all went as expected
//! ```
//!
//! `--listen ADDR` serves elsewhere, port 0 is any free one. `--database-url URL` names the Postgres to use, which
//! several of these processes may share; without it there is one that is gone when the program ends.
//! `--max-staleness MS` allows answers that are so much older than the last commit, for less work; `--memory BYTES`
//! sets the size of the tier in memory.

#[path = "shop/mod.rs"]
mod shop;
#[path = "shop/tour.rs"]
mod tour;

use std::error::Error;
use std::process::ExitCode;

use shop::{Options, Shop};

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let all = arguments.len();
    arguments.retain(|argument| argument != "--once");
    let once = arguments.len() < all;
    let mut options = Options::parse(arguments)?;
    if once {
        options.listen.set_port(0); // whatever else runs on the port is in nobody's way
    }
    // kept: the server ends with it
    let own = match options.database_url {
        Some(_) => None,
        None => Some(test_support::try_database().await?),
    };
    options.database_url = options.database_url.or(own.map(|database| database.url()));

    let shop = Shop::open(&options).await?;
    println!("{}", shop.announcement());
    if once {
        let address = shop.address();
        let cache = shop.cache();
        let serving = tokio::spawn(shop.serve());
        let as_expected = tour::take(address, &cache).await?;
        serving.abort();
        cache.close().await;
        return Ok(if as_expected {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        });
    }
    let cache = shop.cache();
    tokio::select! {
        served = shop.serve() => served?,
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    cache.close().await;
    Ok(ExitCode::SUCCESS)
}
