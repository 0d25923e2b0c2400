//! A thousand bad configurations: every wrong setting in every place, and combinations of them. Each gives a
//! `ConfigError` that lists every mistake at once, with its place and its mend; none panics.
//!
//! `CONFIG_SEED` repeats a run.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use test_support::http::get as fetch;
use test_support::random::Random;
use tower_pgcache::bb8::Pool;
use tower_pgcache::bb8_postgres::PostgresConnectionManager;
use tower_pgcache::tokio_postgres::{Config, NoTls};
use tower_pgcache::{
    ConfigError, Domain, PgCache, PgCacheBuilder, PgCacheLayer, Principal, Route, Tenant, domain,
};
use tracing_subscriber::fmt::MakeWriter;

const ITEM: Domain = domain!("item");
const MINUTE: Duration = Duration::from_secs(60);
const ZERO: Duration = Duration::ZERO;

#[derive(Clone)]
struct Claims(String);

/// Of a database that nobody asks.
fn pool() -> Pool<PostgresConnectionManager<NoTls>> {
    Pool::builder().build_unchecked(PostgresConnectionManager::new(Config::new(), NoTls))
}

/// A wrong setting of a route, and what its line says: the setter, and a word of the mend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Wrong {
    Ttl,
    NegativeTtl,
    UntilInvalidated,
    Dependencies,
    ByTenant,
    PerPrincipal,
    CredentialHeaders,
    KeyHeader,
    IgnoreCookies,
    SessionCookies,
    IgnoreQuery,
    OnlyQuery,
    EmptyCookie,
    EmptyQuery,
    StoreDown,
    StoreDownForEver,
}

use Wrong::*;

const WRONG: [Wrong; 16] = [
    Ttl,
    NegativeTtl,
    UntilInvalidated,
    Dependencies,
    ByTenant,
    PerPrincipal,
    CredentialHeaders,
    KeyHeader,
    IgnoreCookies,
    SessionCookies,
    IgnoreQuery,
    OnlyQuery,
    EmptyCookie,
    EmptyQuery,
    StoreDown,
    StoreDownForEver,
];

impl Wrong {
    fn says(self) -> [&'static str; 2] {
        match self {
            Ttl => ["ttl(0)", "use bypass()"],
            NegativeTtl => ["negative_ttl(0)", "leave it out"],
            UntilInvalidated => ["until_invalidated()", "add domain("],
            Dependencies => ["domain(…)", "64"],
            ByTenant => ["shared_by_tenant()", "Tenant::extension"],
            PerPrincipal => ["per_principal()", "add principal("],
            CredentialHeaders => ["credential_headers(\"a b\")", "use"],
            KeyHeader => ["key_header(\"\")", "use"],
            IgnoreCookies => ["ignore_cookies([])", "leave it out"],
            SessionCookies => ["session_cookies([])", "leave it out"],
            IgnoreQuery => ["ignore_query([])", "leave it out"],
            OnlyQuery => ["only_query([])", "leave it out"],
            EmptyCookie => ["ignore_cookies", "name something"],
            EmptyQuery => ["only_query", "name something"],
            StoreDown => ["stale_if_store_down(0)", "leave it out"],
            StoreDownForEver => ["stale_if_store_down(…)", "more than a day"],
        }
    }

    /// These two cannot be wrong at once: each sets what the other one sets.
    fn excludes(self, other: Self) -> bool {
        let both = [self, other];
        [
            [Ttl, UntilInvalidated],
            [UntilInvalidated, Dependencies],
            [ByTenant, PerPrincipal],
            [StoreDown, StoreDownForEver],
        ]
        .iter()
        .any(|pair| pair.iter().all(|wrong| both.contains(wrong)))
    }
}

macro_rules! spoil {
    ($target:expr, $wrong:expr) => {{
        let target = $target;
        match $wrong {
            Ttl => target.ttl(ZERO),
            NegativeTtl => target.negative_ttl(ZERO),
            UntilInvalidated => target.until_invalidated(),
            Dependencies => target.domains((0..65).map(|i| ITEM.entity(i))),
            ByTenant => target.shared_by_tenant(),
            PerPrincipal => target.per_principal(),
            CredentialHeaders => target.credential_headers(["x-fine", "a b"]),
            KeyHeader => target.key_header(""),
            IgnoreCookies => target.ignore_cookies([""; 0]),
            SessionCookies => target.session_cookies([""; 0]),
            IgnoreQuery => target.ignore_query([""; 0]),
            OnlyQuery => target.only_query([""; 0]),
            EmptyCookie => target.ignore_cookies(["theme", ""]),
            EmptyQuery => target.only_query(["page", ""]),
            StoreDown => target.stale_if_store_down(ZERO),
            StoreDownForEver => target.stale_if_store_down(Duration::MAX),
        }
    }};
}

/// A wrong setting of the engine alone.
const ENGINE: [(&str, &str); 13] = [
    ("default_ttl(0)", "millisecond"),
    ("lookup_deadline(0)", "millisecond"),
    ("store_deadline(0)", "millisecond"),
    ("change_deadline(0)", "millisecond"),
    ("max_log_rows(0)", "at least 1"),
    ("max_bytes(0)", "at least a few MiB"),
    ("max_entries(0)", "at least 1"),
    ("connections(", "1..=10"),
    ("lookup_connections(0)", "at least 1"),
    ("schema(", "use 1 to 63"),
    ("schema(", "use 1 to 63"),
    (
        "compress_from(0)",
        if cfg!(feature = "compression") {
            "at least 1"
        } else {
            "feature `compression`"
        },
    ),
    ("partitions(33)", "use 2 to 32"),
];

fn spoil_engine<T>(builder: PgCacheBuilder<T>, at: usize) -> PgCacheBuilder<T> {
    match at {
        0 => builder.default_ttl(ZERO),
        1 => builder.lookup_deadline(ZERO),
        2 => builder.store_deadline(ZERO),
        3 => builder.change_deadline(ZERO),
        4 => builder.max_log_rows(0),
        5 => builder.max_bytes(0),
        6 => builder.max_entries(0),
        7 => builder.connections(0..=0),
        8 => builder.lookup_connections(0),
        9 => builder.schema("Robert'); DROP TABLE students;--"),
        10 => builder.schema(""),
        11 => builder.compress_from(0),
        _ => builder.partitions(33),
    }
}

/// What a bad configuration has in one place, and the lines that are to be said about it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Bad {
    engine: Vec<usize>,
    wide: Vec<Wrong>,
    layer: Vec<Wrong>,
    rows: Vec<Vec<Wrong>>,
    /// A tenant that clients control instead of none.
    has_weak_tenant: bool,
    is_table: bool,
}

fn wrongs(random: &mut Random, at_most: usize) -> Vec<Wrong> {
    let mut wrongs: Vec<Wrong> = Vec::new();
    for _ in 0..random.below(at_most + 1) {
        let wrong = WRONG[random.below(WRONG.len())];
        if !wrongs.contains(&wrong) && !wrongs.iter().any(|w| w.excludes(wrong)) {
            wrongs.push(wrong);
        }
    }
    wrongs
}

fn configuration(random: &mut Random) -> Bad {
    let is_table = random.below(2) == 0;
    // what is wrong for the whole engine is inherited: then there is nothing else, to know what will be said
    let wide = if random.below(4) == 0 {
        wrongs(random, 4)
    } else {
        Vec::new()
    };
    let own = |random: &mut Random, n| {
        if wide.is_empty() {
            wrongs(random, n)
        } else {
            Vec::new()
        }
    };
    let mut engine: Vec<usize> = (0..random.below(3))
        .map(|_| random.below(ENGINE.len()))
        .collect();
    engine.sort_unstable();
    engine.dedup();
    engine.retain(|at| *at != 9);
    Bad {
        layer: if is_table { Vec::new() } else { own(random, 5) },
        rows: (0..3)
            .map(|_| if is_table { own(random, 3) } else { Vec::new() })
            .collect(),
        // a layer is only reached by way of an engine that could be built
        engine: if is_table { engine } else { Vec::new() },
        wide: if is_table { wide } else { Vec::new() },
        has_weak_tenant: random.below(2) == 0,
        is_table,
    }
}

impl Bad {
    fn configured<T>(&self) -> PgCacheBuilder<T> {
        let mut builder = PgCacheBuilder::<T>::connecting(Config::new(), NoTls);
        if self.has_weak_tenant {
            builder = builder.tenant(Tenant::trusted_header("x-tenant"));
        }
        for &at in &self.engine {
            builder = spoil_engine(builder, at);
        }
        self.wide
            .iter()
            .fold(builder, |builder, &wrong| spoil!(builder, wrong))
    }

    fn error(&self) -> Option<ConfigError> {
        if self.is_table {
            let builder = self.rows.iter().enumerate().fold(
                self.configured::<PgCacheLayer>(),
                |builder, (i, wrongs)| {
                    let row = Route::get(format!("/row/{i}"));
                    builder.route(wrongs.iter().fold(row, |row, &wrong| spoil!(row, wrong)))
                },
            );
            return builder.build().err();
        }
        let cache = match self.configured::<PgCache>().build() {
            Ok(cache) => cache,
            Err(error) => return Some(error),
        };
        let layer = self
            .layer
            .iter()
            .fold(cache.layer(), |layer, &wrong| spoil!(layer, wrong));
        layer.check().err()
    }

    /// Place, setter and mend of each line.
    fn expected(&self) -> Vec<[String; 3]> {
        let line = |place: &str, says: [&str; 2]| {
            [place.to_owned(), says[0].to_owned(), says[1].to_owned()]
        };
        let of = |place: &str, wrongs: &[Wrong]| -> Vec<[String; 3]> {
            wrongs
                .iter()
                .map(|wrong| line(place, wrong.says()))
                .collect()
        };
        let engine = self
            .engine
            .iter()
            .map(|&at| line("engine: ", [ENGINE[at].0, ENGINE[at].1]));
        let mut lines: Vec<_> = engine.chain(of("engine: ", &self.wide)).collect();
        lines.extend(of(concat!("layer at ", file!()), &self.layer));
        for (i, wrongs) in self.rows.iter().enumerate() {
            lines.extend(of(&format!("route GET /row/{i}: "), wrongs));
        }
        lines
    }

    fn assert_told(&self) -> bool {
        let expected = self.expected();
        let error = self.error();
        let mut lines: Vec<&str> = error.iter().flat_map(ConfigError::mistakes).collect();
        assert_eq!(error.is_none(), expected.is_empty(), "{self:?}: {error:?}");
        for [place, setter, mend] in &expected {
            let at = lines.iter().position(|line| {
                line.starts_with(place.as_str())
                    && line.contains(setter.as_str())
                    && line.contains(mend.as_str())
            });
            let at = at.unwrap_or_else(|| {
                panic!("no line with {place:?}, {setter:?}, {mend:?} in {lines:#?} of {self:?}")
            });
            lines.remove(at);
        }
        assert_eq!(lines, [""; 0], "said without cause, of {self:?}");
        !expected.is_empty()
    }
}

#[test]
fn every_mistake_is_told_with_its_place_and_its_mend() {
    let mut random = Random::of_this_run("CONFIG_SEED");
    let (mut bad, mut good) = (HashSet::new(), 0);
    while bad.len() < 1000 {
        let configuration = configuration(&mut random);
        if configuration.assert_told() {
            bad.insert(configuration);
        } else {
            good += 1;
        }
    }
    println!("{good} good configurations came by");
    assert!(good > 0);
}

#[test]
fn each_wrong_setting_is_told_alone_in_each_place() {
    let nothing = |is_table| Bad {
        engine: Vec::new(),
        wide: Vec::new(),
        layer: Vec::new(),
        rows: vec![Vec::new()],
        has_weak_tenant: false,
        is_table,
    };
    for wrong in WRONG {
        for has_weak_tenant in [false, true] {
            let with = |bad: Bad| Bad {
                has_weak_tenant,
                ..bad
            };
            assert!(
                with(Bad {
                    wide: vec![wrong],
                    ..nothing(true)
                })
                .assert_told()
            );
            assert!(
                with(Bad {
                    wide: vec![wrong],
                    ..nothing(false)
                })
                .assert_told()
            );
            assert!(
                with(Bad {
                    layer: vec![wrong],
                    ..nothing(false)
                })
                .assert_told()
            );
            assert!(
                with(Bad {
                    rows: vec![Vec::new(), vec![wrong]],
                    ..nothing(true)
                })
                .assert_told()
            );
        }
    }
    for at in 0..ENGINE.len() {
        assert!(
            Bad {
                engine: vec![at],
                ..nothing(true)
            }
            .assert_told()
        );
        assert!(
            Bad {
                engine: vec![at],
                ..nothing(false)
            }
            .assert_told()
        );
    }
}

#[test]
fn what_no_clock_can_tell_is_a_mistake() {
    let builder = PgCacheBuilder::<PgCache>::connecting(Config::new(), NoTls)
        .lookup_deadline(Duration::MAX)
        .store_deadline(Duration::MAX)
        .change_deadline(Duration::MAX)
        .lease_wait(Duration::MAX)
        .lease_life(Duration::MAX);
    let error = builder.build().err().unwrap();
    let lines: Vec<_> = error.mistakes().collect();
    let names = [
        "lookup_deadline",
        "store_deadline",
        "change_deadline",
        "lease_wait",
        "lease_life",
    ];
    assert_eq!(lines.len(), names.len(), "{lines:#?}");
    for (name, line) in names.into_iter().zip(lines) {
        let expected = format!("engine: {name}(…) of more than a day");
        assert!(line.starts_with(&expected), "{line}");
    }
}

fn lines_of(routes: impl IntoIterator<Item = Route>) -> Vec<String> {
    let builder = PgCacheLayer::builder(pool());
    let builder = routes.into_iter().fold(builder, PgCacheBuilder::route);
    builder
        .build()
        .err()
        .iter()
        .flat_map(ConfigError::mistakes)
        .map(str::to_owned)
        .collect()
}

#[tokio::test] // a pool needs a runtime
async fn patterns_are_checked() {
    let told = |routes: Vec<Route>, place: &str, mend: &str| {
        let lines = lines_of(routes);
        assert!(
            matches!(&lines[..], [line] if line.starts_with(place) && line.contains(mend)),
            "{lines:#?} does not say {place:?} and {mend:?}"
        );
    };
    told(
        vec![Route::get("/a"), Route::get("/a")],
        "route GET /a: ",
        "one row",
    );
    let head = Route::new(http::Method::HEAD, "/a");
    told(vec![Route::get("/a"), head], "route GET /a: ", "one row");
    told(
        vec![Route::get("/{a}"), Route::get("/{b}")],
        "route /{b}: ",
        "as in axum",
    );
    for pattern in ["/{", "/}", "/{}", "/{*}", "/{*a}/b", "/{a}{b}"] {
        told(
            vec![Route::get(pattern)],
            &format!("route {pattern}: "),
            "as in axum",
        );
    }
    for pattern in ["", "a", ":a", "*"] {
        told(
            vec![Route::get(pattern)],
            &format!("route {pattern}: "),
            "as in axum",
        );
    }
    told(
        vec![Route::get("/{id}").entity(ITEM, "no")],
        "route GET /{id}: entity(item, \"no\")",
        "name a parameter",
    );
    assert_eq!(
        lines_of([
            Route::get("/{id}").entity(ITEM, "id"),
            Route::post("/{id}"),
            Route::get("/a/{*r}")
        ]),
        [""; 0]
    );
}

#[test]
fn names_of_domains_are_checked() {
    let long = "x".repeat(64);
    for name in ["", "Product", "a b", "ä", "a/b", "a\0", long.as_str()] {
        let error = Domain::try_from(name).unwrap_err().to_string();
        assert!(
            error.contains(&format!("{name:?}")) && error.contains("use 1 to 63"),
            "{error}"
        );
    }
    assert!(Domain::try_from("a-z_0.9").is_ok());
}

#[tokio::test] // a pool needs a runtime
async fn good_configurations_build() {
    let with = |tenant: Tenant| PgCache::builder(pool()).tenant(tenant);
    let strong = || Tenant::extension(|c: &Claims| c.0.clone());
    let principal = || Principal::extension(|c: &Claims| c.0.clone());
    assert!(with(strong()).shared_by_tenant().build().is_ok());
    assert!(with(Tenant::trusted_host_label(0)).build().is_ok());
    let weak = [
        Tenant::trusted_header("x-t"),
        Tenant::trusted_host_label(0),
        Tenant::trusted_path_param("t"),
        Tenant::from_fn(|_| None),
    ];
    for tenant in weak {
        assert!(with(tenant.clone()).shared_by_tenant().build().is_err());
        assert!(
            with(tenant)
                .shared_by_tenant()
                .authenticated_by::<Claims>()
                .build()
                .is_ok()
        );
    }
    let cache = with(strong())
        .principal(principal())
        .ttl(MINUTE)
        .build()
        .unwrap();
    let layers = [
        cache.layer().per_principal(),
        cache.layer().shared_by_everyone(),
        cache.layer().until_invalidated().domain(ITEM),
        cache.layer().domains((0..64).map(|i| ITEM.entity(i))),
        cache
            .layer()
            .key_header("x-a")
            .credential_headers(["x-b"])
            .ignore_cookies(["*"])
            .only_query(["page"]),
    ];
    for layer in layers {
        assert!(layer.check().is_ok());
    }
}

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn a_layer_with_mistakes_that_nobody_checked_passes_everything_through() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(log.clone())
        .with_ansi(false)
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let layer = PgCacheLayer::new(pool()).ttl(ZERO).key_header("a b");
    let app = Router::new()
        .route("/", get(|| async { "fine" }))
        .route("/b", get(|| async { "fine" }))
        .layer(layer);
    for uri in ["/", "/b", "/"] {
        let answer = fetch(&app, uri).await;
        assert_eq!(answer.text(), "fine");
        assert_eq!(
            answer.cache_status(),
            "fwd=bypass; fwd-status=200; detail=misconfigured"
        );
    }
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for mistake in ["ttl(0)", "key_header(\"a b\")"] {
        assert_eq!(log.matches(mistake).count(), 1, "{log}");
    }
    assert!(log.contains(concat!("layer at ", file!())), "{log}");
}
