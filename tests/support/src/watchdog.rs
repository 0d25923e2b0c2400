//! The shell that owns a server in our stead, so that the server ends when we do, in whatever way that happens.
//!
//! `PR_SET_PDEATHSIG` would not do: it is sent when the *thread* that has started the child ends, and tests are threads.

use std::fs;
use std::io::{self, BufRead, BufReader, Error, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Pid;

use crate::user::ServerUser;

pub(crate) const SCRIPT: &str = include_str!("watchdog.sh");

#[derive(Debug)]
pub(crate) struct Watchdog {
    shell: Child,
    dir: PathBuf,
}

impl Watchdog {
    /// Makes `dir`, which will be removed with the watchdog. `bin` need not exist yet.
    pub(crate) fn spawn(
        dir: &Path,
        bin: &Path,
        user: ServerUser,
        config: &[(String, String)],
    ) -> io::Result<Self> {
        let shell = user
            .command("/bin/sh")
            .args(["-c", SCRIPT, "pgcache-watchdog"])
            .args([dir, bin])
            .args(
                config
                    .iter()
                    .flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")]),
            )
            // Neither Ctrl-C nor a test runner that kills our process group takes the watchdog along.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut watchdog = Self {
            shell,
            dir: dir.to_owned(),
        };
        watchdog.wait_for_dir()?;
        Ok(watchdog)
    }

    fn wait_for_dir(&mut self) -> io::Result<()> {
        let mut answer = String::new();
        if let Some(stdout) = self.shell.stdout.take() {
            BufReader::new(stdout).read_line(&mut answer)?;
        }
        if answer == "ready\n" {
            return Ok(());
        }
        let dir = self.dir.display();
        Err(Error::other(format!(
            "the user that runs PostgreSQL cannot make the directory {dir}: {answer}"
        )))
    }

    pub(crate) fn initdb(&mut self) -> io::Result<()> {
        self.order("initdb")?;
        let status = self.dir.join("initdb");
        wait_until("initdb", || Ok(read(&status).ends_with('\n')))?;
        if read(&status).trim_end() == "0" {
            return Ok(());
        }
        let log = read(&self.dir.join("log"));
        Err(Error::other(format!("initdb failed:\n{log}")))
    }

    /// Returns when the process exists; it accepts connections later.
    pub(crate) fn start(&mut self, port: u16) -> io::Result<Pid> {
        self.order(&format!("start {port}"))?;
        wait_until("the start of postgres", || Ok(self.pid().is_some()))?;
        self.pid()
            .ok_or_else(|| Error::other("postgres has no pid"))
    }

    /// Waits until the server, which has to have ended or to be about to, is gone.
    pub(crate) fn reap(&mut self) -> io::Result<()> {
        self.order("reap")?;
        wait_until("the end of postgres", || Ok(self.pid().is_none()))
    }

    fn order(&mut self, order: &str) -> io::Result<()> {
        let stdin = self.shell.stdin.as_mut();
        let stdin = stdin.ok_or_else(|| Error::other("the watchdog is gone"))?;
        writeln!(stdin, "{order}")
    }

    /// The pid of the server, from its start until it is reaped.
    fn pid(&self) -> Option<Pid> {
        let line = read(&self.dir.join("pid"));
        Pid::from_raw(line.strip_suffix('\n')?.parse().ok()?)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

/// A file that does not exist yet is as good as an empty one.
fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Looks again and again, since there is nothing to wait on that works everywhere; it is a matter of milliseconds.
pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> io::Result<bool>) -> io::Result<()> {
    const LIMIT: Duration = Duration::from_secs(60);
    let began = Instant::now();
    while !done()? {
        if began.elapsed() > LIMIT {
            let message = format!("waited {} s for {what}", LIMIT.as_secs());
            return Err(Error::new(io::ErrorKind::TimedOut, message));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
