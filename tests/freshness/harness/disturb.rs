//! What happens to the instances and to the server while clients read and writers write.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use test_support::processes;
use tokio::time::sleep;
use tower_pgcache::tokio_postgres::{Client, NoTls};

use super::{Error, Run};
use test_support::random::Random;

/// What goes wrong, or on in the background, during a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disturbance {
    /// `pg_terminate_backend` of connections of the caches.
    Terminate,
    /// SIGSTOP and SIGCONT of instances.
    Stop,
    /// SIGKILL of the server, which starts again.
    Crash,
    /// A transaction with an id and a snapshot is open for the whole run.
    Idle,
    /// Pruning, now and then to a few rows, which makes everything invalid, and vacuum.
    Prune,
}

impl Disturbance {
    pub(crate) const ALL: [Self; 5] = [
        Self::Terminate,
        Self::Stop,
        Self::Crash,
        Self::Idle,
        Self::Prune,
    ];

    pub(super) async fn go_on(self, run: Arc<Run>) {
        let mut random = Random::new(run.plan.seed, 3000 + self as u64);
        while !run.is_over() {
            let done = match self {
                Self::Terminate => terminate(&run, &mut random).await,
                Self::Stop => stop(&run, &mut random).await,
                Self::Crash => crash(&run, &mut random).await,
                Self::Idle => idle(&run).await,
                Self::Prune => prune(&run, &mut random).await,
            };
            match done {
                Ok(()) => run.tally.disturbed(),
                // the server is down: another disturbance has seen to that
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

async fn connect(run: &Run) -> Result<Client, Error> {
    let connected = tower_pgcache::tokio_postgres::connect(&run.database_url, NoTls).await;
    let (sql, connection) = connected?;
    tokio::spawn(connection);
    Ok(sql)
}

async fn terminate(run: &Run, random: &mut Random) -> Result<(), Error> {
    let sql = connect(run).await?;
    while !run.is_over() {
        let ended = sql
            .execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                  WHERE datname = current_database() AND application_name = 'shop cache' ORDER BY random() LIMIT 2",
                &[],
            )
            .await?;
        if ended > 0 {
            run.tally.disturbed();
        }
        sleep(Duration::from_millis(10 + random.below(200))).await;
    }
    Ok(())
}

async fn stop(run: &Run, random: &mut Random) -> Result<(), Error> {
    let which = random.below(run.pids.len());
    processes::pause(run.pids[which])?;
    sleep(Duration::from_millis(50 + random.below(400))).await;
    processes::resume(run.pids[which])?;
    sleep(Duration::from_millis(random.below(300))).await;
    Ok(())
}

async fn crash(run: &Arc<Run>, random: &mut Random) -> Result<(), Error> {
    sleep(Duration::from_millis(700 + random.below(600))).await;
    let it = run.clone();
    let restart = move || {
        let server = it.server.as_ref().ok_or("not our server")?;
        let mut server = server.lock().unwrap_or_else(PoisonError::into_inner);
        let _down = it.outage();
        server.kill9()?;
        server.launch()?;
        Ok::<_, Error>(())
    };
    tokio::task::spawn_blocking(restart).await?
}

async fn idle(run: &Run) -> Result<(), Error> {
    let sql = connect(run).await?;
    sql.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT pg_current_xact_id(), count(*) FROM pg_class")
        .await?;
    run.tally.disturbed();
    while !run.is_over() {
        if sql.is_closed() {
            return Err("the server has gone".into());
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn prune(run: &Run, random: &mut Random) -> Result<(), Error> {
    let sql = connect(run).await?;
    while !run.is_over() {
        let rows = if random.below(8) == 0 { 100 } else { 5000 };
        sql.batch_execute(&format!("SELECT pgcache.prune({rows})"))
            .await?;
        for table in ["invalidation", "changed", "entry", "epoch"] {
            sql.batch_execute(&format!("VACUUM pgcache.{table}"))
                .await?;
        }
        run.tally.disturbed();
        sleep(Duration::from_millis(random.below(50))).await;
    }
    Ok(())
}
