//! The server of `DATABASE_URL`. It is somebody's, so what we make there has to go again.

use std::time::Duration;

use rustix::process::{Pid, test_kill_process};
use tokio::sync::OnceCell;
use tokio_postgres::{Client, Config};

use crate::Error;
use crate::database::{Database, PREFIX, connect};

/// A fresh database there.
pub(crate) async fn database(url: &str) -> Result<Database, Error> {
    static SWEPT: OnceCell<()> = OnceCell::const_new();

    let config: Config = url
        .parse()
        .map_err(|e| Error::caused("DATABASE_URL is not valid", &e))?;
    SWEPT.get_or_try_init(|| prepare(&config)).await?;
    let database = Database::create(&config, url).await?;
    let guard = DropGuard {
        server: config,
        name: database.name().to_owned(),
    };
    Ok(database.guarded(guard))
}

/// Once in a process.
async fn prepare(config: &Config) -> Result<(), Error> {
    let client = connect(config)
        .await
        .map_err(|e| Error::new(format!("The server of DATABASE_URL: {e}")))?;
    check_role(&client).await?;
    sweep(&client).await
}

async fn check_role(client: &Client) -> Result<(), Error> {
    let sql =
        "SELECT rolname::text, rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user";
    let row = client
        .query_one(sql, &[])
        .await
        .map_err(|e| Error::caused("cannot read the rights of the role of DATABASE_URL", &e))?;
    let (role, may): (String, bool) = (row.get(0), row.get(1));
    if may {
        return Ok(());
    }
    Err(Error::new(format!(
        "The role `{role}` of DATABASE_URL may not create databases, and every test gets one of its own.\n\
         Allow it with `ALTER ROLE \"{role}\" CREATEDB`, or unset DATABASE_URL to use a private server."
    )))
}

/// Removes what killed processes have left: their pid is in the name, and they have no connection.
///
/// Without `FORCE`, the server itself makes sure of the latter.
async fn sweep(client: &Client) -> Result<(), Error> {
    let sql = "SELECT datname::text FROM pg_database d WHERE starts_with(datname, $1) \
               AND NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.datid = d.oid)";
    let rows = client
        .query(sql, &[&PREFIX])
        .await
        .map_err(|e| Error::caused("cannot list the databases of DATABASE_URL", &e))?;
    for row in rows {
        let name: String = row.get(0);
        if maker(&name).is_some_and(|pid| !runs(pid)) {
            // Somebody else may sweep too, and it may belong to another role.
            let _ = client
                .batch_execute(&format!("DROP DATABASE IF EXISTS {name}"))
                .await;
        }
    }
    Ok(())
}

/// The pid in `pgcache_test_<pid>_<n>_<time>`. A name of any other form is not ours.
fn maker(name: &str) -> Option<Pid> {
    let mut parts = name.strip_prefix(PREFIX)?.split('_');
    let pid = parts.next()?.parse().ok()?;
    let _count: u32 = parts.next()?.parse().ok()?;
    u64::from_str_radix(parts.next()?, 16).ok()?;
    match parts.next() {
        Some(_) => None,
        None => Pid::from_raw(pid),
    }
}

/// On this machine; a process of another user answers `EPERM`, and runs.
fn runs(pid: Pid) -> bool {
    test_kill_process(pid) != Err(rustix::io::Errno::SRCH)
}

/// Drops a database, whoever is still connected to it.
pub(crate) struct DropGuard {
    server: Config,
    name: String,
}

impl Drop for DropGuard {
    /// The last handle may be dropped inside of a runtime, which must not be blocked on, or after its end. So this
    /// takes a thread with a runtime, and waits for it, because the process may be about to end. A failure is
    /// left to the next process's sweep.
    fn drop(&mut self) {
        let (server, name) = (self.server.clone(), self.name.clone());
        let thread = std::thread::Builder::new().spawn(move || drop_database(&server, &name));
        if let Ok(thread) = thread {
            let _ = thread.join();
        }
    }
}

fn drop_database(server: &Config, name: &str) {
    const PATIENCE: Duration = Duration::from_secs(10);

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let Ok(runtime) = runtime else { return };
    let work = async {
        if let Ok(client) = connect(server).await {
            let sql = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
            let _ = client.batch_execute(&sql).await;
        }
    };
    let _ = runtime.block_on(async { tokio::time::timeout(PATIENCE, work).await });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_its_own_names_only() {
        let pid = |name| maker(name).map(|pid| pid.as_raw_nonzero().get());
        assert_eq!(pid("pgcache_test_4711_3_19a2b"), Some(4711));
        for other in [
            "pgcache_test_data",
            "pgcache_test_4711",
            "pgcache_test_4711_3",
            "pgcache_test_4711_3_19a2b_x",
            "pgcache_test_0_0_0",
            "my_pgcache_test_4711_3_19a2b",
        ] {
            assert_eq!(pid(other), None, "{other}");
        }
    }
}
