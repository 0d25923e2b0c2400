//! Bodies that are stored compressed: what is served is what the handler said, and what is stored is less.
#![cfg(feature = "compression")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use test_support::Database;
use test_support::http::{Answer, send};
use test_support::random::Random;
use test_support::seal;
use tokio_postgres::Client;
use tower_pgcache::{Domain, PgCache, PgCacheBuilder, Policy, domain, test};

const MINUTE: Duration = Duration::from_secs(60);
const ITEM: Domain = domain!("item");
const LEAST: usize = 2000;

type Fields = &'static [(&'static str, &'static str)];

/// What the handler says under a path.
#[derive(Clone)]
struct Page {
    fields: Fields,
    body: Bytes,
}

/// A database, and a handler whose answers the test decides.
struct Site {
    database: Database,
    pages: Arc<Mutex<HashMap<String, Page>>>,
    calls: Arc<AtomicUsize>,
}

/// One of the instances in front of it.
struct Instance {
    app: Router,
    cache: PgCache,
}

/// Compresses, and has no memory: what is asked for comes from the store.
fn compressing(builder: PgCacheBuilder) -> PgCacheBuilder {
    builder.memory(0).compress_from(LEAST)
}

impl Site {
    async fn new() -> Self {
        Self {
            database: test_support::database().await,
            pages: Arc::default(),
            calls: Arc::default(),
        }
    }

    fn says(&self, path: &str, fields: Fields, body: impl Into<Bytes>) {
        let body = body.into();
        let page = Page { fields, body };
        self.pages.lock().unwrap().insert(path.to_owned(), page);
    }

    async fn instance(
        &self,
        configured: impl FnOnce(PgCacheBuilder) -> PgCacheBuilder,
    ) -> Instance {
        let builder = PgCache::builder(self.database.pool(4))
            .policy(Policy::shared_cache())
            .lookup_deadline(MINUTE)
            .store_deadline(MINUTE);
        let cache = configured(builder).build().unwrap();
        cache.ready().await.unwrap();
        let (pages, calls) = (self.pages.clone(), self.calls.clone());
        let handler = move |request: Request| {
            calls.fetch_add(1, Ordering::SeqCst);
            let page = pages.lock().unwrap()[request.uri().path()].clone();
            std::future::ready(page.answer(&request))
        };
        let layer = cache.layer().ttl(MINUTE).domain(ITEM);
        let app = Router::new().fallback(handler).layer(layer);
        Instance { app, cache }
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    async fn sql(&self) -> Client {
        self.database.connect().await
    }
}

impl Page {
    /// 304 to who has it, 206 where a part is asked for, the whole to everybody else.
    fn answer(&self, request: &Request) -> Response {
        let field = |name: &str| request.headers().get(name).map(|v| v.to_str().unwrap());
        let own = |name: &str| {
            self.fields
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| *v)
        };
        let mut answer = Response::builder();
        for (name, value) in self.fields {
            answer = answer.header(*name, *value);
        }
        if own("etag").is_some() && field("if-none-match") == own("etag") {
            return answer.status(304).body(Body::empty()).unwrap();
        }
        let range = field("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        if let Some((first, last)) = range {
            let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
            let whole = self.body.len();
            return answer
                .status(206)
                .header("content-range", format!("bytes {first}-{last}/{whole}"))
                .body(Body::from(self.body.slice(first..=last)))
                .unwrap();
        }
        answer.body(Body::from(self.body.clone())).unwrap()
    }
}

impl Instance {
    async fn ask(&self, method: &str, path: &str, fields: Fields) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let answer = send(&self.app, request.body(Body::empty()).unwrap()).await;
        self.cache.settled().await;
        answer
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[]).await
    }
}

/// What stands in the database: how long it is unpacked, and how many bytes that takes.
async fn stored(sql: &Client, path: &str) -> (Option<i32>, i32) {
    let query =
        "SELECT unpacked, octet_length(body) FROM pgcache.entry WHERE path = $1 AND vary IS NULL";
    let row = sql.query_one(query, &[&path]).await.unwrap();
    (row.get(0), row.get(1))
}

/// A list of things in JSON, a few times smaller when it is compressed.
fn json(bytes: usize) -> String {
    let mut random = Random::new(1, 1);
    let mut text = String::from("[");
    while text.len() < bytes {
        let (id, price) = (random.below(100_000_u64), random.below(9_999_u64));
        text.push_str(&format!(
            r#"{{"id":{id},"name":"Thing number {id}","price":{price},"tags":["blue","small"],"available":true}},"#
        ));
    }
    text.truncate(bytes);
    text
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut random = Random::new(2, 2);
    (0..bytes).map(|_| random.below(256_u64) as u8).collect()
}

#[tokio::test]
async fn what_gets_smaller_is_stored_small_and_served_as_it_was() {
    let site = Site::new().await;
    let pages: [(&str, Fields, Vec<u8>, bool); 8] = [
        (
            "/text",
            &[("content-type", "application/json")],
            json(65_536).into(),
            true,
        ),
        ("/large", &[], json(900_000).into(), true),
        ("/zeros", &[], vec![0; 100_000], true),
        ("/noise", &[], noise(65_536), false),
        ("/just-enough", &[], json(LEAST).into(), true),
        ("/too-little", &[], json(LEAST - 1).into(), false),
        ("/nothing", &[], Vec::new(), false),
        (
            "/encoded",
            &[("content-encoding", "gzip")],
            json(65_536).into(),
            false,
        ),
    ];
    let instance = site.instance(compressing).await;
    let sql = site.sql().await;
    for (path, fields, body, packs) in pages {
        site.says(path, fields, body.clone());
        let first = instance.get(path).await;
        assert_eq!(first.body, body, "{path}");
        assert!(first.is_stored(), "{path}");
        let (unpacked, bytes) = stored(&sql, path).await;
        assert_eq!(unpacked, packs.then_some(body.len() as i32), "{path}");
        assert!(
            packs != (bytes as usize == body.len()),
            "{path}: {bytes} bytes"
        );
        let mut again = instance.get(path).await;
        assert!(again.is_hit(), "{path}: {}", again.cache_status());
        assert_eq!(again.body, body, "{path}");
        for field in ["age", "cache-status"] {
            again.headers.remove(field);
        }
        let length = body.len().to_string();
        assert_eq!(again.header("content-length"), Some(&*length), "{path}");
        for (name, value) in &first.headers {
            if name != "cache-status" {
                assert_eq!(again.headers.get(name), Some(value), "{path}");
            }
        }
    }
    let view = "SELECT unpacked, bytes < 30000 FROM pgcache.entries WHERE path = '/text'";
    let row = sql.query_one(view, &[]).await.unwrap();
    assert_eq!((row.get(0), row.get(1)), (Some(65_536), true));
    let (_, small) = stored(&sql, "/text").await;
    assert!(small < 65_536 / 3, "{small}");
}

#[tokio::test]
async fn requests_of_all_kinds_are_answered_from_it() {
    let site = Site::new().await;
    let text = json(65_536);
    let tag = &[("etag", "\"1\"")];
    site.says("/a", tag, text.clone());
    let instance = site.instance(compressing).await;
    instance.get("/a").await;
    assert!(stored(&site.sql().await, "/a").await.0.is_some());

    let head = instance.ask("HEAD", "/a", &[]).await;
    assert_eq!(
        (head.text(), head.header("content-length")),
        ("", Some("65536"))
    );
    let part = instance
        .ask("GET", "/a", &[("range", "bytes=60000-60009")])
        .await;
    assert_eq!(part.status, 206);
    assert_eq!(part.text(), &text[60_000..60_010]);
    assert_eq!(
        part.header("content-range"),
        Some("bytes 60000-60009/65536")
    );
    let last = instance.ask("GET", "/a", &[("range", "bytes=-5")]).await;
    assert_eq!(last.text(), &text[65_531..]);
    let beyond = instance
        .ask("GET", "/a", &[("range", "bytes=65536-")])
        .await;
    assert_eq!(beyond.status, 416);
    let same = instance
        .ask("GET", "/a", &[("if-none-match", "\"1\"")])
        .await;
    assert_eq!((same.status.as_u16(), same.text()), (304, ""));
    assert!(same.is_hit());
    assert_eq!(site.calls(), 1);
}

#[tokio::test]
async fn a_304_of_the_handler_leaves_the_compressed_body_where_it_is() {
    let site = Site::new().await;
    let text = json(65_536);
    site.says("/a", &[("etag", "\"1\""), ("x-own", "1")], text.clone());
    let one = site.instance(compressing).await;
    let other = site.instance(|builder| builder.memory(0)).await;
    one.get("/a").await;
    let sql = site.sql().await;
    let body = async || -> (String, Option<i32>, String) {
        let query = "SELECT md5(body), unpacked, encode(checksum, 'hex') FROM pgcache.entry";
        let row = sql.query_one(query, &[]).await.unwrap();
        (row.get(0), row.get(1), row.get(2))
    };
    let mut before = body().await;
    assert_eq!(before.1, Some(65_536));
    // also the one that compresses nothing itself
    for (instance, fields) in [
        (&one, &[("etag", "\"1\""), ("x-own", "2")] as Fields),
        (&other, &[("etag", "\"1\""), ("x-own", "3")]),
        (&one, &[("etag", "\"1\""), ("x-own", "4")]),
    ] {
        site.says("/a", fields, text.clone());
        test::expire(&instance.cache, &"/a".parse().unwrap())
            .await
            .unwrap();
        let answer = instance.get("/a").await;
        assert_eq!(answer.cache_status(), "fwd=stale; fwd-status=304; stored");
        assert_eq!(answer.text(), text);
        let after = body().await;
        assert_eq!((&after.0, after.1), (&before.0, before.1));
        assert_ne!(after.2, before.2, "it has another head");
        before = after;
        for instance in [&one, &other] {
            let again = instance.get("/a").await;
            assert!(again.is_hit());
            assert_eq!(again.header("x-own"), Some(fields[1].1));
            assert_eq!(again.text(), text);
        }
    }
}

#[tokio::test]
async fn parts_variants_and_what_takes_their_place() {
    let site = Site::new().await;
    let text = json(65_536);
    let instance = site.instance(compressing).await;
    let sql = site.sql().await;

    // a part is stored for itself
    site.says(
        "/part",
        &[("etag", "\"1\""), ("cache-control", "max-age=60")],
        text.clone(),
    );
    let part = instance
        .ask("GET", "/part", &[("range", "bytes=10000-29999")])
        .await;
    assert!(part.is_stored(), "{}", part.cache_status());
    assert_eq!(stored(&sql, "/part").await.0, Some(20_000));
    let within = instance
        .ask("GET", "/part", &[("range", "bytes=20000-20009")])
        .await;
    assert!(within.is_hit());
    assert_eq!(within.text(), &text[20_000..20_010]);

    // an answer, then one that varies, then one that does not
    site.says("/v", &[], text.clone());
    instance.get("/v").await;
    assert_eq!(stored(&sql, "/v").await.0, Some(65_536));
    site.says("/v", &[("vary", "accept-language")], text.clone());
    instance.cache.clear().await.unwrap();
    for language in [
        &[("accept-language", "de")] as Fields,
        &[("accept-language", "en")],
    ] {
        assert!(!instance.ask("GET", "/v", language).await.is_hit());
        let again = instance.ask("GET", "/v", language).await;
        assert!(again.is_hit(), "{}", again.cache_status());
        assert_eq!(again.text(), text);
    }
    let markers = "SELECT count(*) FROM pgcache.entry WHERE path = '/v' AND vary IS NOT NULL AND unpacked IS NULL";
    assert_eq!(
        sql.query_one(markers, &[]).await.unwrap().get::<_, i64>(0),
        1
    );
    let packed = "SELECT count(*) FROM pgcache.entry WHERE path = '/v' AND vary IS NULL AND unpacked = 65536";
    assert_eq!(
        sql.query_one(packed, &[]).await.unwrap().get::<_, i64>(0),
        2
    );
    site.says("/v", &[], "plain");
    instance.cache.clear().await.unwrap();
    instance.get("/v").await;
    let again = instance.get("/v").await;
    assert_eq!((again.is_hit(), again.text()), (true, "plain"));
}

#[tokio::test]
async fn what_a_commit_has_invalidated_can_be_served_too() {
    let site = Site::new().await;
    let text = json(65_536);
    site.says("/a", &[], text.clone());
    let instance = site
        .instance(|builder| compressing(builder).serve_invalidated_while_refreshing(MINUTE))
        .await;
    instance.get("/a").await;
    instance.cache.invalidate([ITEM]).await.unwrap();
    site.says("/a", &[], "new");
    let old = instance.get("/a").await;
    assert!(old.is_hit(), "{}", old.cache_status());
    assert_eq!(old.text(), text);
    assert_eq!(instance.get("/a").await.text(), "new");
}

#[tokio::test]
async fn a_damaged_row_is_a_miss_and_is_replaced() {
    let site = Site::new().await;
    let text = json(65_536);
    let instance = site.instance(compressing).await;
    let sql = site.sql().await;
    // with the checksum that it had, and with the one that it would have if it had been stored like this
    let damages = [
        ("unpacked = NULL", false),
        ("unpacked = NULL", true),
        ("unpacked = unpacked + 1", false),
        ("unpacked = unpacked + 1", true),
        ("unpacked = unpacked - 1", true),
        ("unpacked = 0", true),
        ("unpacked = -1", true),
        ("unpacked = 2147483647", true),
        ("body = body || 'x'", true),
        ("body = substr(body, 1, octet_length(body) - 1)", true),
        ("body = substr(body, 2)", true),
        ("body = ''", true),
        ("body = convert_to(repeat('garbage', 1000), 'utf8')", true),
        // of one that is twice as long
        ("body = body || body", true),
    ];
    for (n, (damage, is_sealed)) in damages.into_iter().enumerate() {
        let path = format!("/{n}");
        site.says(&path, &[], text.clone());
        instance.get(&path).await;
        assert!(instance.get(&path).await.is_hit());
        let set = format!("UPDATE pgcache.entry SET {damage} WHERE path = $1");
        assert_eq!(sql.execute(&set, &[&path]).await.unwrap(), 1);
        if is_sealed {
            seal(&sql, &path).await;
        }
        site.says(&path, &[], "new");
        let answer = instance.get(&path).await;
        if damage == "unpacked = NULL" && is_sealed {
            // that is what was stored, then, and the test knows how to seal
            assert!(answer.is_hit());
            assert_eq!(&answer.body[..4], b"\x28\xb5\x2f\xfd");
            continue;
        }
        assert!(!answer.is_hit(), "{damage}");
        assert_eq!(answer.text(), "new", "{damage}");
        let again = instance.get(&path).await;
        assert_eq!((again.is_hit(), again.text()), (true, "new"), "{damage}");
    }
}

#[tokio::test]
async fn an_instance_that_compresses_nothing_shares_what_the_others_store() {
    let site = Site::new().await;
    let text = json(65_536);
    site.says("/small", &[], text.clone());
    site.says("/large", &[], text.clone());
    let on = site.instance(compressing).await;
    let off = site.instance(|builder| builder.memory(0)).await;
    on.get("/small").await;
    off.get("/large").await;
    let sql = site.sql().await;
    assert_eq!(stored(&sql, "/small").await.0, Some(65_536));
    assert_eq!(stored(&sql, "/large").await, (None, 65_536));
    for instance in [&on, &off] {
        for path in ["/small", "/large"] {
            let answer = instance.get(path).await;
            assert!(answer.is_hit(), "{path}");
            assert_eq!(answer.text(), text);
        }
    }
    // what replaces the one is as whoever stores it has it
    on.cache.clear().await.unwrap();
    off.get("/small").await;
    on.get("/large").await;
    assert_eq!(stored(&sql, "/small").await, (None, 65_536));
    assert_eq!(stored(&sql, "/large").await.0, Some(65_536));
    assert_eq!(off.get("/large").await.text(), text);
    assert_eq!(on.get("/small").await.text(), text);
}

#[tokio::test]
async fn memory_has_it_as_it_is_served() {
    let site = Site::new().await;
    let text = json(65_536);
    site.says("/a", &[], text.clone());
    let one = site.instance(|builder| builder.compress_from(LEAST)).await;
    one.get("/a").await;
    let other = site.instance(|builder| builder.compress_from(LEAST)).await;
    for instance in [&one, &other, &other] {
        let answer = instance.get("/a").await;
        assert!(answer.is_hit());
        assert_eq!(answer.text(), text);
    }
    // not from the row
    let sql = site.sql().await;
    sql.execute("UPDATE pgcache.entry SET body = 'x'", &[])
        .await
        .unwrap();
    assert_eq!(other.get("/a").await.text(), text);
    assert_eq!(site.calls(), 1);
}

#[tokio::test]
async fn the_bound_counts_what_is_stored() {
    let site = Site::new().await;
    let text = json(65_536);
    let bounded = |builder| compressing(builder).max_bytes(1 << 20);
    let instance = site.instance(bounded).await;
    let paths: Vec<String> = (0..32).map(|n| format!("/{n}")).collect();
    for path in &paths {
        site.says(path, &[], text.clone());
        instance.get(path).await;
    }
    instance.cache.cleanup().await.unwrap();
    assert_eq!(instance.cache.stats().evicted, 0);
    for path in &paths {
        assert!(instance.get(path).await.is_hit(), "{path}");
    }
}

/// An application may keep all threads for blocking work busy. Nothing waits for one for ever.
#[test]
fn without_a_thread_to_compress_it_is_stored_as_it_is() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()
        .unwrap();
    let database = runtime.block_on(async { test_support::database().await });
    let (release, held) = std::sync::mpsc::channel::<()>();
    runtime.block_on(async {
        let site = Site {
            database,
            pages: Arc::default(),
            calls: Arc::default(),
        };
        let text = json(65_536);
        site.says("/a", &[], text.clone());
        let impatient = |builder| compressing(builder).store_deadline(Duration::from_secs(1));
        let instance = site.instance(impatient).await;
        let sql = site.sql().await;
        let busy = tokio::task::spawn_blocking(move || held.recv());
        let answer = tokio::time::timeout(MINUTE, instance.get("/a")).await;
        assert_eq!(answer.expect("stored in time").text(), text);
        assert_eq!(stored(&sql, "/a").await, (None, 65_536));
        assert!(instance.get("/a").await.is_hit());
        release.send(()).unwrap();
        busy.await.unwrap().unwrap();
    });
}

#[tokio::test]
async fn what_would_compress_nothing_is_a_mistake() {
    let database = test_support::database().await;
    let build = |bytes| {
        let builder = PgCache::builder(database.pool(1));
        builder.max_bytes(10_000_000).compress_from(bytes).build()
    };
    assert!(build(1).is_ok() && build(1_000_000).is_ok());
    for (bytes, mend) in [(0, "at least 1"), (1_000_001, "at most 1000000")] {
        let error = build(bytes).unwrap_err().to_string();
        assert!(
            error.contains(&format!("compress_from({bytes})")),
            "{error}"
        );
        assert!(error.contains(mend), "{error}");
    }
}
