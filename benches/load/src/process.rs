//! What the driver starts. Each ends when its handle is dropped, and when the driver is killed: its standard input
//! is a pipe from the driver.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::Error;
use crate::options::Serve;
use crate::serve::LISTENING;

const START: Duration = Duration::from_secs(30);

/// Runs a program until standard input ends, for programs that do not look at theirs.
const GUARD: &str = r#""$@" </dev/null & read -r _; kill $!; wait"#;

/// This program, serving one candidate.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    child: Child,
}

impl Server {
    pub(crate) async fn start(options: &Serve) -> Result<Self, Error> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(options.arguments())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = child.stdout.take().ok_or("no standard output")?;
        let mut line = String::new();
        timeout(START, BufReader::new(stdout).read_line(&mut line)).await??;
        let address = line.trim_end().strip_prefix(LISTENING);
        Ok(Self {
            address: address.ok_or("it ended; see above")?.parse()?,
            child,
        })
    }

    /// As dropping it does, and waits for its end.
    pub(crate) async fn stop(mut self) -> Result<(), Error> {
        Ok(self.child.kill().await?)
    }
}

/// A Redis on a port of its own that keeps nothing on disk.
#[derive(Debug)]
pub(crate) struct Redis {
    pub(crate) url: String,
    guard: Child,
}

impl Redis {
    pub(crate) async fn start() -> Result<Self, Error> {
        let port = free_port().await?;
        let guard = Command::new("/bin/sh")
            .args(["-c", GUARD, "guard", "redis-server"])
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--daemonize", "no"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0) // an interrupt from the keyboard must not take the guard first
            .spawn()?;
        timeout(START, accepts(port))
            .await
            .map_err(|_| "redis-server did not start")?;
        Ok(Self {
            url: format!("redis://127.0.0.1:{port}/"),
            guard,
        })
    }

    /// As dropping it does, and waits for its end.
    pub(crate) async fn stop(mut self) -> Result<(), Error> {
        drop(self.guard.stdin.take());
        self.guard.wait().await?;
        Ok(())
    }
}

async fn free_port() -> Result<u16, Error> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    Ok(listener.local_addr()?.port())
}

async fn accepts(port: u16) {
    while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        sleep(Duration::from_millis(20)).await;
    }
}
