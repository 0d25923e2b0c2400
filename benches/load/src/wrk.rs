//! One round of load, by `wrk` with `load.lua`.

use std::net::SocketAddr;
use std::process::Stdio;

use tokio::process::Command;

use crate::Error;

/// Distinct paths.
pub(crate) const ITEMS: u32 = 1000;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/load.lua");

/// What a client saw in one round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Figures {
    pub(crate) requests_per_second: f64,
    pub(crate) failures: u64,
    /// Microseconds.
    pub(crate) p50: f64,
    /// Microseconds.
    pub(crate) p99: f64,
}

pub(crate) async fn round(address: SocketAddr, seconds: u64) -> Result<Figures, Error> {
    let output = Command::new("wrk")
        .args(["-t1", "-c32", "-d", &format!("{seconds}s"), "-s", SCRIPT])
        .args([&format!("http://{address}/"), "--", &ITEMS.to_string()])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|e| format!("wrk: {e}"))?;
    let printed = String::from_utf8_lossy(&output.stdout);
    parse(&printed).ok_or_else(|| {
        let complaint = String::from_utf8_lossy(&output.stderr);
        format!("wrk printed no figures:\n{printed}{complaint}").into()
    })
}

/// The line that `load.lua` prints.
fn parse(printed: &str) -> Option<Figures> {
    let line = printed
        .lines()
        .find_map(|line| line.strip_prefix("figures "))?;
    let numbers: Vec<f64> = line
        .split(' ')
        .map(str::parse)
        .collect::<Result<_, _>>()
        .ok()?;
    let [requests, microseconds, failures, p50, p99] = numbers[..] else {
        return None;
    };
    Some(Figures {
        requests_per_second: requests / microseconds * 1e6,
        failures: failures as u64,
        p50,
        p99,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_figures() {
        let figures = Figures {
            requests_per_second: 100.0,
            failures: 1,
            p50: 300.0,
            p99: 900.0,
        };
        let printed = "Running 2s test\nfigures 200 2000000 1 300 900\n";
        assert_eq!(parse(printed), Some(figures));
        assert_eq!(parse("figures 200 2000000\n"), None);
        assert_eq!(parse("unable to connect\n"), None);
    }
}
