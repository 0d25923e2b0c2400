//! What the figures were measured on.

use std::fs;
use std::process::Command;

use test_support::Database;

/// One line for each thing that matters.
pub(crate) async fn describe(database: Option<&Database>) -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let postgres = match database {
        Some(database) => postgres(database).await,
        None => None,
    };
    let lines = [
        ("cores", Some(cores.to_string())),
        ("CPU", cpu()),
        ("kernel", output("uname", &["-sr"])),
        ("Postgres", postgres),
        ("Redis", output("redis-server", &["--version"])),
        ("rustc", output("rustc", &["--version"])),
    ];
    let line = |(name, value): (&str, Option<String>)| {
        format!("- {name}: {}\n", value.as_deref().unwrap_or("unknown"))
    };
    lines.map(line).concat()
}

fn cpu() -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

async fn postgres(database: &Database) -> Option<String> {
    let row = database
        .connect()
        .await
        .query_one("SHOW server_version", &[])
        .await;
    row.ok()?.try_get(0).ok()
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}
