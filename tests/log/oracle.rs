//! Folding and pruning against an oracle.
//!
//! Many connections change things at random and write each change twice, in one transaction: into the cache's
//! log, which is folded and pruned all the while, and into a shadow log, which forgets nothing. Entries with
//! all sorts of snapshots are judged by both, in one statement: the view `pgcache.entry_state` says what the
//! cache says, `pg_visible_in_snapshot` on the shadow log says what is true.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use test_support::{Database, Server};
use tokio::sync::{Semaphore, watch};
use tokio_postgres::Client;

use crate::create_schema;
use test_support::random::Random;

const WRITERS: usize = 10;
const CHECKS_PER_PHASE: i64 = 20_000;
const ENTRIES: i64 = 250;
/// The comparison gets slower as the shadow log grows, so the writers keep step with it.
const TRANSACTIONS_PER_CHECK: u64 = 40;

const SHADOW: &str = "
    CREATE SCHEMA shadow;
    CREATE TABLE shadow.log (xid xid8 NOT NULL, name text, tenant text, entity text);
    CREATE INDEX ON shadow.log (name, xid);
    CREATE TABLE shadow.dependency (key bytea NOT NULL, name text NOT NULL, tenant text, entity text);
    CREATE INDEX ON shadow.dependency (key);

    CREATE FUNCTION shadow.change(name text, tenant text, entity text) RETURNS void
    BEGIN ATOMIC
        SELECT pgcache.invalidate(name, tenant, entity);
        INSERT INTO shadow.log VALUES (pg_current_xact_id(), name, tenant, entity);
    END;
    CREATE FUNCTION shadow.change_many(names text[], tenants text[], entities text[]) RETURNS void
    BEGIN ATOMIC
        SELECT pgcache.invalidate_scopes(array_fill('d'::text, ARRAY[cardinality(names)]), names, tenants, entities);
        INSERT INTO shadow.log
        SELECT pg_current_xact_id(), s.* FROM unnest(names, tenants, entities) AS s;
    END;
    -- A name of null is everything.
    CREATE FUNCTION shadow.clear() RETURNS void
    BEGIN ATOMIC
        SELECT pgcache.clear();
        INSERT INTO shadow.log VALUES (pg_current_xact_id(), NULL, NULL, NULL);
    END;

    -- By definition: a named part meets itself and any; any meets the summary of all.
    CREATE FUNCTION shadow.tenant_parts(value text) RETURNS bigint[]
    RETURN CASE WHEN value IS NULL THEN ARRAY[pgcache.hash64('t+')]
                ELSE ARRAY[pgcache.tenant_hash(value), pgcache.tenant_hash(NULL)] END;
    CREATE FUNCTION shadow.entity_parts(value text) RETURNS bigint[]
    RETURN CASE WHEN value IS NULL THEN ARRAY[pgcache.hash64('e+')]
                ELSE ARRAY[pgcache.entity_hash('d', value), pgcache.entity_hash('d', NULL)] END;
    CREATE FUNCTION shadow.enter(key bytea, snapshot text, names text[], tenants text[], entities text[]) RETURNS void
    BEGIN ATOMIC
        INSERT INTO pgcache.entry
        SELECT enter.key, p.id, enter.snapshot::pg_snapshot,
               ARRAY(SELECT pgcache.name_hash('d', d.name) # t.part # e.part
                       FROM unnest(names, tenants, entities) AS d (name, tenant, entity)
                      CROSS JOIN unnest(shadow.tenant_parts(d.tenant)) AS t (part)
                      CROSS JOIN unnest(shadow.entity_parts(d.entity)) AS e (part)
                     UNION
                     SELECT pgcache.coarse_key('d', d.name) FROM unnest(names) AS d (name)),
               now(), now() + interval '1 day', now() + interval '1 day', false, NULL, NULL, '', '', NULL, NULL, '{}', '', '', ''
          FROM pgcache.epoch p;
        INSERT INTO shadow.dependency
        SELECT enter.key, d.* FROM unnest(names, tenants, entities) AS d (name, tenant, entity);
    END;";

/// One snapshot for both opinions. `cautious` is the documented exception: of more than 64 transactions that
/// one fold found for a key, some are known by their range only; and what was coarsened counts for all of a domain.
const COMPARE: &str = "
    WITH opinion AS MATERIALIZED (
        SELECT e.snapshot, e.usable, e.unchanged,
               NOT EXISTS (SELECT FROM shadow.log l
                            WHERE l.name IS NULL AND NOT pg_visible_in_snapshot(l.xid, e.snapshot))
               AND NOT EXISTS (SELECT FROM shadow.dependency d JOIN shadow.log l ON l.name = d.name
                                WHERE d.key = e.key
                                  AND (l.tenant = d.tenant OR l.tenant IS NULL OR d.tenant IS NULL)
                                  AND (l.entity = d.entity OR l.entity IS NULL OR d.entity IS NULL)
                                  AND l.xid >= pg_snapshot_xmin(e.snapshot) -- all others are visible
                                  AND NOT pg_visible_in_snapshot(l.xid, e.snapshot)) AS truth,
               EXISTS (SELECT FROM pgcache.changed c CROSS JOIN pg_snapshot_xip(e.snapshot) AS x (xid)
                        WHERE c.key = ANY (e.probes) AND c.since IS NOT NULL
                          AND x.xid >= c.since AND x.xid < c.xids[1])
               OR EXISTS (SELECT FROM shadow.dependency d JOIN pgcache.changed c ON c.key = pgcache.coarse_key('d', d.name)
                           WHERE d.key = e.key AND c.seen IS NOT NULL
                             AND (pg_snapshot_xmax(e.snapshot) < pg_snapshot_xmax(c.seen)
                                  OR EXISTS (SELECT FROM pg_snapshot_xip(e.snapshot) AS x (xid)
                                              WHERE pg_visible_in_snapshot(x.xid, c.seen)))) AS cautious
          FROM pgcache.entry_state e)
    SELECT count(*) AS checks,
           count(*) FILTER (WHERE usable AND unchanged) AS valid,
           count(*) FILTER (WHERE NOT truth) AS changed,
           count(*) FILTER (WHERE NOT usable) AS unusable,
           count(*) FILTER (WHERE usable AND truth AND NOT unchanged AND cautious) AS cautious,
           count(*) FILTER (WHERE usable AND unchanged AND NOT truth) AS stale,
           count(*) FILTER (WHERE usable AND truth AND NOT unchanged AND NOT cautious) AS wasted,
           max(snapshot::text) FILTER (WHERE usable AND unchanged AND NOT truth
                                          OR usable AND truth AND NOT unchanged AND NOT cautious) AS example,
           -- one by one, so that those that need no search are answered without
           (SELECT count(*) FROM (SELECT * FROM pgcache.entry_state WHERE random() < 0.1 OFFSET 0) s
             CROSS JOIN LATERAL pgcache.lookup(ARRAY[s.key], true) l
             WHERE l.valid IS DISTINCT FROM (s.usable AND s.unchanged)) AS otherwise,
           -- what is computed from here on may be stored
           (SELECT pg_snapshot_xmax(now) >= pg_snapshot_xmax(p.horizon)
                   AND NOT EXISTS (SELECT FROM pg_snapshot_xip(now) AS x (xid)
                                    WHERE pg_visible_in_snapshot(x.xid, p.horizon))
              FROM pgcache.epoch p CROSS JOIN pg_current_snapshot() AS now) AS fresh_is_usable,
           (SELECT count(*) FROM pgcache.changed WHERE since IS NOT NULL) AS summaries,
           (SELECT epoch::text || ' now ' || pg_current_snapshot() FROM pgcache.epoch) AS state
      FROM opinion";

/// What the connections share.
struct World {
    database: Database,
    /// How many transactions have ended.
    ended: watch::Sender<u64>,
    /// How many may.
    allowed: watch::Sender<u64>,
    stopped: AtomicBool,
    /// Prune to the bone, and clear.
    harsh: AtomicBool,
    /// Half of the writers may sit and wait.
    idlers: Semaphore,
    prepared: AtomicUsize,
}

impl World {
    fn is_running(&self) -> bool {
        !self.stopped.load(Ordering::Relaxed)
    }

    fn count(&self) {
        self.ended.send_modify(|n| *n += 1);
    }

    /// Waits until so many transactions of others have ended.
    async fn pass(&self, n: usize) {
        let mut ended = self.ended.subscribe();
        let until = *ended.borrow() + n as u64;
        ended
            .wait_for(|&n| n >= until || !self.is_running())
            .await
            .unwrap();
    }

    /// Waits until the checker has caught up.
    async fn may_begin(&self) {
        let mut allowed = self.allowed.subscribe();
        allowed
            .wait_for(|&n| n > *self.ended.borrow() || !self.is_running())
            .await
            .unwrap();
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.ended.send_modify(|_| ());
        self.allowed.send_modify(|_| ());
    }
}

struct Scopes {
    names: Vec<&'static str>,
    tenants: Vec<Option<String>>,
    entities: Vec<Option<String>>,
}

/// What is changed: some all the time, some hardly ever.
fn changes(random: &mut Random, n: usize) -> Scopes {
    scopes(random, n, 2, [60, 90])
}

/// What entries depend on.
fn dependencies(random: &mut Random, n: usize) -> Scopes {
    scopes(random, n, 10, [25, 50])
}

/// `any`: how many percent of the parts are; `shares`: up to how many percent are busy, and not quiet.
fn scopes(random: &mut Random, n: usize, any: u64, shares: [u64; 2]) -> Scopes {
    const QUIET: [&str; 6] = ["q0", "q1", "q2", "q3", "q4", "q5"];
    let name = |random: &mut Random| match random.below(100) {
        n if n < shares[0] => "busy",
        n if n < shares[1] => "some",
        _ => random.pick(&QUIET),
    };
    let part = |random: &mut Random, letter: char, n: usize| {
        (!random.percent(any)).then(|| format!("{letter}{}", random.below(n)))
    };
    Scopes {
        names: (0..n).map(|_| name(random)).collect(),
        tenants: (0..n).map(|_| part(random, 't', 4)).collect(),
        entities: (0..n).map(|_| part(random, 'e', 60)).collect(),
    }
}

async fn write(world: Arc<World>, mut random: Random, name: usize) {
    let sql = world.database.connect().await;
    let one = sql.prepare("SELECT shadow.change($1, $2, $3)");
    let one = one.await.unwrap();
    let many = sql.prepare("SELECT shadow.change_many($1, $2, $3)");
    let many = many.await.unwrap();
    let change = async |random: &mut Random| {
        if random.percent(70) {
            let s = changes(random, 1);
            sql.execute(&one, &[&s.names[0], &s.tenants[0], &s.entities[0]])
                .await
        } else {
            let s = changes(random, 3);
            sql.execute(&many, &[&s.names, &s.tenants, &s.entities])
                .await
        }
        .unwrap()
    };
    let mut number = 0;
    while world.is_running() {
        world.may_begin().await;
        number += 1;
        let level = *random.pick(&["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]);
        run(&sql, &format!("BEGIN ISOLATION LEVEL {level}")).await;
        for _ in 0..=random.below(3) {
            if random.percent(20) {
                run(&sql, "SAVEPOINT s").await;
                change(&mut random).await;
                if random.percent(60) {
                    run(&sql, "ROLLBACK TO s").await;
                }
            }
            if level == "READ COMMITTED" && random.below(300) == 0 {
                run(&sql, "SELECT pgcache.fold()").await;
            }
            change(&mut random).await;
            if random.percent(10) {
                if let Ok(_idle) = world.idlers.try_acquire() {
                    world.pass(1 + random.below(150)).await;
                }
            }
        }
        let idle = random.percent(5).then(|| world.idlers.try_acquire());
        if let Some(Ok(_idle)) = idle {
            let id = format!("w{name}_{number}");
            run(&sql, &format!("PREPARE TRANSACTION '{id}'")).await;
            world.pass(1 + random.below(100)).await;
            let end = random.pick(&["COMMIT", "COMMIT", "ROLLBACK"]);
            run(&sql, &format!("{end} PREPARED '{id}'")).await;
            world.prepared.fetch_add(1, Ordering::Relaxed);
        } else {
            run(
                &sql,
                if random.percent(85) {
                    "COMMIT"
                } else {
                    "ROLLBACK"
                },
            )
            .await;
        }
        world.count();
    }
}

async fn run(sql: &Client, statement: &str) {
    if let Err(error) = sql.batch_execute(statement).await {
        panic!("{statement}: {error:?}");
    }
}

/// Mostly folds; sometimes so late that one fold finds hundreds of transactions.
async fn keep_house(world: Arc<World>, mut random: Random) {
    let sql = world.database.connect().await;
    while world.is_running() {
        let pause = if random.percent(15) { 500 } else { 60 };
        world.pass(1 + random.below(pause)).await;
        match random.below(10) {
            0 if world.harsh.load(Ordering::Relaxed) => {
                let rows = 1 + random.below(400);
                run(&sql, &format!("SELECT pgcache.prune({rows})")).await;
            }
            0..4 => run(&sql, "SELECT pgcache.prune()").await,
            _ => run(&sql, "SELECT pgcache.fold()").await,
        }
    }
}

/// Competes with the other one; clears.
async fn clear_and_prune(world: Arc<World>, mut random: Random) {
    let sql = world.database.connect().await;
    while world.is_running() {
        world.pass(200 + random.below(400)).await;
        if !world.harsh.load(Ordering::Relaxed) {
            run(&sql, "SELECT pgcache.prune()").await;
            continue;
        }
        run(&sql, "BEGIN").await;
        let mut steps = [
            "SELECT shadow.clear()",
            "SELECT pgcache.prune(100)",
            "SELECT shadow.change('q0', NULL, 'e1')",
        ];
        let at = random.below(3);
        steps.swap(0, at);
        for step in &steps[..=random.below(3)] {
            run(&sql, step).await;
            if random.percent(30) {
                world.pass(random.below(100)).await;
            }
        }
        run(
            &sql,
            if random.percent(60) {
                "COMMIT"
            } else {
                "ROLLBACK"
            },
        )
        .await;
    }
}

/// Snapshots in the forms in which they occur: as they are, capped, and as a replica gives them.
fn derived(snapshot: &str, random: &mut Random) -> String {
    let parts: Vec<&str> = snapshot.split(':').collect();
    let [xmin, _, running] = parts[..] else {
        panic!("{snapshot:?} is not a snapshot")
    };
    let running: Vec<&str> = running.split(',').collect();
    match random.below(8) {
        0 => format!("{xmin}:{xmin}:"),
        1 | 2 => {
            let keep = random.below(running.len());
            // keep the oldest, and see nothing from the next one on
            format!("{xmin}:{}:{}", running[keep], running[..keep].join(","))
        }
        _ => snapshot.to_owned(),
    }
}

#[derive(Debug, Default)]
struct Tally {
    checks: i64,
    valid: i64,
    changed: i64,
    unusable: i64,
    cautious: i64,
    summaries: i64,
    /// Reads of the feed that needed no search.
    unchanged: i64,
    /// What a kept lookup called valid.
    kept_valid: i64,
    /// And one that does not search.
    unsearched_valid: i64,
}

struct Checker {
    sql: Client,
    random: Random,
    snapshots: Vec<String>,
    entries: u64,
}

impl Checker {
    /// Makes some entries, forgets others, and compares.
    async fn round(&mut self, tally: &mut Tally) {
        let row = self
            .sql
            .query_one("SELECT pg_current_snapshot()::text", &[]);
        let latest: String = row.await.unwrap().get(0);
        if self.snapshots.len() < 40 {
            self.snapshots.push(latest.clone());
        } else {
            let at = self.random.below(40);
            self.snapshots[at].clone_from(&latest);
        }
        for _ in 0..8 {
            let base = if self.random.percent(60) {
                &latest
            } else {
                self.random.pick(&self.snapshots)
            };
            let snapshot = match base.ends_with(':') {
                true => base.clone(),
                false => derived(base, &mut self.random),
            };
            let n = 1 + self.random.below(3);
            let s = dependencies(&mut self.random, n);
            self.entries += 1;
            self.sql
                .execute(
                    "SELECT shadow.enter(int8send($1), $2, $3, $4, $5)",
                    &[
                        &(self.entries as i64),
                        &snapshot,
                        &s.names,
                        &s.tenants,
                        &s.entities,
                    ],
                )
                .await
                .unwrap();
        }
        self.sql
            .execute(
                "WITH gone AS (DELETE FROM pgcache.entry
                                WHERE key IN (SELECT key FROM pgcache.entry ORDER BY random() OFFSET $1)
                            RETURNING key)
                 DELETE FROM shadow.dependency WHERE key IN (SELECT key FROM gone)",
                &[&ENTRIES],
            )
            .await
            .unwrap();
        self.compare(tally).await;
        self.compare_feeds(tally).await;
        self.compare_lookups(tally).await;
    }

    /// What the statements say about entries that a session keeps, beside what the view says: the same with a search for
    /// changes, and without one of none that it is valid which is not.
    async fn compare_lookups(&mut self, tally: &mut Tally) {
        let complete = |script: &str| {
            let all_seen = include_str!("../../src/store/sql/all_seen.sql");
            let usable = include_str!("../../src/store/sql/usable.sql");
            let unchanged = include_str!("../../src/store/sql/unchanged.sql");
            script
                .replace("/*all_seen*/", all_seen)
                .replace("/*usable*/", usable)
                .replace("/*unchanged*/", unchanged)
                .replace("p.id = '/*epoch*/'", "true")
                .replace("AND pgcache.is_planned_well()", "")
                .replace("$1", "ARRAY[s.key]")
                .replace("$2", "true")
        };
        let kept = complete(include_str!("../../src/store/sql/lookup_kept.sql"));
        let unsearched = complete(include_str!("../../src/store/sql/lookup_unsearched.sql"));
        let compare = format!(
            "SELECT count(*) FILTER (WHERE kept.key IS DISTINCT FROM s.key OR kept.valid IS DISTINCT FROM (s.usable AND s.unchanged)),
                    count(*) FILTER (WHERE unsearched.key IS DISTINCT FROM s.key OR unsearched.valid IS NULL
                                           OR unsearched.valid AND NOT (s.usable AND s.unchanged)),
                    count(*) FILTER (WHERE kept.valid), count(*) FILTER (WHERE unsearched.valid)
               FROM (SELECT * FROM pgcache.entry_state WHERE random() < 0.2 OFFSET 0) s
              CROSS JOIN LATERAL ({kept}) AS kept (origin, key, valid)
              CROSS JOIN LATERAL ({unsearched}) AS unsearched (origin, key, valid)"
        );
        // and for a moment with snapshots around the last change, folded or not: with so many who write, none sees all of them
        const AROUND: &str = "
            UPDATE pgcache.entry e
               SET snapshot = format('%1$s:%1$s:', floor(random() * 8)::bigint - 2
                                     + (SELECT coalesce(greatest(max(i.xid::text::bigint), max(p.last_folded::text::bigint)), 5)
                                          FROM pgcache.epoch p LEFT JOIN pgcache.invalidation i ON true))::pg_snapshot";
        for before in ["", AROUND, &format!("SELECT pgcache.fold(); {AROUND}")] {
            let begin = format!("BEGIN; {before}");
            self.sql.batch_execute(&begin).await.unwrap();
            let row = self.sql.query_one(&compare, &[]).await.unwrap();
            self.sql.batch_execute("ROLLBACK").await.unwrap();
            let otherwise: (i64, i64) = (row.get(0), row.get(1));
            assert_eq!(otherwise, (0, 0), "the kept lookups say otherwise");
            tally.kept_valid += row.get::<_, i64>(2);
            tally.unsearched_valid += row.get::<_, i64>(3);
        }
    }

    /// What is said about the feed without a search, and what the search says.
    async fn compare_feeds(&mut self, tally: &mut Tally) {
        let kept = include_str!("../../src/store/sql/feed_kept.sql");
        let kept = kept
            .replace("'/*epoch*/'", "(SELECT id FROM pgcache.epoch)")
            .replace("AND pgcache.is_planned_well()", "")
            .replace("$1", "past.snapshot::pg_snapshot")
            .replace("$2", "40000");
        let compare = format!(
            "SELECT count(*) FILTER (WHERE kept.changes IS DISTINCT FROM searched.fields[5]), count(*) FILTER (WHERE kept.changes = '')
               FROM unnest($1::text[]) AS past (snapshot)
              CROSS JOIN LATERAL ({kept}) AS kept (snapshot, read_committed, changes)
              CROSS JOIN LATERAL pgcache.feed(past.snapshot::pg_snapshot, 40000) AS searched (fields)"
        );
        let mut pasts: Vec<_> = self
            .snapshots
            .iter()
            .map(|snapshot| match snapshot.ends_with(':') {
                true => snapshot.clone(),
                false => derived(snapshot, &mut self.random),
            })
            .collect();
        // around the last change: with so many who write, no snapshot sees all of them
        let row = self.sql.query_one(
            "SELECT coalesce(max(xid::text::bigint), 3) FROM pgcache.invalidation",
            &[],
        );
        let last: i64 = row.await.unwrap().get(0);
        pasts.extend((last - 2..last + 6).map(|xid| format!("{xid}:{xid}:")));
        let row = self.sql.query_one(&compare, &[&pasts]).await.unwrap();
        assert_eq!(row.get::<_, i64>(0), 0, "of {pasts:?}");
        tally.unchanged += row.get::<_, i64>(1);
    }

    async fn compare(&self, tally: &mut Tally) {
        let row = self.sql.query_one(COMPARE, &[]).await.unwrap();
        let number = |column| row.get::<_, i64>(column);
        let context = || {
            format!(
                "{:?} in {}",
                row.get::<_, Option<String>>("example"),
                row.get::<_, String>("state")
            )
        };
        assert_eq!(
            number("stale"),
            0,
            "valid for the cache, and changed: {}",
            context()
        );
        assert_eq!(
            number("wasted"),
            0,
            "changed for the cache, and not in truth: {}",
            context()
        );
        assert_eq!(
            number("otherwise"),
            0,
            "a lookup says otherwise: {}",
            context()
        );
        assert!(
            row.get::<_, bool>("fresh_is_usable"),
            "a new snapshot is not usable: {}",
            context()
        );
        tally.checks += number("checks");
        tally.valid += number("valid");
        tally.changed += number("changed");
        tally.unusable += number("unusable");
        tally.cautious += number("cautious");
        tally.summaries += number("summaries");
    }

    async fn phase(&mut self, world: &World) -> Tally {
        let mut tally = Tally::default();
        // how often the horizon moves is a matter of chance: a harsh phase goes on until it has judged that too
        let due = |tally: &Tally| {
            let is_seen = !world.harsh.load(Ordering::Relaxed) || tally.unusable > 0;
            tally.checks >= CHECKS_PER_PHASE && (is_seen || tally.checks >= 10 * CHECKS_PER_PHASE)
        };
        while !due(&tally) {
            world.allowed.send_modify(|n| *n += TRANSACTIONS_PER_CHECK);
            self.round(&mut tally).await;
        }
        tally
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_folded_and_pruned_is_judged_as_if_nothing_had_been() {
    let mut random = Random::of_this_run("PGCACHE_TEST_SEED");
    // of its own: who else takes transaction ids would dilute the races
    let server = tokio::task::spawn_blocking(Server::start);
    let server = server.await.unwrap().unwrap();
    let database = server.database().await;
    create_schema(&database).await;
    let sql = database.connect().await;
    sql.batch_execute(SHADOW).await.unwrap();
    sql.batch_execute("SET enable_seqscan = off; SET jit = off")
        .await
        .unwrap();

    let world = Arc::new(World {
        database,
        ended: watch::channel(0).0,
        allowed: watch::channel(0).0,
        stopped: AtomicBool::new(false),
        harsh: AtomicBool::new(false),
        idlers: Semaphore::new(WRITERS / 2),
        prepared: AtomicUsize::new(0),
    });
    let mut tasks: Vec<_> = (0..WRITERS)
        .map(|i| tokio::spawn(write(world.clone(), random.fork(), i)))
        .collect();
    tasks.push(tokio::spawn(keep_house(world.clone(), random.fork())));
    tasks.push(tokio::spawn(clear_and_prune(world.clone(), random.fork())));

    let mut checker = Checker {
        sql,
        random: random.fork(),
        snapshots: Vec::new(),
        entries: 0,
    };
    let gentle = checker.phase(&world).await;
    world.harsh.store(true, Ordering::Relaxed);
    let harsh = checker.phase(&world).await;
    world.stop();
    for task in tasks {
        task.await.unwrap();
    }
    // and once more when everything has come to rest
    run(&checker.sql, "SELECT pgcache.fold()").await;
    checker.compare(&mut Tally::default()).await;
    checker.compare_lookups(&mut Tally::default()).await;

    let ended = *world.ended.borrow();
    let prepared = world.prepared.load(Ordering::Relaxed);
    println!(
        "{ended} transactions, {prepared} of them prepared; gentle {gentle:?}; harsh {harsh:?}"
    );
    assert_eq!(
        gentle.unusable, 0,
        "the bound of prune was not reached, and nobody cleared"
    );
    // the test has to be about something
    assert!(harsh.unusable > 0 && prepared > 0);
    for tally in [&gentle, &harsh] {
        assert!(
            tally.valid > 100
                && tally.changed > 100
                && tally.unchanged > 100
                && tally.kept_valid > 20
                && tally.unsearched_valid > 20,
            "{tally:?}"
        );
    }
    assert!(
        gentle.summaries + harsh.summaries > 0,
        "no fold found more than 64 transactions for a key"
    );
}
