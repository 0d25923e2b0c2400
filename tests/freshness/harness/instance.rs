//! Instances of the shop, each in a process of its own, which ends with its handle.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use super::Error;

/// A slow machine may take long to start a process.
const START: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Instance {
    pub(super) address: SocketAddr,
    pub(super) pid: u32,
    _child: Child,
    /// Open, although nobody reads on: a test program that has run for a minute says so, and ends if it cannot.
    _stdout: Lines<BufReader<ChildStdout>>,
}

impl Instance {
    /// `command` has to print the shop's announcement, and to end when its standard input does.
    pub(super) async fn start(command: std::process::Command) -> Result<Self, Error> {
        let mut child = Command::from(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = child.stdout.take().ok_or("no standard output")?;
        let mut lines = BufReader::new(stdout).lines();
        let announced = timeout(START, async {
            while let Some(line) = lines.next_line().await? {
                if let Some((_, rest)) = line.split_once("Serving on http://") {
                    let address = rest.split(';').next().unwrap_or_default();
                    return Ok(address.parse()?);
                }
            }
            Err(Error::from("an instance ended before it served; see above"))
        });
        Ok(Self {
            address: announced.await??,
            pid: child.id().ok_or("an instance ended at once")?,
            _child: child,
            _stdout: lines,
        })
    }
}
