//! Another server takes over.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use test_support::Server;

use crate::harness::machine::skipped;
use crate::harness::wire::Wire;
use crate::harness::{PATIENCE, Settings, Stage, case, options, sql, superuser_of};

const A_WHILE: Duration = Duration::from_millis(400);

/// A server that follows this one, which is stopped for the time of the copy.
fn standby_of(primary: &mut Server) -> Server {
    let mut standby = Server::with(options()).unwrap();
    standby.stop().unwrap();
    primary.stop().unwrap();
    let data = standby.run_dir().join("data");
    std::fs::remove_dir_all(&data).unwrap();
    let mut copy = Command::new("cp");
    let copied = copy
        .arg("-a")
        .arg(primary.run_dir().join("data"))
        .arg(&data)
        .status();
    assert!(copied.unwrap().success());
    let follows = format!(
        "primary_conninfo = 'host={} port={} user=postgres'\n",
        primary.run_dir().display(),
        primary.port()
    );
    // `-a` keeps the owner
    let settings = std::fs::OpenOptions::new()
        .append(true)
        .open(data.join("postgresql.auto.conf"));
    settings.unwrap().write_all(follows.as_bytes()).unwrap();
    let signal = Command::new("cp")
        .args(["-a", "--attributes-only"])
        .args([
            data.join("postgresql.auto.conf"),
            data.join("standby.signal"),
        ])
        .status();
    assert!(signal.unwrap().success());
    primary.launch().unwrap();
    standby.launch().unwrap();
    standby
}

/// Until the standby has what the primary has had.
async fn caught_up(stage: &Stage, standby: &Server) {
    let position: String = {
        let row = stage
            .admin()
            .await
            .query_one("SELECT pg_current_wal_lsn()::text", &[])
            .await;
        row.unwrap().get(0)
    };
    let (follower, connection) = superuser_of(standby, "postgres")
        .connect(tower_pgcache::tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    let has = format!("SELECT coalesce(pg_last_wal_replay_lsn() >= '{position}'::pg_lsn, false)");
    let catching_up = async {
        while !follower
            .query_one(&has, &[])
            .await
            .unwrap()
            .get::<_, bool>(0)
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, catching_up)
        .await
        .expect("replication");
}

async fn promote(standby: &Server) {
    let (follower, connection) = superuser_of(standby, "postgres")
        .connect(tower_pgcache::tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    sql(&follower, "SELECT pg_promote()").await;
}

/// With a proxy that leads to the one and then to the other.
async fn fails_over(durable: bool) {
    let mut stage = Stage::new().await;
    let standby = standby_of(&mut stage.server);
    if durable {
        // what the standby does not have is not committed: a change that is lost cannot invalidate
        stage
            .sql("ALTER SYSTEM SET synchronous_standby_names = '*'")
            .await;
        stage.sql("SELECT pg_reload_conf()").await;
    }
    let wire = Wire::to(stage.server.port(), stage.random.fork()).await;
    let settings = Settings {
        durable,
        ..stage.settings_by_way_of(wire.port())
    };
    stage.serve(&settings).await;
    caught_up(&stage, &standby).await;
    stage.server.kill9().unwrap();
    stage.suffer(A_WHILE).await;
    // for a while to a server that can be read only
    wire.lead_to(standby.port());
    stage.suffer(A_WHILE).await;
    promote(&standby).await;
    stage.moves_to(&standby);
    stage.end().await;
}

#[test]
fn a_standby_is_promoted() {
    case(fails_over(false));
}

#[test]
fn a_standby_is_promoted_with_durable_tables() {
    case(fails_over(true));
}

#[test]
fn a_standby_of_a_list_of_hosts_is_promoted() {
    case(async {
        let mut stage = Stage::new().await;
        let standby = standby_of(&mut stage.server);
        let both = format!(
            "host=127.0.0.1,127.0.0.1 port={},{} user=app dbname={} target_session_attrs=read-write",
            stage.server.port(),
            standby.port(),
            stage.name()
        );
        let settings = Settings {
            database: both,
            ..stage.settings()
        };
        stage.serve(&settings).await;
        caught_up(&stage, &standby).await;
        stage.server.kill9().unwrap();
        stage.suffer(A_WHILE).await;
        promote(&standby).await;
        stage.moves_to(&standby);
        stage.end().await;
    });
}

// --- a dump is restored ---

/// `None` where there is no `pg_dump`: server binaries that were fetched come without.
fn dump(stage: &Stage, options: &[&str]) -> Option<Vec<u8>> {
    let mut pg_dump = stage.server.command("pg_dump");
    let Ok(dumped) = pg_dump.args(options).arg(stage.name()).output() else {
        skipped("there is no pg_dump");
        return None;
    };
    let complaint = String::from_utf8_lossy(&dumped.stderr);
    if complaint.contains("server version mismatch") {
        skipped("pg_dump is older than the server");
        return None;
    }
    assert!(dumped.status.success(), "{complaint}");
    Some(dumped.stdout)
}

/// Whether all of it could be done.
fn restore(server: &Server, database: &str, dump: &[u8]) -> bool {
    let mut psql = server
        .command("psql")
        .args(["-X", "-q", "-1", "-v", "ON_ERROR_STOP=1", database])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // it may have ended already
    let _ = psql.stdin.take().unwrap().write_all(dump);
    psql.wait().unwrap().success()
}

/// To a new server with the old one's address. Entries, log and epoch are in the dump.
#[test]
fn a_dump_is_restored_to_a_new_server() {
    case(async {
        let mut stage = Stage::new().await;
        let wire = Wire::to(stage.server.port(), stage.random.fork()).await;
        stage.serve(&stage.settings_by_way_of(wire.port())).await;
        let Some(dump) = dump(&stage, &[]) else {
            return;
        };
        // changes that the dump does not have
        stage.recover().await;
        let new = Server::with(options()).unwrap();
        let (admin, connection) = superuser_of(&new, "postgres")
            .connect(tower_pgcache::tokio_postgres::NoTls)
            .await
            .unwrap();
        tokio::spawn(connection);
        sql(&admin, "CREATE ROLE app LOGIN").await;
        sql(
            &admin,
            &format!("CREATE DATABASE {} TEMPLATE template0", stage.name()),
        )
        .await;
        assert!(restore(&new, &stage.name(), &dump));
        stage.server.stop().unwrap();
        stage.suffer(A_WHILE).await;
        wire.lead_to(new.port());
        stage.moves_to(&new);
        stage.end().await;
    });
}

/// Under the load, to where it came from.
#[test]
fn a_dump_is_restored_in_place() {
    case(async {
        let mut stage = Stage::new().await;
        stage.serve(&stage.settings()).await;
        let Some(dump) = dump(&stage, &["--clean", "--if-exists"]) else {
            return;
        };
        stage.recover().await;
        // it may meet transactions that lock in another order
        let mut tries = 0;
        while !restore(&stage.server, &stage.name(), &dump) {
            tries += 1;
            assert!(tries < 50, "{}", stage.server.log());
        }
        stage.end().await;
    });
}
