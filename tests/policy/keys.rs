//! What tells answers apart.

use tower_pgcache::PgCache;

use crate::stage::{MINUTE, Stage, app, ask};

#[tokio::test]
async fn key_parts_tell_answers_apart() {
    let stage = Stage::new().await;
    let by_header = app(stage.layer().key_header("accept-language"));
    let (de, en) = (("accept-language", "de"), ("accept-language", "en"));
    assert!(stage.shared(&by_header, ("/1", &[de]), ("/1", &[de])).await);
    assert!(!stage.shared(&by_header, ("/1", &[de]), ("/1", &[en])).await);
    assert!(
        !stage
            .shared(&by_header, ("/1", &[de]), ("/1", &[de, en]))
            .await
    );
    assert!(
        !stage
            .shared(&by_header, ("/1", &[("accept-language", "")]), ("/1", &[]))
            .await
    );

    let by_cookie = app(stage
        .layer()
        .ignore_cookies(["theme", "_ga*"])
        .key_cookie("theme"));
    let cookie = |value| [("cookie", value)];
    assert!(
        stage
            .shared(
                &by_cookie,
                ("/2", &cookie("theme=a; _ga=1")),
                ("/2", &cookie("_ga=2;theme=a"))
            )
            .await
    );
    assert!(
        !stage
            .shared(
                &by_cookie,
                ("/2", &cookie("theme=a")),
                ("/2", &cookie("theme=b"))
            )
            .await
    );
    assert!(
        !stage
            .shared(
                &by_cookie,
                ("/2", &cookie("theme=a")),
                ("/2", &cookie("theme=a; sid=1"))
            )
            .await
    );

    let by_path = app(stage
        .layer()
        .key_with(|head| head.param("id").unwrap_or_default()));
    assert!(stage.shared(&by_path, ("/3", &[]), ("/3", &[])).await);
    assert!(!stage.shared(&by_path, ("/3", &[]), ("/4", &[])).await);
}

#[tokio::test]
async fn the_query_counts_as_the_route_says() {
    let stage = Stage::new().await;
    let table = [
        (stage.layer(), "/1?b=1&a=2", "/1?a=2&b=1", true),
        (stage.layer(), "/1?a=1&a=2", "/1?a=2&a=1", false),
        (stage.layer(), "/2", "/2?a", false),
        (
            stage.layer().untouched_query(),
            "/3?b=1&a=2",
            "/3?a=2&b=1",
            false,
        ),
        (
            stage.layer().ignore_query(["utm_*", "fbclid"]),
            "/4?utm_source=x&a=1",
            "/4?a=1&fbclid=2",
            true,
        ),
        (
            stage.layer().ignore_query(["utm_*"]),
            "/5?a=1",
            "/5?a=2",
            false,
        ),
        (
            stage.layer().only_query(["page"]),
            "/6?x=1&page=2",
            "/6?page=2",
            true,
        ),
        (
            stage.layer().only_query(["page"]),
            "/6?page=1",
            "/6?page=2",
            false,
        ),
    ];
    for (layer, one, other, same) in table {
        assert_eq!(
            stage.shared(&app(layer), (one, &[]), (other, &[])).await,
            same,
            "{one} and {other}"
        );
    }
}

#[tokio::test]
async fn an_equivalent_uri_names_the_same_answer() {
    let stage = Stage::new().await;
    let app = app(stage.layer().ignore_query(["utm_*"]));
    let stored = ("/1?a=2&b=1", &[][..]);
    assert!(
        stage
            .ends(&app, stored, ("POST", "/1?b=1&utm_x=1&a=2", &[]))
            .await
    );
    assert!(!stage.ends(&app, stored, ("POST", "/1?b=1", &[])).await);
    assert!(
        !stage
            .ends(
                &app,
                stored,
                ("POST", "/1?b=1&a=2", &[("x-do-status", "400")])
            )
            .await
    );

    assert!(stage.twice(&app, stored.0, &[]).await.is_hit());
    stage
        .cache
        .purge_uri(&"/1?b=1&a=2".parse().unwrap())
        .await
        .unwrap();
    assert!(!ask(&app, "GET", stored.0, &[]).await.is_hit());
}

#[tokio::test]
async fn applications_and_builds_are_kept_apart() {
    let stage = Stage::new().await;
    let other = |namespace: &str, generation: &str| {
        let builder = PgCache::builder(stage.database.pool(2))
            .lookup_deadline(MINUTE)
            .ttl(MINUTE);
        app(builder
            .namespace(namespace)
            .generation(generation)
            .build()
            .unwrap()
            .layer())
    };
    let own = app(stage.layer().namespace("shop").generation("1"));
    assert!(stage.twice(&own, "/1", &[]).await.is_hit());
    for (namespace, generation, is_hit) in [
        ("shop", "1", true),
        ("shop", "2", false),
        ("blog", "1", false),
        ("shop1", "", false),
    ] {
        let answer = ask(&other(namespace, generation), "GET", "/1", &[]).await;
        assert_eq!(answer.is_hit(), is_hit, "{namespace} {generation}");
    }
}
