//! Other processes: who runs, who is whose child.

use std::fs;
use std::io;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

use crate::user::{command, output};

struct Process {
    pid: Pid,
    parent: i32,
}

/// The processes that run, without those that have ended and that nobody has waited for.
///
/// Images of containers often have no `ps`, and other systems than Linux no `/proc`.
fn running() -> io::Result<Vec<Process>> {
    if Path::new("/proc/self/stat").exists() {
        from_proc()
    } else {
        from_ps()
    }
}

fn from_proc() -> io::Result<Vec<Process>> {
    let mut processes = Vec::new();
    for entry in fs::read_dir("/proc")? {
        // It may end while we look.
        if let Ok(stat) = fs::read_to_string(entry?.path().join("stat")) {
            processes.extend(parse_stat(&stat));
        }
    }
    Ok(processes)
}

/// `4711 (any name) S 4710 …`: pid, name, state, parent.
fn parse_stat(stat: &str) -> Option<Process> {
    let pid = stat.split(' ').next()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    process(pid, fields.next()?, state)
}

fn from_ps() -> io::Result<Vec<Process>> {
    let columns = ["-A", "-o", "pid=", "-o", "ppid=", "-o", "stat="];
    let list = output(command("ps").args(columns))?;
    Ok(list.lines().filter_map(parse_ps).collect())
}

fn parse_ps(line: &str) -> Option<Process> {
    let mut fields = line.split_whitespace();
    let (pid, parent) = (fields.next()?, fields.next()?);
    process(pid, parent, fields.next()?)
}

fn process(pid: &str, parent: &str, state: &str) -> Option<Process> {
    if state.starts_with(['Z', 'X']) {
        return None;
    }
    Some(Process {
        pid: Pid::from_raw(pid.parse().ok()?)?,
        parent: parent.parse().ok()?,
    })
}

pub(crate) fn children(of: Pid) -> io::Result<Vec<Pid>> {
    let is_child = |process: &Process| process.parent == of.as_raw_nonzero().get();
    Ok(running()?
        .into_iter()
        .filter(is_child)
        .map(|process| process.pid)
        .collect())
}

pub(crate) fn any_runs(pids: &[Pid]) -> io::Result<bool> {
    Ok(running()?.iter().any(|process| pids.contains(&process.pid)))
}

/// A process that has ended in the meantime is no error.
pub(crate) fn signal(pid: Pid, signal: Signal) -> io::Result<()> {
    match kill_process(pid, signal) {
        Err(rustix::io::Errno::SRCH) => Ok(()),
        other => other.map_err(Into::into),
    }
}

/// Stops the time of a process that this one has started.
///
/// # Errors
///
/// If it may not be signalled.
pub fn pause(pid: u32) -> io::Result<()> {
    signal(known(pid)?, Signal::STOP)
}

/// Ends a [`pause`].
///
/// # Errors
///
/// As [`pause`].
pub fn resume(pid: u32) -> io::Result<()> {
    signal(known(pid)?, Signal::CONT)
}

fn known(pid: u32) -> io::Result<Pid> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| io::Error::other("no such process"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_names_with_parentheses_and_spaces() {
        let process = parse_stat("4711 (a) b (c) S 4710 1 1 0").unwrap();
        assert_eq!(
            (process.pid.as_raw_nonzero().get(), process.parent),
            (4711, 4710)
        );
        assert!(parse_stat("4711 (a) Z 4710 1 1 0").is_none());
    }

    #[test]
    fn sees_this_process() {
        let this = rustix::process::getpid();
        assert!(any_runs(&[this]).unwrap());
        let parent = rustix::process::getppid().unwrap();
        assert!(children(parent).unwrap().contains(&this));
    }
}
