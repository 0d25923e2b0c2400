use std::fs;
use std::io::{self, Error};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::UNIX_EPOCH;

use rustix::process::{Pid, Signal};
use tokio_postgres::Config;

use crate::database::Database;
use crate::install::Install;
use crate::processes::{any_runs, children, signal};
use crate::template::make_data_dir;
use crate::user::{ServerUser, command};
use crate::watchdog::{Watchdog, wait_until};

/// What every server gets before the settings of [`Options`].
///
/// Nothing here has to survive the machine, so there is no fsync. But `synchronous_commit` and `full_page_writes`
/// stay on, so that what is committed survives [`Server::kill9`].
const CONFIG: [(&str, &str); 8] = [
    ("listen_addresses", "127.0.0.1"),
    ("fsync", "off"),
    ("shared_buffers", "32MB"),
    ("max_connections", "200"),
    ("max_prepared_transactions", "10"),
    ("min_wal_size", "2MB"),
    ("checkpoint_timeout", "1h"),
    // In the data directory; by default a killed server would leave files in /dev/shm.
    ("dynamic_shared_memory_type", "mmap"),
];

/// How to start a [`Server`].
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Server settings, as in `postgresql.conf`; the last one of a name wins.
    pub config: Vec<(String, String)>,
    /// The major version. Defaults to `PG_MAJOR`, else to the one that is found first.
    pub major: Option<u32>,
    /// Whether the server is made anew, with a system identifier of its own, and not from a copy.
    pub own_identity: bool,
}

impl Options {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a server setting.
    #[must_use]
    pub fn config(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.push((name.into(), value.into()));
        self
    }

    /// Asks for a major version; it is fetched if it is not installed.
    #[must_use]
    pub fn major(mut self, major: u32) -> Self {
        self.major = Some(major);
        self
    }

    /// Asks for a server with a system identifier of its own, which takes a second or two.
    #[must_use]
    pub fn own_identity(mut self) -> Self {
        self.own_identity = true;
        self
    }

    pub(crate) fn all_config(&self) -> Vec<(String, String)> {
        let ours = CONFIG
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()));
        ours.chain(self.config.iter().cloned()).collect()
    }
}

/// A private Postgres server with one superuser, `postgres`, and no password.
///
/// Dropping it stops the server and removes everything that belongs to it; so does the end of this process.
#[derive(Debug)]
pub struct Server {
    pub(crate) install: Install,
    pub(crate) run_dir: PathBuf,
    pub(crate) port: u16,
    pub(crate) running: Option<Pid>,
    pub(crate) paused: AtomicBool,
    pub(crate) watchdog: Watchdog,
}

impl Server {
    /// Starts a server, in 60–80 ms; the first one in a `target/` takes a second or two.
    pub fn start() -> io::Result<Self> {
        Self::with(Options::new())
    }

    /// Starts a server with other options than the default ones.
    #[allow(clippy::needless_pass_by_value)] // reads better at the call
    pub fn with(options: Options) -> io::Result<Self> {
        let user = ServerUser::find()?;
        let found = Install::find(options.major, user)?;
        let run_dir = new_run_dir();
        let install = place(&found, user, &run_dir);
        // First of all: from here on, whatever happens, what we leave is cleared away.
        let mut watchdog = Watchdog::spawn(&run_dir, &install.bin, user, &options.all_config())?;
        if install.bin != found.bin {
            copy_install(&found, user, &run_dir)?;
        }
        if options.own_identity {
            watchdog.initdb()?;
        } else {
            make_data_dir(&run_dir.join("data"), &found, user, &mut watchdog)?;
        }
        let mut server = Self {
            install,
            run_dir,
            port: 0,
            running: None,
            paused: AtomicBool::new(false),
            watchdog,
        };
        server.launch_on_free_port()?;
        Ok(server)
    }

    /// Makes an empty database with a name of its own, in about 10 ms. It goes with the server.
    ///
    /// # Panics
    ///
    /// If the server does not run.
    pub async fn database(&self) -> Database {
        self.try_database().await.unwrap_or_else(|e| panic!("{e}"))
    }

    pub(crate) async fn try_database(&self) -> Result<Database, crate::Error> {
        let mut config = Config::new();
        config
            .host_path(&self.run_dir)
            .port(self.port)
            .user("postgres");
        let url = format!("postgres://postgres@127.0.0.1:{}/postgres", self.port);
        Database::create(&config, &url).await
    }

    /// Starts the server again after [`kill9`](Self::kill9) or [`stop`](Self::stop), on the same port, and waits
    /// until it accepts connections.
    ///
    /// # Errors
    ///
    /// If it runs already or does not start; the error has the server's log.
    pub fn launch(&mut self) -> io::Result<()> {
        if self.running.is_some() {
            return Err(Error::other("the server runs already"));
        }
        match self.launch_on(self.port)? {
            Launch::Ready => Ok(()),
            Launch::PortTaken => Err(Error::other(format!(
                "somebody else has taken port {} while the server was down",
                self.port
            ))),
        }
    }

    /// Shuts the server down in an orderly way, without waiting for its clients. The data stay.
    pub fn stop(&mut self) -> io::Result<()> {
        let postmaster = self.postmaster()?;
        self.resume()?; // a paused one would not hear the signal
        signal(postmaster, Signal::INT)?;
        self.running = None;
        self.watchdog.reap()
    }

    /// Crashes the server: no process of it gets to do anything more. The data stay as they are.
    ///
    /// The children are killed too. A busy one would live on without the postmaster, and block the next start.
    pub fn kill9(&mut self) -> io::Result<()> {
        let victims = self.freeze()?;
        for pid in &victims {
            signal(*pid, Signal::KILL)?;
        }
        self.running = None;
        self.paused.store(false, Ordering::Relaxed);
        self.watchdog.reap()?;
        wait_until("the end of the killed processes", || {
            Ok(!any_runs(&victims)?)
        })
    }

    /// Stops the time of the server: connections stay open, and nothing is answered until [`resume`](Self::resume).
    pub fn pause(&self) -> io::Result<()> {
        for pid in self.freeze()? {
            signal(pid, Signal::STOP)?;
        }
        Ok(())
    }

    /// Ends a [`pause`](Self::pause).
    pub fn resume(&self) -> io::Result<()> {
        let postmaster = self.postmaster()?;
        for pid in children(postmaster)? {
            signal(pid, Signal::CONT)?;
        }
        signal(postmaster, Signal::CONT)?;
        self.paused.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// What the server has logged so far.
    pub fn log(&self) -> String {
        fs::read(self.run_dir.join("log"))
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    /// The major version of the server.
    pub fn major(&self) -> u32 {
        self.install.major
    }

    /// The TCP port, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The directory that holds the data, the log and the Unix socket, and that is removed with the server.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// The directory of the server's programs. Fetched binaries have only `initdb`, `postgres` and `pg_ctl`.
    pub fn bin(&self) -> &Path {
        &self.install.bin
    }

    /// A client program such as `psql` or `pg_dump`, set up to connect to this server; from the server's
    /// installation, or if it is not there, from `PATH`.
    pub fn command(&self, program: &str) -> Command {
        let installed = self.bin().join(program);
        let mut command = if installed.exists() {
            command(installed)
        } else {
            command(program)
        };
        command
            .env("PGHOST", &self.run_dir)
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", "postgres");
        command
    }

    fn postmaster(&self) -> io::Result<Pid> {
        self.running
            .ok_or_else(|| Error::other("the server does not run"))
    }

    /// Stops the postmaster, and returns it and its children: a stopped one does not make new ones.
    fn freeze(&self) -> io::Result<Vec<Pid>> {
        let postmaster = self.postmaster()?;
        self.paused.store(true, Ordering::Relaxed);
        signal(postmaster, Signal::STOP)?;
        let mut pids = children(postmaster)?;
        pids.push(postmaster);
        Ok(pids)
    }

    /// Between our look at a port and the server's use of it somebody else may take it.
    pub(crate) fn launch_on_free_port(&mut self) -> io::Result<()> {
        for _ in 0..10 {
            self.port = free_port()?;
            if let Launch::Ready = self.launch_on(self.port)? {
                return Ok(());
            }
        }
        Err(Error::other(format!(
            "found no free TCP port:\n{}",
            self.log()
        )))
    }

    fn launch_on(&mut self, port: u16) -> io::Result<Launch> {
        let logged = self.log().len();
        let postmaster = self.watchdog.start(port)?;
        wait_until("PostgreSQL to accept connections", || {
            Ok(self.is_ready(postmaster) || !any_runs(&[postmaster])?)
        })?;
        if self.is_ready(postmaster) {
            self.running = Some(postmaster);
            return Ok(Launch::Ready);
        }
        self.watchdog.reap()?;
        let log = self.log();
        let log = &log[logged..];
        if log.contains("could not bind") {
            return Ok(Launch::PortTaken);
        }
        Err(Error::other(format!("PostgreSQL did not start:\n{log}")))
    }

    /// Line 1 of the lock file is the pid, line 8 the state (`standby` while it follows another server and may be read);
    /// `pg_ctl -w` looks at the same.
    fn is_ready(&self, postmaster: Pid) -> bool {
        let lock = fs::read_to_string(self.run_dir.join("data/postmaster.pid")).unwrap_or_default();
        let lines: Vec<_> = lock.lines().map(str::trim_end).collect();
        let pid = postmaster.as_raw_nonzero().to_string();
        let state = lines.get(7).copied().unwrap_or_default();
        lines.first() == Some(&&*pid) && ["ready", "standby"].contains(&state)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The postmaster would wait five seconds for stopped children before it kills them.
        if *self.paused.get_mut() {
            let _ = self.resume();
        }
    }
}

enum Launch {
    Ready,
    PortTaken,
}

/// Where the server's user finds the programs: where they are, or in a copy if `target/` is closed to that user.
fn place(found: &Install, user: ServerUser, run_dir: &Path) -> Install {
    if found.runs_as(user) {
        return found.clone();
    }
    Install {
        bin: run_dir.join("postgres/bin"),
        ..found.clone()
    }
}

/// Only what was fetched can be in a closed place, and that is whole below the parent of `bin`.
fn copy_install(found: &Install, user: ServerUser, run_dir: &Path) -> io::Result<()> {
    let whole = found.bin.parent().unwrap_or(&found.bin);
    user.copy_tree(whole, &run_dir.join("postgres"))
}

/// A new name. It is short, since the path of a Unix socket has at most 103 bytes.
pub(crate) fn new_run_dir() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let now = UNIX_EPOCH.elapsed().unwrap_or_default().as_millis();
    let name = format!("pgcache-{}-{count}-{now:x}", std::process::id());
    base_dir().join(name)
}

/// Not `TMPDIR`, which is too long on macOS, see [`new_run_dir`].
fn base_dir() -> PathBuf {
    match std::env::var_os("PGTMP_DIR") {
        Some(dir) if !dir.is_empty() => dir.into(),
        _ if has_room_in_memory() => "/dev/shm".into(),
        _ => "/tmp".into(),
    }
}

#[cfg(target_os = "linux")]
fn has_room_in_memory() -> bool {
    use rustix::fs::{StatVfsMountFlags, statvfs};
    const ROOM: u64 = 2 << 30;
    // Programs may be copied there, so it has to allow them.
    statvfs("/dev/shm").is_ok_and(|fs| {
        fs.f_bavail * fs.f_frsize >= ROOM && !fs.f_flag.contains(StatVfsMountFlags::NOEXEC)
    })
}

#[cfg(not(target_os = "linux"))]
fn has_room_in_memory() -> bool {
    false
}

/// A port below those that the kernel hands out, so that nobody gets it by chance while the server is down.
fn free_port() -> io::Result<u16> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    const FIRST: u32 = 15_000;
    const PORTS: u32 = 17_000;
    let start = std::process::id().wrapping_mul(7919); // so that processes begin apart
    for _ in 0..PORTS {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + start.wrapping_add(count) % PORTS;
        let port = u16::try_from(port).map_err(Error::other)?;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    Err(Error::other("every TCP port is taken"))
}
