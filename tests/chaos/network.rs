//! What happens between the instances and Postgres.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::harness::machine::installed;
use crate::harness::wire::{Fault, Wire};
use crate::harness::{PATIENCE, Settings, Stage, case};

const A_WHILE: Duration = Duration::from_millis(400);

async fn disturbed_by(faults: &[Fault], memory: usize) {
    let mut stage = Stage::new().await;
    let wire = Wire::to(stage.server.port(), stage.random.fork()).await;
    let settings = Settings {
        memory,
        ..stage.settings_by_way_of(wire.port())
    };
    stage.serve(&settings).await;
    for fault in faults {
        wire.suffers(*fault);
        stage.suffer(A_WHILE).await;
        wire.suffers(Fault::None);
        stage.recover().await;
    }
    stage.end().await;
}

/// From within the first message to after some hundreds.
const CUTS: [Fault; 4] = [
    Fault::CutWithin(10),
    Fault::CutWithin(300),
    Fault::CutWithin(10_000),
    Fault::CutWithin(100_000),
];

#[test]
fn cut_in_the_middle_of_a_message() {
    case(disturbed_by(&CUTS, 1 << 20));
}

#[test]
fn cut_in_the_middle_of_a_message_without_memory() {
    case(disturbed_by(&CUTS, 0));
}

#[test]
fn slow() {
    const DELAYS: [u64; 3] = [5, 60, 300];
    let delays = DELAYS.map(|ms| Fault::Delay(Duration::from_millis(ms)));
    case(disturbed_by(&delays, 1 << 20));
}

#[test]
fn silent() {
    case(disturbed_by(&[Fault::Swallow, Fault::Swallow], 1 << 20));
}

// --- PgBouncer ---

/// In transaction mode: a connection of an instance has another one of the server for each transaction. Ends with its
/// handle, or with this process.
struct PgBouncer {
    keeper: Child,
}

impl PgBouncer {
    /// `None` where there is none to be had.
    fn start(stage: &Stage, port: u16) -> Option<Self> {
        const SCRIPT: &str = r#""$@" & read -r _; kill -9 $!; wait"#;
        let places = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"];
        let find = || places.into_iter().find(|place| Path::new(place).exists());
        if !installed("pgbouncer", || find().is_some()) {
            return None;
        }
        let settings = stage.server.run_dir().join("pgbouncer.ini");
        std::fs::write(&settings, Self::settings(stage, port)).unwrap();
        let mut keeper = Command::new("/bin/sh");
        keeper
            .args(["-c", SCRIPT, "pgbouncer"])
            .arg(find()?)
            .arg("-q");
        if std::fs::metadata("/proc/self").is_ok_and(|this| this.uid() == 0) {
            keeper.args(["-u", "nobody"]); // it does not run as root
        }
        keeper.arg(&settings).stdin(Stdio::piped());
        let keeper = keeper.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Some(Self {
            keeper: keeper.unwrap(),
        })
    }

    fn settings(stage: &Stage, port: u16) -> String {
        format!(
            "[databases]\n* = host=127.0.0.1 port={} user=app\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = transaction\n\
             default_pool_size = 3\nserver_round_robin = 1\nserver_login_retry = 0.1\n",
            stage.server.port()
        )
    }

    async fn accepts(port: u16) {
        let accepted = async {
            while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, accepted).await.expect("PgBouncer");
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// Above those that the kernel hands out, so that nobody gets it by chance in between.
fn free_port(stage: &mut Stage) -> u16 {
    loop {
        let port = 61_000 + stage.random.below(4_000_u16);
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

#[test]
fn through_pgbouncer_in_transaction_mode() {
    case(async {
        let mut stage = Stage::new().await;
        let port = free_port(&mut stage);
        let Some(bouncer) = PgBouncer::start(&stage, port) else {
            return;
        };
        PgBouncer::accepts(port).await;
        let settings = Settings {
            memory: 0,
            ..stage.settings_by_way_of(port)
        };
        stage.serve(&settings).await;

        // the server goes, and PgBouncer stays
        stage.server.kill9().unwrap();
        stage.suffer(A_WHILE).await;
        stage.server.launch().unwrap();
        stage.recover().await;
        // the other way round
        drop(bouncer);
        stage.suffer(A_WHILE).await;
        let _bouncer = PgBouncer::start(&stage, port);
        stage.end().await;
    });
}
