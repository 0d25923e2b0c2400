//! What happens to the server.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use test_support::Server;
use tower_pgcache::tokio_postgres::{Client, Config, NoTls};

use crate::harness::machine::SmallDisk;
use crate::harness::{Settings, Stage, case, options};

const A_WHILE: Duration = Duration::from_millis(400);

#[test]
fn killed_and_started_again() {
    case(async {
        let mut stage = Stage::new().await;
        stage.serve(&stage.settings()).await;
        for _ in 0..2 {
            stage.server.kill9().unwrap();
            stage.suffer(A_WHILE).await;
            stage.server.launch().unwrap();
            stage.recover().await;
        }
        stage.end().await;
    });
}

/// What is stored survives then.
#[test]
fn killed_and_started_again_with_durable_tables() {
    case(async {
        let mut stage = Stage::new().await;
        let settings = Settings {
            durable: true,
            ..stage.settings()
        };
        stage.serve(&settings).await;
        for _ in 0..2 {
            stage.server.kill9().unwrap();
            stage.server.launch().unwrap();
            stage.recover().await;
        }
        stage.end().await;
    });
}

#[test]
fn restarted() {
    case(async {
        let mut stage = Stage::new().await;
        // also what asks the database for each answer
        let settings = Settings {
            memory: 0,
            ..stage.settings()
        };
        stage.serve(&settings).await;
        for _ in 0..2 {
            stage.server.stop().unwrap();
            stage.server.launch().unwrap();
            stage.recover().await;
        }
        stage.end().await;
    });
}

#[test]
fn paused() {
    case(async {
        let mut stage = Stage::new().await;
        stage.serve(&stage.settings()).await;
        for _ in 0..2 {
            stage.server.pause().unwrap();
            stage.suffer(A_WHILE).await;
            stage.server.resume().unwrap();
            stage.recover().await;
        }
        stage.end().await;
    });
}

#[test]
fn paused_where_answers_may_be_a_little_old() {
    case(async {
        let mut stage = Stage::new().await;
        let settings = Settings {
            max_staleness: 100,
            ..stage.settings()
        };
        stage.serve(&settings).await;
        stage.server.pause().unwrap();
        stage.suffer(A_WHILE).await;
        stage.server.resume().unwrap();
        stage.end().await;
    });
}

// --- no connection is to be had ---

/// Connections of somebody else.
async fn take_all(config: &Config) -> Vec<Client> {
    let mut taken = Vec::new();
    while let Ok((client, connection)) = config.connect(NoTls).await {
        tokio::spawn(connection);
        taken.push(client);
    }
    taken
}

#[test]
fn out_of_connections() {
    case(async {
        let server = Server::with(options().config("max_connections", "20")).unwrap();
        let mut stage = Stage::on(server).await;
        stage.serve(&stage.settings()).await;
        stage.sql("CREATE ROLE greedy LOGIN").await;
        let mut greedy: Config = stage.settings().database.parse().unwrap();
        greedy.user("greedy");
        let mut taken = take_all(&greedy).await;
        let end_theirs =
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'";
        let count = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'";
        let admin = stage.admin().await;
        // they come again as long as they find a place
        while admin.query_one(count, &[]).await.unwrap().get::<_, i64>(0) > 0 {
            admin.batch_execute(end_theirs).await.unwrap();
            taken.extend(take_all(&greedy).await);
        }
        stage.suffer(A_WHILE).await;
        drop(taken);
        stage.end().await;
    });
}

// --- no room is left ---

fn small_disk(server: &Server, megabytes: u32) -> Option<SmallDisk> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("pgcache-disk-{}-{count}", std::process::id());
    SmallDisk::mount(
        &std::env::temp_dir().join(name),
        megabytes,
        server.run_dir(),
    )
}

/// What the log says of it.
fn lacks_room(server: &Server) -> usize {
    server.log().matches("No space left on device").count()
}

/// The tables of the cache find no room; those of the application do.
#[test]
fn out_of_disk_for_the_cache() {
    case(async {
        let server = Server::with(options()).unwrap();
        let Some(disk) = small_disk(&server, 6) else {
            return;
        };
        let mut stage = Stage::on(server).await;
        let (path, name) = (disk.path().display(), stage.name());
        stage
            .sql(&format!("CREATE TABLESPACE small LOCATION '{path}'"))
            .await;
        stage.sql("GRANT CREATE ON TABLESPACE small TO app").await;
        stage
            .sql(&format!(
                "ALTER DATABASE {name} SET default_tablespace = small"
            ))
            .await;
        stage.serve(&stage.settings()).await;

        let admin = stage.admin().await;
        let fill =
            "INSERT INTO filler SELECT repeat(i::text, 100) FROM generate_series(1, 10000) i";
        stage.sql("CREATE TABLE filler (t text)").await;
        while admin.batch_execute(fill).await.is_ok() {}
        let before = lacks_room(&stage.server);
        stage
            .until("lack of room", || lacks_room(&stage.server) > before + 5)
            .await;
        stage.suffer(A_WHILE).await;
        stage.sql("DROP TABLE filler; CHECKPOINT").await;
        stage.end().await;
    });
}

/// If it is the log of the server that finds no room, the server panics, and does not come back before there is some.
#[test]
fn out_of_disk_for_the_server() {
    case(async {
        let mut server = Server::with(options()).unwrap();
        let Some(disk) = small_disk(&server, 160) else {
            return;
        };
        server.stop().unwrap();
        move_data(&server.run_dir().join("data"), disk.path());
        server.launch().unwrap();
        let mut stage = Stage::on(server).await;
        stage.serve(&stage.settings()).await;

        let filler = fill(disk.path());
        stage
            .until("lack of room", || lacks_room(&stage.server) > 5)
            .await;
        stage.suffer(A_WHILE).await;
        std::fs::remove_file(filler).unwrap();
        if stage.server.log().contains("PANIC") {
            stage.server.kill9().unwrap();
            stage.server.launch().unwrap();
        }
        stage.end().await;
    });
}

fn move_data(data: &Path, to: &Path) {
    let mut copy = Command::new("cp");
    let copied = copy.arg("-a").arg(data.join(".")).arg(to).status();
    assert!(copied.unwrap().success());
    std::fs::remove_dir_all(data).unwrap();
    std::os::unix::fs::symlink(to, data).unwrap();
}

fn fill(disk: &Path) -> PathBuf {
    let path = disk.join("filler");
    let mut file = File::create(&path).unwrap();
    let block = vec![1; 64 << 10];
    while file.write_all(&block).is_ok() {}
    path
}

// --- nothing may be written ---

#[test]
fn read_only() {
    case(async {
        let mut stage = Stage::new().await;
        stage.serve(&stage.settings()).await;
        for read_only in ["on", "off"] {
            let before = stage.given_up();
            stage
                .sql(&format!(
                    "ALTER SYSTEM SET default_transaction_read_only = {read_only}"
                ))
                .await;
            stage.sql("SELECT pg_reload_conf()").await;
            if read_only == "on" {
                stage
                    .until("refusal", || stage.given_up() > before + 5)
                    .await;
                stage.suffer(A_WHILE).await;
            }
        }
        stage.end().await;
    });
}
