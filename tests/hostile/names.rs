//! Text that a client chooses and that ends in a scope, a tenant or a statement.

use axum::Router;
use axum::extract::Request;
use axum::middleware::map_request;
use tower_pgcache::{CacheScope, PgCache, Tenant};

use crate::site::{ITEM, MINUTE, Site, echoing, get};

fn nasty() -> Vec<String> {
    let mut names: Vec<String> = [
        "'",
        "''); DROP SCHEMA pgcache CASCADE; --",
        "\"; DROP TABLE bystander; --",
        "\\'; DROP TABLE bystander; --",
        "$$; DROP TABLE bystander; $$",
        "$1",
        "%s%n",
        "{a,b}",
        "(1,2)",
        "NULL",
        "*",
        "../../etc/passwd",
        "..%2f",
        "%00",
        "a\u{0}b",
        "\u{0}",
        "a\u{1f}b",
        "line\r\nx-evil: 1",
        "007",
        "\u{430}dmin", // with a Cyrillic а
        "admin",
        "\u{202e}nimda",
        "e\u{301}",
        "\u{e9}",
        "\u{1f600}",
        " ",
        "",
    ]
    .map(str::to_owned)
    .into();
    names.push("x".repeat(1 << 20));
    names.push("é'".repeat(100_000));
    names
}

/// By its number: not everything fits into a URL.
fn chosen(request: &Request) -> String {
    let number = request.uri().path().rsplit('/').next().unwrap();
    let control = || "control".to_owned();
    number
        .parse()
        .ok()
        .and_then(|n: usize| nasty().get(n).cloned())
        .unwrap_or_else(control)
}

async fn has_everything(site: &Site) {
    let sql = site.database.connect().await;
    sql.execute("UPDATE bystander SET n = n", &[])
        .await
        .unwrap();
    sql.query("SELECT count(*) FROM pgcache.entry", &[])
        .await
        .unwrap();
}

async fn add_a_bystander(site: &Site) {
    let sql = site.database.connect().await;
    sql.batch_execute("CREATE TABLE bystander (n int); INSERT INTO bystander VALUES (1)")
        .await
        .unwrap();
}

#[tokio::test]
async fn an_entity_of_any_text_is_found_again_and_nothing_else_is_meant() {
    let site = Site::new().await;
    add_a_bystander(&site).await;
    let depending = |scope: CacheScope, request: Request| async move {
        scope.depends_on(ITEM.entity(chosen(&request)));
        "page"
    };
    let app = Router::new().fallback(depending).layer(site.layer());
    for (n, name) in nasty().into_iter().enumerate() {
        let shown: String = name.chars().take(40).collect();
        let uri = format!("/{n}");
        for uri in [&*uri, "/control"] {
            assert_eq!(get(&app, uri, &[]).await.text(), "page", "{shown:?}");
        }
        site.settled().await;
        assert!(get(&app, &uri, &[]).await.is_hit(), "{shown:?}");
        site.cache.invalidate([ITEM.entity(&name)]).await.unwrap();
        assert!(!get(&app, &uri, &[]).await.is_hit(), "{shown:?}");
        assert!(get(&app, "/control", &[]).await.is_hit(), "{shown:?}");
        site.settled().await;
    }
    has_everything(&site).await;
}

#[derive(Clone)]
struct TenantId(String);

/// The tenant by its number, from an authentication layer.
fn authenticated(app: Router) -> Router {
    app.layer(map_request(|mut request: Request| async move {
        let tenant = TenantId(chosen(&request));
        request.extensions_mut().insert(tenant);
        *request.uri_mut() = "/".parse().unwrap();
        request
    }))
}

/// Short, and another one for each.
fn page_of(tenant: &str) -> String {
    let beginning: String = tenant.chars().take(40).collect();
    format!("page of {beginning:?}, {}", tenant.len())
}

#[tokio::test]
async fn a_tenant_of_any_text_has_its_own_answers_or_none() {
    let by_extension = || Tenant::extension(|tenant: &TenantId| tenant.0.clone());
    let site = Site::with(|builder| builder.tenant(by_extension())).await;
    add_a_bystander(&site).await;
    let own = |request: Request| async move {
        let tenant: &TenantId = request.extensions().get().unwrap();
        page_of(&tenant.0)
    };
    // the layer sees one and the same URI
    let app = Router::new().fallback(own).layer(site.layer());
    let app = authenticated(app);
    let ask = |n: usize| {
        let app = app.clone();
        async move { get(&app, &format!("/{n}"), &[]).await }
    };
    let names = nasty();
    for round in 0..2 {
        for (n, name) in names.iter().enumerate() {
            let shown: String = name.chars().take(40).collect();
            let answer = ask(n).await;
            assert_eq!(answer.text(), page_of(name));
            let has_name = !name.is_empty() && !name.contains('\0');
            assert_eq!(answer.is_hit(), round == 1 && has_name, "{shown:?}");
        }
        ask(usize::MAX).await;
        site.settled().await;
    }
    for (n, name) in names.iter().enumerate() {
        site.cache.purge_tenant(name).await.unwrap();
        assert!(!ask(n).await.is_hit());
        assert!(ask(usize::MAX).await.is_hit(), "that of another tenant");
    }
    has_everything(&site).await;
}

#[tokio::test]
async fn namespaces_groups_and_targets_of_any_text_are_no_statements() {
    let site = Site::new().await;
    add_a_bystander(&site).await;
    for (n, name) in nasty().into_iter().enumerate() {
        let other = PgCache::builder(site.database.pool(2))
            .lookup_deadline(MINUTE)
            .namespace(name.clone())
            .generation(name)
            .ttl(MINUTE)
            .build()
            .unwrap();
        let app = echoing(other.layer());
        let uri = format!("/{n}/'');DROP%20TABLE%20bystander;--?q='%22$$;--");
        let host = [("host", "a'; DROP TABLE bystander; --")];
        for round in 0..2 {
            let answer = get(&app, &uri, &host).await;
            assert_eq!((answer.status.as_u16(), answer.is_hit()), (200, round == 1));
            other.settled().await;
        }
        other.close().await;
    }
    let says = || async {
        let groups = "\"'); DROP TABLE bystander; --\"";
        (
            [
                ("cache-groups", groups),
                ("cache-group-invalidation", groups),
            ],
            "page",
        )
    };
    let app = Router::new().fallback(says).layer(site.layer());
    get(&app, "/groups", &[]).await;
    site.settled().await;
    assert!(get(&app, "/groups", &[]).await.is_hit());
    crate::site::ask(&app, "POST", "/other", &[]).await;
    assert!(!get(&app, "/groups", &[]).await.is_hit());
    has_everything(&site).await;
}
