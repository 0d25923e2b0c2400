//! How long, and whether at all.

use tower_pgcache::ClientCache;

use crate::stage::{ITEM, MINUTE, Stage, app, ask, lives_for, with_auth};

#[tokio::test]
async fn the_first_source_that_speaks_decides() {
    let stage = Stage::new().await;
    let (with_ttl, without) = (
        app(stage.layer()),
        app(stage.cache.layer().key_header("x-none")),
    );
    let age = ("x-say-cache-control", "max-age=300");
    let shared = ("x-say-cache-control", "s-maxage=200, max-age=300");
    let table: [(&str, &_, &[_], u64); 8] = [
        ("/1", &with_ttl, &[shared, ("x-answer-ttl", "100")], 100),
        (
            "/2",
            &with_ttl,
            &[shared, ("x-do-ttl", "100"), ("x-answer-ttl", "150")],
            100,
        ),
        ("/3", &with_ttl, &[shared], 200),
        ("/4", &with_ttl, &[age], 60),
        ("/5", &with_ttl, &[("x-say-cache-control", "max-age=0")], 60),
        ("/6", &without, &[age], 300),
        (
            "/7",
            &without,
            &[
                ("x-say-expires", "Fri, 01 Jan 2100 00:00:00 GMT"),
                ("x-say-date", "Thu, 31 Dec 2099 23:50:00 GMT"),
            ],
            600,
        ),
        ("/8", &without, &[("x-answer-ttl", "100")], 100),
    ];
    for (uri, app, fields, seconds) in table {
        let again = stage.twice(app, uri, fields).await;
        assert!(
            lives_for(&again, seconds),
            "{fields:?}: {}",
            again.cache_status()
        );
    }
    assert_eq!(
        stage.twice(&without, "/9", &[]).await.cache_status(),
        "fwd=uri-miss; fwd-status=200; detail=no-freshness"
    );
    for nothing in [
        ("x-do-ttl", "0"),
        ("x-answer-ttl", "0"),
        ("x-do-no-store", ""),
        ("x-answer-no-store", ""),
        ("x-say-set-cookie", "a=b"),
        ("x-say-vary", "*"),
    ] {
        assert!(
            !stage.twice(&with_ttl, "/10", &[nothing]).await.is_hit(),
            "{nothing:?}"
        );
    }
}

#[tokio::test]
async fn negative_answers_have_a_ttl_of_their_own() {
    let stage = Stage::new().await;
    let app = app(stage.layer().negative_ttl(MINUTE / 2));
    for (status, cached) in [
        ("404", true),
        ("410", true),
        ("403", false),
        ("500", false),
        ("302", false),
    ] {
        let again = stage
            .twice(&app, &format!("/{status}"), &[("x-do-status", status)])
            .await;
        assert_eq!(
            lives_for(&again, 30),
            cached,
            "{status}: {}",
            again.cache_status()
        );
    }
    assert!(lives_for(&stage.twice(&app, "/ok", &[]).await, 60));
}

#[tokio::test]
async fn until_invalidated_ends_with_a_change() {
    let stage = Stage::new().await;
    let app = app(stage.cache.layer().until_invalidated().domain(ITEM));
    let again = stage.twice(&app, "/1", &[]).await;
    let ttl: u64 = again
        .cache_status()
        .strip_prefix("hit; ttl=")
        .unwrap()
        .parse()
        .unwrap();
    assert!(ttl > 24 * 3600, "{ttl}");
    stage.cache.invalidate([ITEM]).await.unwrap();
    assert!(!ask(&app, "GET", "/1", &[]).await.is_hit());
}

#[tokio::test]
async fn what_the_route_refuses_is_not_stored() {
    let stage = Stage::new().await;
    let bypass = app(stage.layer().bypass());
    assert_eq!(
        stage.twice(&bypass, "/1", &[]).await.cache_status(),
        "fwd=bypass; fwd-status=200; detail=route"
    );

    let preview = app(stage
        .layer()
        .bypass_if(|head| head.headers().contains_key("x-preview")));
    let again = stage.twice(&preview, "/2", &[("x-preview", "")]).await;
    assert_eq!(
        again.cache_status(),
        "fwd=bypass; fwd-status=200; detail=bypass-if"
    );
    assert!(stage.twice(&preview, "/2", &[]).await.is_hit());
    assert!(
        !ask(&preview, "GET", "/2", &[("x-preview", "")])
            .await
            .is_hit()
    );

    let some = app(stage.layer().store_if(|head, answer| {
        head.param("id").as_deref() == Some("3") && !answer.headers.contains_key("x-draft")
    }));
    assert!(stage.twice(&some, "/3", &[]).await.is_hit());
    for (uri, fields) in [("/4", &[][..]), ("/3?draft", &[("x-say-x-draft", "")])] {
        let again = stage.twice(&some, uri, fields).await;
        assert_eq!(
            again.cache_status(),
            "fwd=uri-miss; fwd-status=200; detail=store-if"
        );
    }

    let small = app(stage.layer().max_body(3));
    let again = stage.twice(&small, "/5", &[]).await;
    assert!(!again.is_hit() && again.text().starts_with("call "));
    assert!(
        stage
            .twice(&app(stage.layer().max_body(100)), "/6", &[])
            .await
            .is_hit()
    );
}

#[tokio::test]
async fn browsers_are_told_the_same_by_hits_and_misses() {
    let stage = Stage::with_tenants().await;
    let field = ClientCache::Field("private, max-age=5".parse().unwrap());
    let table = [
        (None, Some("private, no-cache")),
        (Some(field), Some("private, max-age=5")),
        (Some(ClientCache::Unchanged), None),
    ];
    for (i, (setting, expected)) in table.into_iter().enumerate() {
        let layer = stage.layer().domain(ITEM);
        let app = with_auth(app(match setting {
            Some(setting) => layer.client_cache(setting),
            None => layer,
        }));
        let (uri, tenant) = (format!("/{i}"), ("x-tenant", "acme"));
        let miss = ask(&app, "GET", &uri, &[tenant]).await;
        let hit = stage.twice(&app, &uri, &[tenant]).await;
        assert!(!miss.is_hit() && hit.is_hit());
        assert_eq!(
            (miss.header("cache-control"), hit.header("cache-control")),
            (expected, expected)
        );
        // the handler's own word stands
        let own = [tenant, ("x-say-cache-control", "max-age=7")];
        let (uri, expected) = (format!("/own{i}"), Some("max-age=7"));
        assert_eq!(
            ask(&app, "GET", &uri, &own).await.header("cache-control"),
            expected
        );
        assert_eq!(
            stage.twice(&app, &uri, &own).await.header("cache-control"),
            expected
        );
    }
}
