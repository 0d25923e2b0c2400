//! What the figures were measured on.

use std::fs;

use test_support::Server;

const SETTINGS: [&str; 4] = [
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "shared_buffers",
];

/// One line for each thing that matters.
pub(crate) async fn describe(server: &Server) -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let sql = server.database().await.connect().await;
    let mut settings = Vec::new();
    for name in SETTINGS {
        let row = sql.query_one("SELECT current_setting($1)", &[&name]).await;
        settings.push(format!("{name} = {}", row.unwrap().get::<_, String>(0)));
    }
    let version = sql.query_one("SHOW server_version", &[]).await.unwrap();
    format!(
        "- {cores} cores, {}\n- {} {}\n- PostgreSQL {}: {}; the data are in {}\n",
        cpu().as_deref().unwrap_or("of an unknown kind"),
        std::env::consts::OS,
        std::env::consts::ARCH,
        version.get::<_, String>(0),
        settings.join(", "),
        match server.run_dir().starts_with("/dev/shm") {
            true => "memory",
            false => "a file system",
        },
    )
}

fn cpu() -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
