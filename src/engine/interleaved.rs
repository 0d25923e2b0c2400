//! Flight, feed and memory under randomised interleavings, without a database.
//!
//! `RUSTFLAGS="--cfg shuttle" cargo test --lib interleaved` runs the [`Engine`] on shuttle's tasks, locks and atomics
//! (see [`sync`]), against a [model of the database](crate::store::model). Requests take the way of `Caching::read`.
//! Each execution is one schedule, at each step of which any task may go on; and in each
//!
//! 1. no answer is older than what was committed before its request arrived (or `max_staleness` before that);
//! 2. nobody waits for ever: shuttle reports a deadlock, since time stands still unless a test lets it pass.
//!
//! A failure prints its schedule and its seed. With `SHUTTLE_RANDOM_SEED` the same executions come again: with the `failing
//! seed` the one that failed at random comes first, with the seed of the run (PCT) in its turn. `INTERLEAVED=n` tries n times
//! as many. All atomic operations are sequentially consistent here: what a weaker order allows is not found.

#![allow(clippy::expect_used)]

use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use http::{HeaderMap, HeaderName, StatusCode};
use shuttle::future::block_on;
use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, Runner};
use tokio::sync::Barrier;

use super::{
    Asked, Engine, Entry, Fill, Label, Question, Recalled, Reservation, Settings, Shared,
    StoredHead,
};
use crate::domain::{Domain, Scope};
use crate::http::storable::Freshness;
use crate::key::Key;
use crate::policy::GeneratedEtag;
use crate::store::model::Model;
use crate::store::{Bounds, Database};
use crate::sync::{self, spawn, yield_now};

const ITEM: Domain = Domain::from_static("item");
const HOUR: Duration = Duration::from_secs(3600);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// What is asked for: answers that depend on one item, or on two.
#[derive(Clone, Copy)]
enum Page {
    One,
    Both,
}

impl Page {
    fn any() -> Self {
        if thread_rng().gen_bool(0.5) {
            Self::One
        } else {
            Self::Both
        }
    }

    fn key(self) -> Key {
        Key::from_bytes(&[self as u8; 32]).expect("32 bytes")
    }

    fn items(self) -> &'static [usize] {
        match self {
            Self::One => &[0],
            Self::Both => &[0, 1],
        }
    }
}

fn scopes(items: &[usize]) -> Vec<Scope> {
    let scopes = items.iter().map(|item| ITEM.entity(item).all_tenants());
    scopes.collect()
}

/// How a handler ends.
#[derive(Clone, Copy, PartialEq)]
enum Handler {
    Answers,
    AnswersForOne,
    Panics,
}

/// Who gave the answer.
#[derive(Clone, Copy, Debug)]
enum By {
    MemoryAtOnce,
    Memory,
    Store,
    Other,
    Handler,
    /// The cache could not be asked.
    HandlerAlone,
}

/// How many answers were given by whom, in all executions.
#[derive(Debug, Default)]
struct Tally([AtomicUsize; 6]);

impl Tally {
    fn count(&self, by: By) {
        self.0[by as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A test in which something never happens says nothing about it.
    fn assert_all(&self, expected: &[By]) {
        for by in expected {
            let count = self.0[*by as usize].load(Ordering::Relaxed);
            assert!(count > 0, "never answered by {by:?}: {self:?}");
        }
    }
}

/// One execution: a database, some instances, and requests.
#[derive(Clone)]
struct World {
    model: Arc<Model>,
    instances: Vec<Arc<Engine>>,
    max_staleness: Duration,
    tally: Arc<Tally>,
}

impl World {
    fn new(instances: usize, tally: &Arc<Tally>) -> Self {
        Self::with(Model::new(2, 100), instances, &settings(), tally)
    }

    fn with(model: Arc<Model>, count: usize, settings: &Settings, tally: &Arc<Tally>) -> Self {
        let engine = || Engine::new(Database::of(&model), settings.clone());
        Self {
            instances: std::iter::repeat_with(engine).take(count).collect(),
            model,
            max_staleness: Duration::ZERO,
            tally: tally.clone(),
        }
    }

    /// As `Caching::at_once` and `Caching::read`; a handler that panics takes the request along.
    async fn request(&self, page: Page, handler: Handler) {
        let instance = thread_rng().gen_range(0..self.instances.len());
        self.request_to(&self.instances[instance], page, handler)
            .await;
    }

    async fn request_to(&self, engine: &Arc<Engine>, page: Page, handler: Handler) {
        let promised = |item: &usize| self.model.promised(*item, self.max_staleness);
        let promised: Vec<u64> = page.items().iter().map(promised).collect();
        let answering = self.answer(engine, page, handler);
        if let Ok((by, versions)) = AssertUnwindSafe(answering).catch_unwind().await {
            let is_good = versions.iter().zip(&promised).all(|(got, due)| got >= due);
            assert!(
                is_good,
                "{versions:?} by {by:?} after {promised:?} was promised"
            );
            self.tally.count(by);
        }
    }

    async fn answer(&self, engine: &Arc<Engine>, page: Page, handler: Handler) -> (By, Vec<u64>) {
        let key = page.key();
        let variant = |_: &[HeaderName]| key;
        let is_of_use =
            |entry: &Entry| entry.condition.valid && !entry.condition.fresh_for.is_zero();
        let staleness = self.max_staleness;
        if !staleness.is_zero() {
            if let Some(entry) = engine.recall_at_once(key, &variant, staleness, is_of_use) {
                return (By::MemoryAtOnce, versions(&entry));
            }
        }
        match engine.recall(key, &variant, staleness, is_of_use).await {
            Recalled::Entry(entry) => return (By::Memory, versions(&entry)),
            Recalled::Nothing => {}
            Recalled::Unusable(_) => return (By::HandlerAlone, self.call(page, handler).await),
        }
        let question = Question {
            key,
            variant: &variant,
            part: None,
            invalid_too: false,
        };
        let Asked::Known(fill) = engine.ask(question).await else {
            return (By::HandlerAlone, self.call(page, handler).await);
        };
        if let Some(entry) = fill.stored().filter(|entry| is_of_use(entry)) {
            return (By::Store, versions(&entry));
        }
        match engine.share(*fill, &question, &is_of_use).await {
            Shared::Entry(entry) => (By::Other, versions(&entry)),
            Shared::Fill(fill) => (By::Handler, self.fill(fill, page, handler).await),
            Shared::Unusable(_) => (By::HandlerAlone, self.call(page, handler).await),
        }
    }

    async fn fill(&self, mut fill: Fill, page: Page, handler: Handler) -> Vec<u64> {
        let versions = self.call(page, handler).await;
        fill.has_answer();
        if handler == Handler::Answers {
            let storing = fill.begin(label(page), freshness(), head());
            // the body is on its way
            self.model.step().await;
            let body: Vec<String> = versions.iter().map(u64::to_string).collect();
            let room = Arc::new(Reservation::new(storing.budget()));
            storing.finish(body.join(",").into(), room);
        }
        versions
    }

    /// Reads one item after the other.
    async fn call(&self, page: Page, handler: Handler) -> Vec<u64> {
        let mut versions = Vec::new();
        for item in page.items() {
            self.model.step().await;
            versions.push(self.model.version(*item));
        }
        // others have the time to change what was read, to come, and to wait
        self.model.pause().await;
        self.model.pause().await;
        if handler == Handler::Panics {
            // without the hook, which would report the schedule
            resume_unwind(Box::new(()));
        }
        versions
    }

    /// Requests, one after the other.
    async fn visit(self, requests: usize) {
        for _ in 0..requests {
            self.model.pause().await;
            self.request(Page::any(), Handler::Answers).await;
        }
    }

    /// A transaction that changes something and says so.
    async fn write(self) {
        self.model.pause().await;
        let xid = self.model.begin();
        self.model.pause().await;
        let items: &[usize] = match thread_rng().gen_range(0..3) {
            0 => &[0],
            1 => &[1],
            _ => &[0, 1],
        };
        self.model.commit(xid, items, &scopes(items));
    }

    /// A request that changes something, on one of the instances.
    async fn change(self) {
        self.model.pause().await;
        let instance = thread_rng().gen_range(0..self.instances.len());
        let version = self.model.change(0);
        self.model.step().await;
        let invalidated = self.instances[instance].invalidate(scopes(&[0])).await;
        if invalidated.is_ok() {
            self.model.promise(0, version);
        }
    }

    /// When nothing is left to write, nothing may be left of what was wrong meanwhile.
    async fn end(mut self) {
        self.max_staleness = Duration::ZERO;
        for engine in &self.instances {
            engine.settled().await;
            for page in [Page::One, Page::Both] {
                self.request_to(engine, page, Handler::Answers).await;
            }
        }
    }
}

fn versions(entry: &Entry) -> Vec<u64> {
    let body = std::str::from_utf8(&entry.body).expect("text");
    let versions = body.split(',').map(|v| v.parse().expect("a version"));
    versions.collect()
}

fn label(page: Page) -> Label {
    Label {
        scopes: scopes(page.items()),
        probes: Vec::new(),
        authority: "a".to_owned(),
        path: "/".to_owned(),
        route: None,
        tenant: None,
        variant: None,
        part: None,
    }
}

fn freshness() -> Freshness {
    Freshness {
        remaining: HOUR,
        overdue: Duration::ZERO,
        age: Duration::ZERO,
        keep: HOUR,
        revalidatable: false,
    }
}

fn head() -> StoredHead {
    StoredHead {
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        etag: GeneratedEtag::Off,
    }
}

fn settings() -> Settings {
    Settings {
        has_database: true,
        drops_schema: false,
        lookup_deadline: HOUR,
        store_deadline: HOUR,
        change_deadline: HOUR,
        cleanup_interval: Duration::ZERO,
        auto_migrate: true,
        durable: false,
        owner: None,
        partitions: None,
        max_log_rows: 1000,
        queue_entries: 100,
        queue_bytes: 1 << 20,
        fill_bytes: 1 << 20,
        compress_from: None,
        lease_wait: Duration::from_secs(5),
        lease_life: Duration::from_secs(10),
        doorbell: None,
        memory_bytes: 1 << 16,
        bounds: Bounds {
            entries: 1000,
            bytes: 1 << 20,
        },
    }
}

async fn all(tasks: impl IntoIterator<Item = sync::JoinHandle<()>>) {
    for ended in join_all(tasks).await {
        ended.expect("a task that nobody has aborted");
    }
}

/// Says which execution it was that failed.
struct Executions {
    begun: Arc<AtomicUsize>,
    scheduler: &'static str,
    seed: u64,
}

impl Drop for Executions {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let begun = self.begun.load(Ordering::Relaxed);
            let (seed, scheduler) = (self.seed, self.scheduler);
            eprintln!("execution {begun} ({scheduler}) of SHUTTLE_RANDOM_SEED={seed}");
        }
    }
}

/// Runs a scenario under so many schedules: half of them at random, half with few switches that matter (PCT).
fn explore<F>(executions: usize, scenario: impl Fn() -> F + Send + Sync + 'static)
where
    F: Future<Output = ()> + 'static,
{
    let times = std::env::var("INTERLEAVED").map_or(1, |n| n.parse().expect("a number"));
    let executions = executions * times / 2;
    let scenario = Arc::new(scenario);
    let seed = std::env::var("SHUTTLE_RANDOM_SEED").map_or_else(
        |_| RandomState::new().hash_one(0),
        |seed| seed.parse().expect("a seed"),
    );
    let random = RandomScheduler::new_from_seed(seed, executions);
    run("at random", seed, random, scenario.clone());
    let pct = PctScheduler::new_from_seed(seed, 4, executions);
    run("PCT", seed, pct, scenario);
}

fn run<F>(
    name: &'static str,
    seed: u64,
    scheduler: impl Scheduler + 'static,
    scenario: Arc<impl Fn() -> F + Send + Sync + 'static>,
) where
    F: Future<Output = ()> + 'static,
{
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    config.silence_warnings = true;
    let begun = Arc::new(AtomicUsize::new(0));
    let _executions = Executions {
        begun: begun.clone(),
        scheduler: name,
        seed,
    };
    Runner::new(scheduler, config).run(move || {
        begun.fetch_add(1, Ordering::Relaxed);
        sync::reset_clock();
        block_on(scenario());
    });
}

#[test]
fn no_answer_is_older_than_what_was_committed_before_its_request() {
    let tally = Arc::new(Tally::default());
    let counted = tally.clone();
    explore(2000, move || {
        let world = World::new(1, &counted);
        async move {
            // both are in memory
            world.request(Page::One, Handler::Answers).await;
            world.request(Page::Both, Handler::Answers).await;
            let visitors = (0..3).map(|_| spawn(world.clone().visit(3)));
            let writers = (0..2).map(|_| spawn(world.clone().write()));
            all(visitors.chain(writers)).await;
            world.end().await;
        }
    });
    tally.assert_all(&[By::Memory, By::Store, By::Other, By::Handler]);
}

#[test]
fn a_hit_while_changes_are_applied_does_not_outlast_them() {
    let tally = Arc::new(Tally::default());
    let counted = tally.clone();
    explore(2000, move || {
        let mut world = World::new(1, &counted);
        world.max_staleness = HOUR;
        async move {
            world.request(Page::One, Handler::Answers).await;
            // what is read for one is applied while the others hit
            let strict = World {
                max_staleness: Duration::ZERO,
                ..world.clone()
            };
            let visitors = [strict, world.clone(), world.clone()].map(|world| {
                spawn(async move {
                    for _ in 0..4 {
                        yield_now().await;
                        world.request(Page::One, Handler::Answers).await;
                    }
                })
            });
            let writers = (0..2).map(|_| spawn(world.clone().write()));
            all(visitors.into_iter().chain(writers)).await;
            world.end().await;
        }
    });
    tally.assert_all(&[By::MemoryAtOnce, By::Memory]);
}

#[test]
fn with_a_bounded_staleness_an_answer_is_no_older_than_that() {
    let tally = Arc::new(Tally::default());
    let counted = tally.clone();
    explore(2000, move || {
        let mut world = World::new(1, &counted);
        world.max_staleness = ms(20);
        async move {
            world.request(Page::One, Handler::Answers).await;
            world.request(Page::Both, Handler::Answers).await;
            let visitors = (0..3).map(|_| spawn(world.clone().visit(3)));
            let writers = (0..2).map(|_| spawn(world.clone().write()));
            let clock = spawn(async {
                for _ in 0..12 {
                    yield_now().await;
                    sync::pass(ms(thread_rng().gen_range(1..=12)));
                }
            });
            all(visitors.chain(writers).chain([clock])).await;
            world.end().await;
        }
    });
    tally.assert_all(&[By::MemoryAtOnce, By::Memory, By::Store, By::Handler]);
}

#[test]
fn instances_share_fills_and_hear_of_changes() {
    let tally = Arc::new(Tally::default());
    let counted = tally.clone();
    explore(2000, move || {
        let world = World::new(2, &counted);
        async move {
            let visitors = (0..4).map(|_| spawn(world.clone().visit(3)));
            let writer = spawn(world.clone().write());
            let changer = spawn(world.clone().change());
            all(visitors.chain([writer, changer])).await;
            world.end().await;
        }
    });
    tally.assert_all(&[By::Memory, By::Store, By::Other, By::Handler]);
}

#[test]
fn a_gap_a_crash_or_another_epoch_makes_nobody_trust_what_it_holds() {
    let tally = Arc::new(Tally::default());
    let counted = tally.clone();
    explore(2000, move || {
        // two transactions at once are too many
        let world = World::with(Model::new(2, 1), 2, &settings(), &counted);
        async move {
            world.request(Page::One, Handler::Answers).await;
            world.request(Page::Both, Handler::Answers).await;
            let visitors = (0..3).map(|_| spawn(world.clone().visit(3)));
            let writers = (0..3).map(|_| spawn(world.clone().write()));
            let here = world.clone();
            let trouble = spawn(async move {
                here.model.pause().await;
                match thread_rng().gen_range(0..4) {
                    0 => here.model.crash(),
                    1 => here.model.crash_of_a_durable_one(),
                    2 => here.model.prune(),
                    _ => drop(here.instances[0].clear().await),
                }
            });
            all(visitors.chain(writers).chain([trouble])).await;
            world.end().await;
        }
    });
    tally.assert_all(&[By::Memory, By::Store, By::Handler, By::HandlerAlone]);
}

/// After it ids of transactions are given out again: what an old snapshot seems to see may be something else.
#[test]
fn a_fill_from_before_a_crash_is_not_for_those_who_come_after_it() {
    let tally = Arc::new(Tally::default());
    let counted = tally.clone();
    explore(2000, move || {
        let nothing_is_kept = Settings {
            queue_entries: 0,
            memory_bytes: 0,
            ..settings()
        };
        let world = World::with(Model::new(2, 100), 1, &nothing_is_kept, &counted);
        async move {
            // claims, whose ids the crash forgets
            for _ in 0..4 {
                world.request(Page::Both, Handler::AnswersForOne).await;
            }
            let visitors = (0..4).map(|_| spawn(world.clone().visit(2)));
            let here = world.clone();
            let crash = spawn(async move {
                here.model.pause().await;
                here.model.crash_of_a_durable_one();
                here.write().await;
            });
            all(visitors.chain([crash])).await;
            world.end().await;
        }
    });
    tally.assert_all(&[By::Other, By::Handler]);
}

#[test]
fn whoever_leaves_panics_or_gets_no_answer_holds_nobody_up() {
    let tally = Arc::new(Tally::default());
    let counted = tally.clone();
    explore(2000, move || {
        let world = World::new(1, &counted);
        async move {
            let visitor = |world: World| async move {
                for _ in 0..2 {
                    let handler = match thread_rng().gen_range(0..4) {
                        0 => Handler::AnswersForOne,
                        1 => Handler::Panics,
                        _ => Handler::Answers,
                    };
                    world.request(Page::any(), handler).await;
                }
            };
            let stays: Vec<_> = (0..3).map(|_| spawn(visitor(world.clone()))).collect();
            let leaves: Vec<_> = (0..2).map(|_| spawn(visitor(world.clone()))).collect();
            let writer = spawn(world.clone().write());
            let here = world.clone();
            let leaving = spawn(async move {
                here.model.lose(2);
                for request in leaves {
                    here.model.step().await;
                    request.abort();
                }
            });
            all(stays.into_iter().chain([writer, leaving])).await;
            world.end().await;
        }
    });
    tally.assert_all(&[By::Memory, By::Other, By::Handler, By::HandlerAlone]);
}

#[test]
fn whoever_waits_gets_the_answer_itself_if_it_was_good_at_its_own_arrival() {
    let tally = Arc::new(Tally::default());
    let counted = tally.clone();
    explore(2000, move || {
        // nothing is kept: an answer is had from its flight, or from the handler
        let nowhere = Settings {
            queue_entries: 0,
            memory_bytes: 0,
            ..settings()
        };
        let world = World::with(Model::new(2, 100), 1, &nowhere, &counted);
        async move {
            let visitors = (0..4).map(|_| {
                let world = world.clone();
                spawn(async move {
                    world.model.pause().await;
                    world.request(Page::One, Handler::Answers).await;
                })
            });
            let writers = (0..2).map(|_| spawn(world.clone().write()));
            all(visitors.chain(writers)).await;
            world.end().await;
        }
    });
    tally.assert_all(&[By::Other, By::Handler]);
}

#[test]
fn whoever_waited_for_what_is_not_for_others_goes_on_beside_the_rest() {
    explore(500, || {
        let world = World::new(1, &Arc::default());
        async move {
            let (has_pilot, together) = (Arc::new(AtomicBool::new(false)), Barrier::new(2));
            let (all_asked, together) = (Arc::new(Barrier::new(3)), Arc::new(together));
            let request = || {
                let (has_pilot, together) = (has_pilot.clone(), together.clone());
                let (world, all_asked) = (world.clone(), all_asked.clone());
                spawn(async move {
                    let engine = &world.instances[0];
                    let key = Page::One.key();
                    let question = Question {
                        key,
                        variant: &|_| key,
                        part: None,
                        invalid_too: false,
                    };
                    let Asked::Known(fill) = engine.ask(question).await else {
                        panic!("the database answers");
                    };
                    all_asked.wait().await;
                    let Shared::Fill(mut fill) = engine.share(*fill, &question, &|_| true).await
                    else {
                        panic!("nothing is stored");
                    };
                    // the others' handlers end only if they run at the same time
                    if has_pilot.swap(true, Ordering::Relaxed) {
                        together.wait().await;
                    }
                    fill.has_answer();
                })
            };
            all([request(), request(), request()]).await;
        }
    });
}
