//! What there is at a moment, of all that could grow.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;

use tokio::runtime::Handle;
use tokio_postgres::Client;

/// Numbers by name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sample(BTreeMap<String, i64>);

impl Sample {
    pub(crate) fn get(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The larger one of each.
    pub(crate) fn raise(&mut self, other: &Self) {
        for (name, number) in &other.0 {
            let most = self.0.entry(name.clone()).or_default();
            *most = (*most).max(*number);
        }
    }

    fn set(&mut self, name: impl Into<String>, number: impl TryInto<i64>) {
        self.0
            .insert(name.into(), number.try_into().ok().expect("a number"));
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, number) in &self.0 {
            write!(f, "{name} {number}; ")?;
        }
        Ok(())
    }
}

pub(crate) struct Sampler {
    sql: Client,
}

impl Sampler {
    pub(crate) const fn new(sql: Client) -> Self {
        Self { sql }
    }

    pub(crate) async fn take(&self) -> Sample {
        let mut sample = Sample::default();
        sample.set("heap", heap::living().bytes);
        sample.set("tasks", Handle::current().metrics().num_alive_tasks());
        // where there is no /proc, other figures have to do
        if let Ok(descriptors) = fs::read_dir("/proc/self/fd") {
            sample.set("descriptors", descriptors.count());
        }
        if let Some(bytes) = anonymous("self") {
            sample.set("resident", bytes);
        }
        self.server(&mut sample).await;
        self.tables(&mut sample).await;
        sample
    }

    async fn server(&self, sample: &mut Sample) {
        let processes = "SELECT pid FROM pg_stat_activity
                          WHERE datname = current_database() AND backend_type = 'client backend'";
        let processes = self.sql.query(processes, &[]).await.unwrap();
        let pids = processes.iter().map(|row| row.get::<_, i32>(0).to_string());
        let memory: i64 = pids.filter_map(|pid| anonymous(&pid)).sum();
        sample.set("connections", processes.len());
        sample.set("server's processes", memory);
    }

    /// With what is out of line, indexes and free space.
    async fn tables(&self, sample: &mut Sample) {
        let tables = "SELECT relname::text, pg_total_relation_size(oid) FROM pg_class
                       WHERE relnamespace = 'pgcache'::regnamespace AND relkind = 'r'";
        let mut counts = Vec::new();
        for row in self.sql.query(tables, &[]).await.unwrap() {
            let table: String = row.get(0);
            sample.set(format!("{table}: bytes"), row.get::<_, i64>(1));
            counts.push(format!("SELECT '{table}', count(*) FROM pgcache.{table}"));
        }
        let counts = counts.join(" UNION ALL ");
        for row in self.sql.query(&counts, &[]).await.unwrap() {
            let table: &str = row.get(0);
            sample.set(format!("{table}: rows"), row.get::<_, i64>(1));
        }
    }
}

/// What a process has for itself alone.
fn anonymous(pid: &str) -> Option<i64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("RssAnon:"))?;
    let kilobytes: i64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}
