//! Starts everything, and lets the candidates take turns. What fails ends one candidate and not the others.

use test_support::Database;
use tokio::signal::unix::{SignalKind, signal};

use crate::Error;
use crate::candidates::{Candidate, Store};
use crate::options::{Drive, Serve};
use crate::process::{Redis, Server};
use crate::report::{Run, table};
use crate::warm::{calls, warm};
use crate::{machine, wrk};

/// Whatever was started ends with the future.
pub(crate) async fn until_interrupted(options: Drive) -> Result<(), Error> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    tokio::select! {
        driven = drive(options) => driven,
        _ = interrupt.recv() => Err("interrupted".into()),
        _ = terminate.recv() => Err("terminated".into()),
        _ = hang_up.recv() => Err("hung up".into()),
    }
}

async fn drive(options: Drive) -> Result<(), Error> {
    let stores = Stores::start(&options.candidates).await;
    println!("{}\n", options.command());
    print!("{}", machine::describe(stores.postgres.as_ref().ok()).await);
    let mut turns = Vec::new();
    for candidate in &options.candidates {
        turns.push(Turns::begin(*candidate, &stores, &options).await);
    }
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        for turn in &mut turns {
            turn.take(&options).await;
        }
    }
    let mut runs = Vec::new();
    for turns in turns {
        runs.push(turns.end().await?);
    }
    stores.stop().await?;
    println!("\n{}", table(&runs));
    Ok(())
}

/// What the candidates share, or why it is not there.
struct Stores {
    postgres: Result<Database, String>,
    redis: Result<Redis, String>,
}

impl Stores {
    async fn start(candidates: &[Candidate]) -> Self {
        let wanted = |store| candidates.iter().any(|c| c.store() == store);
        let postgres = match wanted(Store::Postgres) {
            true => test_support::try_database()
                .await
                .map_err(|e| e.to_string()),
            false => Err("not wanted".to_owned()),
        };
        let redis = match wanted(Store::Redis) {
            true => Redis::start()
                .await
                .map_err(|e| format!("redis-server: {e}")),
            false => Err("not wanted".to_owned()),
        };
        Self { postgres, redis }
    }

    async fn stop(self) -> Result<(), Error> {
        match self.redis {
            Ok(redis) => redis.stop().await,
            Err(_) => Ok(()),
        }
    }

    /// The URL of the store of `candidate`.
    fn url(&self, candidate: Candidate) -> Result<String, Error> {
        match candidate.store() {
            Store::Memory => Ok(String::new()),
            Store::Postgres => Ok(self.postgres.as_ref().map_err(Clone::clone)?.url()),
            Store::Redis => Ok(self.redis.as_ref().map_err(Clone::clone)?.url.clone()),
        }
    }
}

/// One candidate and its server, which is gone after a failure.
struct Turns {
    run: Run,
    server: Option<Server>,
}

impl Turns {
    async fn begin(candidate: Candidate, stores: &Stores, options: &Drive) -> Self {
        let mut turns = Self {
            run: Run {
                candidate,
                rounds: Vec::new(),
                handler_calls: 0,
                failure: None,
            },
            server: None,
        };
        match start(candidate, stores, options.size).await {
            Ok(server) => turns.server = Some(server),
            Err(error) => turns.fail(&error),
        }
        turns
    }

    async fn take(&mut self, options: &Drive) {
        let Some(server) = &self.server else { return };
        match round(server, options).await {
            Ok((figures, calls)) => {
                self.run.rounds.push(figures);
                self.run.handler_calls += calls;
            }
            Err(error) => self.fail(&error),
        }
    }

    async fn end(self) -> Result<Run, Error> {
        if let Some(server) = self.server {
            server.stop().await?;
        }
        Ok(self.run)
    }

    fn fail(&mut self, error: &Error) {
        eprintln!("{}: {error}", self.run.candidate.name());
        self.run.failure = Some(error.to_string());
        self.server = None;
    }
}

async fn start(candidate: Candidate, stores: &Stores, size: usize) -> Result<Server, Error> {
    let options = Serve {
        candidate,
        size,
        store: stores.url(candidate)?,
    };
    Server::start(&options).await
}

/// The figures, and the calls of the handler that they include. It is warm every time, however long a run takes.
async fn round(server: &Server, options: &Drive) -> Result<(wrk::Figures, u64), Error> {
    warm(server.address, options.size).await?;
    let before = calls(server.address).await?;
    let figures = wrk::round(server.address, options.seconds).await?;
    Ok((figures, calls(server.address).await? - before))
}
