//! Standbys that follow a server by streaming replication.

use std::io;
use std::sync::atomic::AtomicBool;

use tokio_postgres::Config;

use crate::database::Database;
use crate::server::{Options, Server, new_run_dir};
use crate::user::{ServerUser, output};
use crate::watchdog::Watchdog;

impl Server {
    /// A hot standby of this server, which follows it from now on. Takes some tenths of a second, and needs
    /// `pg_basebackup`.
    ///
    /// # Errors
    ///
    /// If it cannot be made or does not start.
    pub fn standby(&self) -> io::Result<Self> {
        let user = ServerUser::find()?;
        let run_dir = new_run_dir();
        let config = Options::new().all_config();
        let watchdog = Watchdog::spawn(&run_dir, &self.install.bin, user, &config)?;
        let program = self.command("pg_basebackup").get_program().to_owned();
        let mut backup = user.command(program);
        backup
            .args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync"])
            .args(["--username=postgres", &format!("--port={}", self.port())])
            .arg("--host")
            .arg(self.run_dir())
            .arg("--pgdata")
            .arg(run_dir.join("data"));
        output(&mut backup)?;
        let mut standby = Self {
            install: self.install.clone(),
            run_dir,
            port: 0,
            running: None,
            paused: AtomicBool::new(false),
            watchdog,
        };
        standby.launch_on_free_port()?;
        Ok(standby)
    }

    /// A database that another server has made, as it is on this one.
    #[must_use]
    pub fn copy_of(&self, database: &Database) -> Database {
        let mut config = Config::new();
        config
            .host_path(self.run_dir())
            .port(self.port())
            .user("postgres");
        let url = format!("postgres://postgres@127.0.0.1:{}/postgres", self.port());
        database.elsewhere(&config, &url)
    }
}
