//! Dependencies are turned into keys in Rust, invalidations in SQL (too). Both sides have to agree, for any
//! text: seen from outside, as hits and misses.

use std::collections::HashSet;
use std::fmt::Write;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use http::Request;
use test_support::http::{Answer, get as fetch, send};
use tower_pgcache::{Domain, PgCache, Scope, Tenant, domain};

use test_support::random::Random;

const MINUTE: Duration = Duration::from_secs(60);
const PRODUCT: Domain = domain!("product");

/// Whether "any" or one.
type Part = Option<&'static str>;

fn meets<T: PartialEq + Copy>(dependency: Option<T>, change: Option<T>) -> bool {
    dependency.is_none() || change.is_none() || dependency == change
}

#[tokio::test]
async fn every_dependency_meets_exactly_the_changes_that_it_should() {
    const PARTS: [(Part, Part); 9] = [
        (None, None),
        (None, Some("1")),
        (None, Some("2")),
        (Some("a"), None),
        (Some("a"), Some("1")),
        (Some("a"), Some("2")),
        (Some("b"), None),
        (Some("b"), Some("1")),
        (Some("b"), Some("2")),
    ];
    let database = test_support::database().await;
    let cache = PgCache::builder(database.pool(4))
        .lookup_deadline(MINUTE)
        .build()
        .unwrap();
    let mut app = Router::new();
    for (i, (tenant, entity)) in PARTS.into_iter().enumerate() {
        let mut scope: Scope = PRODUCT.all_tenants();
        if let Some(tenant) = tenant {
            scope = scope.tenant(tenant);
        }
        if let Some(entity) = entity {
            scope = scope.entity(entity);
        }
        let handler = get(|| async { "answer" });
        let layer = cache.layer().ttl(MINUTE).domain(scope);
        app = app.route(&format!("/{i}"), handler.layer(layer));
    }
    let sql = database.connect().await;

    for i in 0..PARTS.len() {
        assert!(!fetch(&app, &format!("/{i}")).await.is_hit());
    }
    cache.settled().await;
    let mut met = 0;
    for name in ["product", "product.a", "produc"] {
        for (tenant, entity) in PARTS {
            sql.execute(
                "SELECT pgcache.invalidate($1, $2, $3)",
                &[&name, &tenant, &entity],
            )
            .await
            .unwrap();
            for (i, dependency) in PARTS.into_iter().enumerate() {
                let expected =
                    name == "product" && meets(dependency.0, tenant) && meets(dependency.1, entity);
                let hit = fetch(&app, &format!("/{i}")).await.is_hit();
                assert_eq!(
                    hit, !expected,
                    "{dependency:?} against {name} {tenant:?} {entity:?}"
                );
                met += usize::from(expected);
            }
            cache.settled().await;
        }
    }
    assert_eq!(met, 7 * 7);
}

/// What a request can be invalidated by.
#[derive(Debug, Clone)]
struct Change {
    kind: &'static str,
    name: String,
    tenant: Option<String>,
    entity: Option<String>,
}

/// Answers depend on the product of its path and of the tenant, on the URI, and on the tenant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Page {
    host: String,
    tenant: String,
    entity: String,
}

impl Page {
    fn path(&self) -> String {
        let mut path = "/p/".to_owned();
        for byte in self.entity.bytes() {
            write!(path, "%{byte:02X}").unwrap();
        }
        path
    }

    fn is_met_by(&self, change: &Change) -> bool {
        let any_spelling = |own: &str, changed: Option<&String>| {
            changed.is_none_or(|changed| spelling(own) == spelling(changed))
        };
        any_spelling(&self.tenant, change.tenant.as_ref())
            && match change.kind {
                "d" => {
                    change.name == "product" && any_spelling(&self.entity, change.entity.as_ref())
                }
                "u" => {
                    change.name == self.path() && meets(Some(&self.host), change.entity.as_ref())
                }
                _ => change.kind == "t" && change.name.is_empty() && change.entity.is_none(),
            }
    }
}

/// What all spellings of a number or a UUID have in common.
fn spelling(text: &str) -> String {
    let letters = text.replace(['-', '+', '{', '}', ':', ' ', '\t', '\r', '\n'], "");
    let plain = letters.to_ascii_lowercase().replace("urnuuid", "");
    plain.trim_start_matches('0').to_owned()
}

#[derive(Clone)]
struct TenantId(String);

async fn request(app: &Router, page: &Page) -> Answer {
    let request = Request::get(page.path())
        .header("host", &page.host)
        .extension(TenantId(page.tenant.clone()))
        .body(Body::empty())
        .unwrap();
    send(app, request).await
}

/// Texts that a sloppy encoding would mix up.
fn nasty_text(random: &mut Random) -> String {
    const PIECES: [&str; 20] = [
        "*",
        "+",
        "=",
        ":",
        "=1:a",
        "=1:a=1:b",
        "a",
        "b",
        "1",
        "'",
        "\"",
        "\\",
        "$$",
        "%",
        "/",
        "ä",
        "日本",
        "\u{1F980}",
        " ",
        "\n",
    ];
    if random.percent(2) {
        return "x".repeat(2000 + random.below(3));
    }
    (0..=random.below(4))
        .map(|_| *random.pick(&PIECES))
        .collect()
}

#[tokio::test]
async fn rust_and_sql_agree_on_the_keys_of_any_text() {
    let mut random = Random::of_this_run("PGCACHE_TEST_SEED");
    let database = test_support::database().await;
    let cache = PgCache::builder(database.pool(4))
        .lookup_deadline(MINUTE)
        .tenant(Tenant::extension(|t: &TenantId| t.0.clone()))
        .build()
        .unwrap();
    let layer = cache.layer().ttl(MINUTE).entity(PRODUCT, "id");
    let app = Router::new().route("/p/{id}", get(|| async { "answer" }).layer(layer));
    let sql = database.connect().await;

    let tenants: Vec<String> = ["*", "+", "=1:a"]
        .map(str::to_owned)
        .into_iter()
        .chain((0..12).map(|_| nasty_text(&mut random)))
        .filter(|tenant| !tenant.is_empty()) // nobody's name
        .collect();
    let pages: HashSet<Page> = (0..250)
        .map(|_| Page {
            host: (*random.pick(&["a.example", "b.example:8080"])).to_owned(),
            tenant: random.pick(&tenants).clone(),
            entity: nasty_text(&mut random),
        })
        .collect();
    let pages: Vec<Page> = pages.into_iter().collect();
    for page in &pages {
        assert!(request(&app, page).await.is_stored(), "{page:?}");
    }
    cache.settled().await;

    let mut changes = Vec::new();
    for page in &pages {
        let any_of =
            |random: &mut Random, text: &String| (!random.percent(15)).then(|| text.clone());
        let tenant = any_of(&mut random, &page.tenant);
        let entity = any_of(&mut random, &page.entity);
        changes.push(match random.below(8) {
            0 => Change {
                kind: "u",
                name: page.path(),
                tenant,
                entity: any_of(&mut random, &page.host),
            },
            1 => Change {
                kind: "t",
                name: String::new(),
                tenant: Some(page.tenant.clone()),
                entity: None,
            },
            // parts in each other's place, which meet nothing that they should not
            2 => Change {
                kind: "d",
                name: "product".to_owned(),
                tenant: entity,
                entity: tenant,
            },
            _ => Change {
                kind: "d",
                name: "product".to_owned(),
                tenant,
                entity,
            },
        });
    }
    compare_keys(&sql, &pages, &changes).await;

    // and as it is meant to be used
    let chosen: Vec<&Change> = changes
        .iter()
        .filter(|c| c.tenant.is_some() && c.kind != "t" && (c.entity.is_some() || c.kind == "u"))
        .filter(|_| random.percent(40))
        .collect();
    for change in &chosen {
        let Change {
            kind,
            name,
            tenant,
            entity,
        } = change;
        if *kind == "d" {
            sql.execute(
                "SELECT pgcache.invalidate($1, $2, $3)",
                &[name, tenant, entity],
            )
            .await
            .unwrap();
        } else {
            sql.execute(
                "SELECT pgcache.invalidate_scopes($1, $2, $3, $4)",
                &[&vec![*kind], &vec![name], &vec![tenant], &vec![entity]],
            )
            .await
            .unwrap();
        }
    }
    let mut hits = 0;
    for page in &pages {
        let expected = !chosen.iter().any(|change| page.is_met_by(change));
        assert_eq!(request(&app, page).await.is_hit(), expected, "{page:?}");
        hits += usize::from(expected);
    }
    assert!(
        hits > 10 && hits < pages.len() - 10,
        "{hits} of {} hits: the test decides nothing",
        pages.len()
    );
}

/// Every page against every change.
async fn compare_keys(sql: &tokio_postgres::Client, pages: &[Page], changes: &[Change]) {
    let kinds: Vec<&str> = changes.iter().map(|c| c.kind).collect();
    let names: Vec<&str> = changes.iter().map(|c| c.name.as_str()).collect();
    let tenants: Vec<_> = changes.iter().map(|c| c.tenant.as_deref()).collect();
    let entities: Vec<_> = changes.iter().map(|c| c.entity.as_deref()).collect();
    let rows = sql
        .query(
            "WITH change AS MATERIALIZED (
                 SELECT n, pgcache.invalidation_keys(kind::\"char\", name, tenant, entity) AS keys
                   FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) WITH ORDINALITY
                        AS c (kind, name, tenant, entity, n))
             SELECT e.authority, e.tenant, e.path,
                    ARRAY(SELECT n FROM change WHERE keys && e.probes ORDER BY n) AS met
               FROM pgcache.entry e",
            &[&kinds, &names, &tenants, &entities],
        )
        .await
        .unwrap();
    assert_eq!(rows.len(), pages.len());
    for row in rows {
        let (host, tenant, path): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        let page = pages
            .iter()
            .find(|p| p.host == host && p.tenant == tenant && p.path() == path)
            .unwrap();
        let expected: Vec<i64> = (1..)
            .zip(changes)
            .filter(|(_, change)| page.is_met_by(change))
            .map(|(n, _)| n)
            .collect();
        assert_eq!(row.get::<_, Vec<i64>>("met"), expected, "{page:?}");
    }
}
