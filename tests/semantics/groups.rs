//! `Cache-Groups` and `Cache-Group-Invalidation` (RFC 9875).

use tower_pgcache::{PgCache, PgCacheLayer, Tenant};

use super::stage::{Fields, MINUTE, Origin, Stage, says};

fn one_origin(layer: PgCacheLayer) -> PgCacheLayer {
    layer
}

/// GETs are in the group that `x-group` names, and others invalidate it.
fn grouped(request: &http::request::Parts) -> axum::response::Response {
    let group = request
        .headers
        .get("x-group")
        .map_or("", |g| g.to_str().unwrap());
    let field = if request.method == "GET" {
        "cache-groups"
    } else {
        "cache-group-invalidation"
    };
    says(200, &[(field, group), ("cache-control", "max-age=60")], "x")
}

async fn stored(stage: &Stage, uri: &str, fields: Fields<'_>) -> bool {
    stage.ask("GET", uri, fields).await.is_hit()
}

#[tokio::test]
async fn an_unsafe_request_invalidates_groups_of_its_origin() {
    let stage = Stage::saying(one_origin, grouped).await;
    let get: Fields<'_> = &[("host", "one.test"), ("x-group", r#""a", "b c""#)];
    let elsewhere: Fields<'_> = &[("host", "two.test"), ("x-group", r#""a""#)];
    stage.ask("GET", "/a", get).await;
    stage.ask("GET", "/a", elsewhere).await;
    for (group, ends) in [
        (r#""other""#, false),
        (r#""A""#, false),
        ("a", false),
        (r#""other", "b c""#, true),
        (r#""a""#, true),
    ] {
        assert!(stored(&stage, "/a", get).await);
        let fields = [("host", "one.test"), ("x-group", group)];
        stage.ask("POST", "/elsewhere", &fields).await;
        assert_eq!(!stored(&stage, "/a", get).await, ends, "{group}");
        assert!(stored(&stage, "/a", elsewhere).await, "another origin");
    }
    // a safe request invalidates nothing, and neither does one that failed
    stage.origin.now_says(|_| {
        let fields = [
            ("cache-group-invalidation", r#""a""#),
            ("cache-control", "no-store"),
        ];
        says(404, &fields, "x")
    });
    stage.ask("POST", "/elsewhere", get).await;
    stage.ask("GET", "/elsewhere", get).await;
    assert!(stored(&stage, "/a", get).await);
}

#[tokio::test]
async fn of_many_groups_the_last_one_is_invalidated_too() {
    let stage = Stage::saying(one_origin, grouped).await;
    let get: Fields<'_> = &[("x-group", r#""mine""#)];
    stage.ask("GET", "/a", get).await;
    assert!(stored(&stage, "/a", get).await);
    let many: Vec<_> = (0..3_000).map(|n| format!("\"{n}\"")).collect();
    let many = format!("{}, \"mine\"", many.join(", "));
    stage
        .ask("POST", "/elsewhere", &[("x-group", many.as_str())])
        .await;
    assert!(!stored(&stage, "/a", get).await);
}

#[tokio::test]
async fn an_answer_of_a_group_that_cannot_be_invalidated_is_not_stored() {
    let stage = Stage::saying(one_origin, grouped).await;
    for (length, is_stored) in [(1_024, true), (1_025, false)] {
        let group = format!("\"short\", \"{}\"", "x".repeat(length));
        let get: Fields<'_> = &[("x-group", group.as_str())];
        let uri = format!("/{length}");
        stage.ask("GET", &uri, get).await;
        assert_eq!(stored(&stage, &uri, get).await, is_stored, "{length}");
        stage.ask("POST", "/elsewhere", get).await;
        assert!(!stored(&stage, &uri, get).await, "{length}");
    }
}

#[derive(Clone)]
struct TenantId(String);

#[tokio::test]
async fn groups_are_those_of_a_tenant() {
    let database = test_support::database().await;
    let cache = PgCache::builder(database.pool(4))
        .tenant(Tenant::extension(|t: &TenantId| t.0.clone()))
        .lookup_deadline(MINUTE)
        .build()
        .unwrap();
    // or the first request would have to make the schema within the lookup deadline
    cache.ready().await.unwrap();
    let origin = Origin::saying(grouped);
    let app = origin
        .router(cache.layer().shared_by_tenant())
        .layer(axum::middleware::map_request(
            |mut request: axum::extract::Request| async move {
                let tenant = request.headers()["x-tenant"].to_str().unwrap().to_owned();
                request.extensions_mut().insert(TenantId(tenant));
                request
            },
        ));
    let stage = Stage {
        database,
        cache,
        origin,
        app,
    };
    let one: Fields<'_> = &[
        ("host", "one.test"),
        ("x-tenant", "one"),
        ("x-group", r#""a""#),
    ];
    let two: Fields<'_> = &[
        ("host", "one.test"),
        ("x-tenant", "two"),
        ("x-group", r#""a""#),
    ];
    for fields in [one, two] {
        stage.ask("GET", "/a", fields).await;
        assert!(stored(&stage, "/a", fields).await);
    }
    stage.ask("POST", "/b", one).await;
    assert!(!stored(&stage, "/a", one).await);
    assert!(stored(&stage, "/a", two).await);
}

#[tokio::test]
async fn groups_may_be_domains() {
    for on in [false, true] {
        let stage = Stage::saying(|l| l.groups_as_domains(on), grouped).await;
        let get: Fields<'_> = &[("host", "one.test"), ("x-group", r#""item", "No Domain""#)];
        stage.ask("GET", "/a", get).await;
        stage.commit().await;
        assert_eq!(stored(&stage, "/a", get).await, !on);
        let post = [("host", "two.test"), ("x-group", r#""item""#)];
        stage.ask("POST", "/b", &post).await;
        assert_eq!(stored(&stage, "/a", get).await, !on);
    }
}
