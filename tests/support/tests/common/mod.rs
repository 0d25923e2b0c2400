//! What the tests of this crate look at from outside.
#![allow(dead_code, clippy::unwrap_used)] // tests, and each program uses a part

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// The processes that were started with this directory among their arguments.
pub(crate) fn processes_of(dir: &Path) -> Vec<String> {
    let dir = dir.to_str().unwrap();
    all_processes()
        .into_iter()
        .filter(|command| command.contains(dir))
        .collect()
}

fn all_processes() -> Vec<String> {
    let Ok(proc) = std::fs::read_dir("/proc") else {
        let ps = Command::new("ps").args(["-A", "-o", "args="]).output();
        let list = String::from_utf8_lossy(&ps.unwrap().stdout).into_owned();
        return list.lines().map(str::to_owned).collect();
    };
    proc.flatten()
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .map(|command| String::from_utf8_lossy(&command).replace('\0', " "))
        .collect()
}

/// For what other processes do, which nothing here can wait on.
#[track_caller]
pub(crate) fn wait_until(done: impl Fn() -> bool) {
    const LIMIT: Duration = Duration::from_secs(30);
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < LIMIT, "not done after {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
