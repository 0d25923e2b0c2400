//! Everything at random, one thing after the other and sometimes before the last one is over.

use std::time::{Duration, Instant};

use test_support::processes;

use crate::harness::wire::{Fault, Wire};
use crate::harness::{Stage, case, soak_time};

#[derive(Debug, Clone, Copy)]
enum Disturbance {
    Kill,
    Restart,
    Pause,
    StopAnInstance,
    Terminate,
    Cut,
    Delay,
    Swallow,
    ReadOnly,
    Revoke,
    Corrupt,
    DropSchema,
    Nothing,
}

impl Disturbance {
    const ALL: [Self; 13] = [
        Self::Kill,
        Self::Restart,
        Self::Pause,
        Self::StopAnInstance,
        Self::Terminate,
        Self::Cut,
        Self::Delay,
        Self::Swallow,
        Self::ReadOnly,
        Self::Revoke,
        Self::Corrupt,
        Self::DropSchema,
        Self::Nothing,
    ];

    /// Begins, goes on for a while, and ends.
    async fn happens(self, stage: &mut Stage, wire: &Wire) {
        let time = Duration::from_millis(20 + stage.random.below(400));
        match self {
            Self::Kill => {
                stage.server.kill9().unwrap();
                stage.suffer(time).await;
                stage.server.launch().unwrap();
            }
            Self::Restart => {
                stage.server.stop().unwrap();
                stage.suffer(time).await;
                stage.server.launch().unwrap();
            }
            Self::Pause => {
                stage.server.pause().unwrap();
                stage.suffer(time).await;
                stage.server.resume().unwrap();
            }
            Self::StopAnInstance => {
                let pid = stage.pids()[stage.random.below(2_usize)];
                processes::pause(pid).unwrap();
                tokio::time::sleep(time).await;
                processes::resume(pid).unwrap();
            }
            Self::Terminate => {
                let theirs =
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'";
                stage.sql(theirs).await;
            }
            Self::Cut => {
                let most = 1 << stage.random.below(18);
                suffers(stage, wire, Fault::CutWithin(most), time).await;
            }
            Self::Delay => {
                let delay = Duration::from_millis(stage.random.below(150));
                suffers(stage, wire, Fault::Delay(delay), time).await;
            }
            Self::Swallow => suffers(stage, wire, Fault::Swallow, time).await,
            Self::ReadOnly => {
                stage
                    .sql("ALTER ROLE app SET default_transaction_read_only = on")
                    .await;
                stage.suffer(time).await;
                stage
                    .sql("ALTER ROLE app RESET default_transaction_read_only")
                    .await;
            }
            Self::Revoke => {
                stage
                    .sql_at_last("REVOKE USAGE ON SCHEMA pgcache FROM app")
                    .await;
                stage.suffer(time).await;
                stage
                    .sql_at_last("GRANT USAGE ON SCHEMA pgcache TO app")
                    .await;
            }
            Self::Corrupt => {
                stage
                    .sql_at_last("UPDATE pgcache.entry SET body = 'garbage'")
                    .await;
            }
            Self::DropSchema => {
                stage.sql_at_last("DROP SCHEMA pgcache CASCADE").await;
                stage.is_watched_again().await;
            }
            Self::Nothing => stage.suffer(time).await,
        }
    }
}

async fn suffers(stage: &Stage, wire: &Wire, fault: Fault, time: Duration) {
    wire.suffers(fault);
    stage.suffer(time).await;
    wire.suffers(Fault::None);
}

#[test]
fn everything_at_random() {
    case(async {
        let mut stage = Stage::new().await;
        let wire = Wire::to(stage.server.port(), stage.random.fork()).await;
        stage.serve(&stage.settings_by_way_of(wire.port())).await;
        let began = Instant::now();
        while began.elapsed() < soak_time() {
            let next = stage.random.of(&Disturbance::ALL);
            println!("{:.3} s: {next:?}", stage.elapsed().as_secs_f64());
            next.happens(&mut stage, &wire).await;
            if stage.random.one_in(3) {
                stage.recover().await;
            }
        }
        stage.end().await;
    });
}
