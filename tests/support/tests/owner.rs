//! The end of a process that owns a server, seen from another one: this program starts itself again.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests

mod common;

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Lines};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use test_support::Server;

use common::{processes_of, wait_until};

const ROLE: &str = "TEST_SUPPORT_OWNER";
const ANNOUNCEMENT: &str = "run dir: ";

/// Not a test: the process that the tests below start, in the role that they give it.
#[tokio::test]
async fn owner() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    if role == "static" {
        let database = test_support::database().await;
        let tokio_postgres::config::Host::Unix(dir) = database.config().get_hosts()[0].clone()
        else {
            panic!("not a private server");
        };
        println!("{ANNOUNCEMENT}{}", dir.display());
        return;
    }
    let mut server = Server::start().unwrap();
    let _client = server.database().await.connect().await;
    match role.as_str() {
        "paused" => server.pause().unwrap(),
        "crashed" => server.kill9().unwrap(),
        "panic" => {
            println!("{ANNOUNCEMENT}{}", server.run_dir().display());
            panic!("as told");
        }
        _ => {}
    }
    println!("{ANNOUNCEMENT}{}", server.run_dir().display());
    std::future::pending::<()>().await;
}

fn owner_in(role: &str) -> Command {
    let mut owner = Command::new(std::env::current_exe().unwrap());
    owner
        .args(["--exact", "owner", "--nocapture"])
        .env(ROLE, role)
        .env_remove("DATABASE_URL")
        .stderr(Stdio::null());
    owner
}

/// A process that has made its server.
struct Owner {
    process: Child,
    run_dir: PathBuf,
    /// Open, because it fails if it cannot print.
    _stdout: Lines<BufReader<ChildStdout>>,
}

impl Owner {
    fn start(role: &str) -> Self {
        let mut process = owner_in(role).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(process.stdout.take().unwrap()).lines();
        let run_dir = stdout
            .by_ref()
            .map(Result::unwrap)
            .find_map(|line| Some(line.split_once(ANNOUNCEMENT)?.1.into()))
            .expect("the owner to announce its directory");
        Self {
            process,
            run_dir,
            _stdout: stdout,
        }
    }
}

/// The watchdog does its work after the owner's end, so it has to be waited for.
fn assert_goes_away(dir: &Path) {
    wait_until(|| !dir.exists() && processes_of(dir).is_empty());
}

fn sigkill_leaves_nothing(role: &str) {
    let mut owner = Owner::start(role);
    assert!(owner.run_dir.exists() && !processes_of(&owner.run_dir).is_empty());
    owner.process.kill().unwrap(); // SIGKILL
    owner.process.wait().unwrap();
    assert_goes_away(&owner.run_dir);
}

#[test]
fn sigkill() {
    sigkill_leaves_nothing("running");
}

#[test]
fn sigkill_with_a_paused_server() {
    sigkill_leaves_nothing("paused");
}

#[test]
fn sigkill_with_a_crashed_server() {
    sigkill_leaves_nothing("crashed");
}

#[test]
fn panic() {
    let mut owner = Owner::start("panic");
    assert!(!owner.process.wait().unwrap().success());
    assert_goes_away(&owner.run_dir);
}

#[test]
fn the_shared_server_goes_with_its_process() {
    let mut owner = Owner::start("static");
    assert!(owner.process.wait().unwrap().success());
    assert_goes_away(&owner.run_dir);
}

/// Killed as soon as it has come to the point where there is such a file.
#[test]
fn sigkill_during_the_start() {
    for file in ["", "data", "data/PG_VERSION", "pid", "data/postmaster.pid"] {
        let tmp = open_dir();
        let mut owner = owner_in("running")
            .env("PGTMP_DIR", &tmp)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        wait_until(|| entries(&tmp).iter().any(|dir| dir.join(file).exists()));
        owner.kill().unwrap();
        owner.wait().unwrap();
        wait_until(|| entries(&tmp).is_empty() && processes_of(&tmp).is_empty());
        fs::remove_dir(&tmp).unwrap();
    }
}

/// A new directory that the server's user can write to.
fn open_dir() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("owner-{}-{count}", std::process::id()));
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, Permissions::from_mode(0o777)).unwrap();
    dir
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}
