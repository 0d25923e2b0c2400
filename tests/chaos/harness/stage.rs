//! A case: a server, two instances, the load on them, and the checks at the end.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use test_support::random::Random;
use test_support::{Database, Options, Server};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tower_pgcache::tokio_postgres::{Client, Config, NoTls};

use super::app::{self, CONNECTIONS, Settings, Vitals, vitals_of};
use super::http::{Ask, Client as HttpClient};
use super::load::{Load, PAGES};
use super::origin::Origin;
use super::process::Instance;

/// Until when what was disturbed has to work again: the longest pause before the database is asked again is 5 s.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// No answer takes longer, whatever happens. (The deadline of a lookup, a wait for somebody else's answer, and a
/// machine that has other work.)
const SLOWEST: Duration = Duration::from_secs(12);

/// What the memory of an instance may grow by: that of the cache is 1 MiB, but allocators keep what was once used.
const GROWTH_KILOBYTES: usize = 48 << 10;

const WATCH: &str = "SELECT pgcache.watch('public.page', entity_column => 'id')";

const POLL: Duration = Duration::from_millis(10);

pub(crate) struct Stage {
    pub(crate) server: Server,
    /// Where it is administered, and where changes are committed.
    home: Config,
    database: Database,
    pub(crate) random: Random,
    origin: Origin,
    origin_at: SocketAddr,
    instances: Vec<Instance>,
    before: Vec<Vitals>,
    load: Option<Arc<Load>>,
    tasks: JoinSet<()>,
}

impl Stage {
    pub(crate) async fn new() -> Self {
        Self::on(Server::with(options()).unwrap()).await
    }

    pub(crate) async fn on(server: Server) -> Self {
        let database = server.database().await;
        let admin = database.connect().await;
        let name = database.name();
        // not a superuser: that one would have the last connections, and rights that cannot be revoked
        sql(
            &admin,
            &format!(
                "CREATE ROLE app LOGIN; GRANT CREATE ON DATABASE {name} TO app;
                 CREATE TABLE page (id int PRIMARY KEY, version bigint NOT NULL DEFAULT 0);
                 INSERT INTO page SELECT generate_series(1, {PAGES})"
            ),
        )
        .await;
        let origin = Origin::default();
        Self {
            origin_at: origin.serve().await,
            server,
            home: database.config(),
            database,
            random: Random::of_this_run("CHAOS_SEED"),
            origin,
            instances: Vec::new(),
            before: Vec::new(),
            load: None,
            tasks: JoinSet::new(),
        }
    }

    /// Instances that connect without detour.
    pub(crate) fn settings(&self) -> Settings {
        self.settings_by_way_of(self.server.port())
    }

    /// Instances that connect to this port.
    pub(crate) fn settings_by_way_of(&self, port: u16) -> Settings {
        Settings {
            database: format!(
                "host=127.0.0.1 port={port} user=app dbname={}",
                self.database.name()
            ),
            origin: self.origin_at.to_string(),
            memory: 1 << 20,
            durable: false,
            max_staleness: 0,
            lookup_deadline: 0,
        }
    }

    /// Starts two instances, and goes on when there is load on them and they are warm.
    pub(crate) async fn serve(&mut self, settings: &Settings) {
        let commands = [app::command(settings), app::command(settings)];
        self.serve_with(settings, commands).await;
    }

    pub(crate) fn command(&self, settings: &Settings) -> Command {
        app::command(settings)
    }

    pub(crate) async fn serve_with(&mut self, settings: &Settings, commands: [Command; 2]) {
        let starting = commands.map(Instance::start);
        self.instances = try_join_all(starting).await.unwrap();
        let addresses = self.addresses();
        self.watch().await;
        let mut load = Load::new(addresses, self.origin.clone(), self.home.clone());
        load.max_staleness = Duration::from_millis(settings.max_staleness);
        self.load = Some(Arc::new(load));
        self.resume();
        self.recover().await;
        self.rest().await;
        for instance in 0..self.instances.len() {
            self.before.push(self.quiet_vitals(instance).await);
        }
        self.resume();
        self.recover().await;
    }

    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.instances
            .iter()
            .map(|instance| instance.address)
            .collect()
    }

    pub(crate) fn pids(&self) -> Vec<u32> {
        self.instances.iter().map(|instance| instance.pid).collect()
    }

    /// What the instances take for the time.
    pub(crate) async fn clocks(&self) -> Vec<u64> {
        let mut clocks = Vec::new();
        for address in self.addresses() {
            let vitals = vitals_of(address).await.expect("vitals");
            clocks.push(vitals.seconds_since_1970);
        }
        clocks
    }

    /// What one instance stores for a second is fresh for the other one that long, whatever time they take it to be.
    pub(crate) async fn expires_in_time(&self) {
        const SECOND: Duration = Duration::from_secs(1);
        let clients: Vec<HttpClient> = self.addresses().into_iter().map(HttpClient::new).collect();
        for (storing, reading) in [(0, 1), (1, 0)] {
            // a slow machine may need more than one try
            for number in 0.. {
                let path = format!("/brief/{storing}-{number}");
                let began = Instant::now();
                while !brief(&clients[storing], &path).await {
                    assert!(began.elapsed() < PATIENCE, "no hits");
                    sleep(POLL).await;
                }
                if brief(&clients[reading], &path).await {
                    while brief(&clients[reading], &path).await {
                        sleep(POLL).await;
                    }
                    let lasted = began.elapsed();
                    assert!(
                        lasted > SECOND * 9 / 10 && lasted < SECOND * 3,
                        "{lasted:?}"
                    );
                    break;
                }
                assert!(
                    began.elapsed() > SECOND / 2,
                    "the other instance takes it for old"
                );
            }
        }
    }

    /// Changes of the table are changes of its pages. The instances create the schema; where they cannot it is there.
    pub(crate) async fn watch(&self) {
        self.sql(&format!("SET statement_timeout = 0; {WATCH}"))
            .await;
    }

    fn load(&self) -> &Arc<Load> {
        self.load.as_ref().expect("instances that serve")
    }

    fn resume(&mut self) {
        let load = self.load().clone();
        self.tasks = load.go_on(&mut self.random);
    }

    async fn rest(&mut self) {
        self.load().rest();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }

    /// It may meet transactions that lock in another order, and then another time.
    pub(crate) async fn sql_at_last(&self, statements: &str) {
        let admin = self.admin().await;
        let mut tries = 0;
        while let Err(error) = admin.batch_execute(statements).await {
            tries += 1;
            assert!(tries < 100, "{statements}: {error:?}");
            let _ = admin.batch_execute("ROLLBACK").await;
        }
    }

    /// The instances have made a new schema.
    pub(crate) async fn is_watched_again(&self) {
        let admin = self.admin().await;
        let mut tries = 0;
        while admin.batch_execute(WATCH).await.is_err() {
            tries += 1;
            assert!(tries < 3000, "no schema");
            sleep(POLL).await;
        }
    }

    /// The name of the database.
    pub(crate) fn name(&self) -> String {
        self.database.name().to_owned()
    }

    /// A superuser's connection.
    pub(crate) async fn admin(&self) -> Client {
        let (client, connection) = self.home.connect(NoTls).await.expect("a connection");
        tokio::spawn(connection);
        client
    }

    /// As [`admin`](Self::admin); it is soon over.
    pub(crate) async fn sql(&self, statements: &str) {
        sql(&self.admin().await, statements).await;
    }

    /// Another server has the database from now on.
    pub(crate) fn moves_to(&mut self, server: &Server) {
        self.home = superuser_of(server, self.database.name());
        self.load().write_to(self.home.clone());
    }

    /// Since the load began.
    pub(crate) fn elapsed(&self) -> Duration {
        self.load().began.elapsed()
    }

    /// For a while, with answers.
    pub(crate) async fn suffer(&self, while_: Duration) {
        const ANSWERS: u64 = 40;
        let (since, before) = (Instant::now(), self.load().report().reads);
        self.until("answers during the disturbance", || {
            since.elapsed() >= while_ && self.load().report().reads >= before + ANSWERS
        })
        .await;
    }

    /// Each instance has hits again, and changes of each kind are committed.
    pub(crate) async fn recover(&self) {
        let before = self.load().progress();
        self.until("hits and changes", || {
            let now = self.load().progress();
            now.iter()
                .zip(&before)
                .all(|(now, before)| *now >= before + 3)
        })
        .await;
    }

    /// How many transactions of writers have failed.
    pub(crate) fn given_up(&self) -> u64 {
        self.load().report().gave_up
    }

    /// How many answers were older than they may be.
    pub(crate) fn stale(&self) -> u64 {
        self.load().report().stale
    }

    pub(crate) async fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let began = Instant::now();
        while !done() {
            let load = self.load();
            assert!(
                began.elapsed() < PATIENCE,
                "no {what}: {:?}, {}",
                load.progress(),
                load.report()
            );
            sleep(POLL).await;
        }
    }

    /// As they are when nobody asks anything.
    async fn quiet_vitals(&self, instance: usize) -> Vitals {
        let began = Instant::now();
        let mut last: Vec<Vitals> = Vec::new();
        loop {
            let vitals = vitals_of(self.instances[instance].address).await;
            last.push(vitals.expect("vitals"));
            let counts = |of: &Vitals| (of.tasks, of.files, of.threads);
            let tail = &last[last.len().saturating_sub(3)..];
            if tail.len() == 3 && tail.iter().all(|of| counts(of) == counts(&tail[0])) {
                return tail[0].clone();
            }
            assert!(
                began.elapsed() < PATIENCE,
                "it does not come to rest: {last:?}"
            );
            sleep(POLL).await;
        }
    }

    /// The checks that every case ends with.
    pub(crate) async fn end(mut self) {
        self.recover().await;
        self.rest().await;
        let report = self.load().report();
        let (slowest, what) = self.load().slowest();
        println!("{report}; slowest {:.2} s: {what}", slowest.as_secs_f64());
        assert_eq!((report.stale, report.failed), (0, 0), "{report}");
        assert!(slowest < SLOWEST, "{what} took {slowest:?}");
        for instance in 0..self.instances.len() {
            self.leaves_nothing_behind(instance).await;
        }
        self.connections_are_bounded().await;
        self.instances.clear();
        let run_dir: PathBuf = self.server.run_dir().into();
        drop(self.server);
        assert!(!run_dir.exists(), "{}", run_dir.display());
    }

    async fn leaves_nothing_behind(&self, instance: usize) {
        let before = &self.before[instance];
        let began = Instant::now();
        loop {
            let now = self.quiet_vitals(instance).await;
            let is_well = now.tasks <= before.tasks
                && now.files <= before.files
                && now.threads <= before.threads
                && (now.children, now.panics) == (0, 0)
                && now.connections <= CONNECTIONS as usize
                && now.resident_kilobytes <= before.resident_kilobytes + GROWTH_KILOBYTES;
            if is_well {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "{now:?}, and before {before:?}");
            sleep(POLL).await;
        }
    }

    async fn connections_are_bounded(&self) {
        let admin = self.admin().await;
        let began = Instant::now();
        let most = i64::try_from(self.instances.len()).unwrap() * i64::from(CONNECTIONS);
        loop {
            let counts = "SELECT count(*), count(*) FILTER (WHERE state LIKE 'idle in transaction%')
                            FROM pg_stat_activity WHERE usename = 'app' AND backend_type = 'client backend'";
            let row = admin.query_one(counts, &[]).await.unwrap();
            let (connections, in_transaction): (i64, i64) = (row.get(0), row.get(1));
            if connections <= most && in_transaction == 0 {
                return;
            }
            assert!(
                began.elapsed() < PATIENCE,
                "{connections} connections, {in_transaction} idle in a transaction"
            );
            sleep(POLL).await;
        }
    }
}

/// Whether it was a hit.
async fn brief(client: &HttpClient, path: &str) -> bool {
    let ask = Ask {
        tenant: "",
        path,
        hold: Duration::ZERO,
    };
    client.get(&ask).await.expect("an answer").is_hit
}

pub(crate) fn superuser_of(server: &Server, database: &str) -> Config {
    let mut config = Config::new();
    config
        .host_path(server.run_dir())
        .port(server.port())
        .user("postgres")
        .dbname(database);
    config
}

/// A deadlock of two writers is none of ours, and should not take long.
pub(crate) fn options() -> Options {
    Options::new().config("deadlock_timeout", "50ms")
}

pub(crate) async fn sql(client: &Client, statements: &str) {
    let done = client.batch_execute(statements).await;
    done.unwrap_or_else(|error| panic!("{statements}: {error:?}"));
}
