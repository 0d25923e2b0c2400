//! What is stored, for how long, and that it comes back as it was.

use axum::body::Body;
use axum::response::Response;
use http::HeaderValue;
use tower_pgcache::PgCacheLayer;

use super::stage::{Fields, LONG_AGO, Stage, says, shared_cache};

/// For how many seconds such an answer is fresh; `None` if it is not stored.
async fn fresh_for(
    configure: fn(PgCacheLayer) -> PgCacheLayer,
    status: u16,
    fields: Fields<'static>,
    request: Fields<'_>,
) -> Option<i64> {
    let stage = Stage::saying(configure, move |_| says(status, fields, "x")).await;
    stage.get(request).await;
    let row = stage
        .sql()
        .await
        .query_opt(
            "SELECT round(extract(epoch FROM expires_at - clock_timestamp()) / 10)::bigint * 10 \
             FROM pgcache.entry",
            &[],
        )
        .await
        .unwrap();
    row.map(|row| row.get(0))
}

fn application(layer: PgCacheLayer) -> PgCacheLayer {
    layer
}

#[tokio::test]
async fn freshness_comes_from_the_most_specific_source() {
    let cases: &[(Fields<'static>, Option<i64>, Option<i64>)] = &[
        (&[("cache-control", "max-age=100")], Some(100), Some(100)),
        (
            &[("cache-control", "max-age=100, s-maxage=200")],
            Some(200),
            Some(200),
        ),
        (
            &[("cache-control", "max-age=100"), ("age", "40")],
            Some(60),
            Some(60),
        ),
        (
            &[
                ("date", LONG_AGO),
                ("expires", "Thu, 01 Jan 2026 00:05:00 GMT"),
            ],
            Some(300),
            Some(300),
        ),
        (
            &[("cache-control", "max-age=100"), ("expires", LONG_AGO)],
            Some(100),
            Some(100),
        ),
        // of use to the shared cache when the inner service fails
        (&[("expires", "0")], None, Some(0)),
        (&[], None, None),
        (
            &[
                ("date", "Sun, 11 Jan 2026 00:00:00 GMT"),
                ("last-modified", "Sat, 10 Jan 2026 00:00:00 GMT"),
            ],
            None,
            Some(8640),
        ),
        (
            &[
                ("cache-control", "max-age=100"),
                ("cdn-cache-control", "max-age=700"),
            ],
            Some(700),
            Some(700),
        ),
        (
            &[
                ("cache-control", "no-store"),
                ("cdn-cache-control", "max-age=700"),
            ],
            Some(700),
            Some(700),
        ),
        (
            &[
                ("cache-control", "max-age=100"),
                ("cdn-cache-control", "no-store"),
            ],
            None,
            None,
        ),
        (
            &[
                ("cache-control", "max-age=100"),
                ("cdn-cache-control", "max-age=700,"),
            ],
            Some(100),
            Some(100),
        ),
        (
            &[("cache-control", "no-store, must-understand, max-age=100")],
            Some(100),
            Some(100),
        ),
        (&[("cache-control", "max-age=100, private")], None, None),
    ];
    for (fields, in_application, in_shared_cache) in cases {
        let found = fresh_for(application, 200, fields, &[]).await;
        assert_eq!(found, *in_application, "application: {fields:?}");
        let found = fresh_for(shared_cache, 200, fields, &[]).await;
        assert_eq!(found, *in_shared_cache, "shared cache: {fields:?}");
    }
}

#[tokio::test]
async fn the_presets_differ_in_what_they_dare() {
    let cookie: Fields<'static> = &[("set-cookie", "a=b"), ("cache-control", "max-age=100")];
    assert_eq!(fresh_for(application, 200, cookie, &[]).await, None);
    assert_eq!(fresh_for(shared_cache, 200, cookie, &[]).await, Some(100));
    let no_cache: Fields<'static> = &[("etag", "\"1\""), ("cache-control", "no-cache")];
    assert_eq!(fresh_for(application, 200, no_cache, &[]).await, None);
    assert_eq!(fresh_for(shared_cache, 200, no_cache, &[]).await, Some(0));
    let limited: Fields<'static> = &[("cache-control", "max-age=100")];
    assert_eq!(fresh_for(application, 429, limited, &[]).await, None);
    assert_eq!(fresh_for(shared_cache, 429, limited, &[]).await, Some(100));
    for preset in [application, shared_cache] {
        let unknown = fresh_for(preset, 299, limited, &[]).await;
        assert_eq!(unknown, Some(100), "explicit freshness is enough");
        let understood: Fields<'static> =
            &[("cache-control", "no-store, must-understand, max-age=100")];
        assert_eq!(fresh_for(preset, 599, understood, &[]).await, None);
        assert_eq!(fresh_for(preset, 206, limited, &[]).await, None);
    }
}

#[tokio::test]
async fn the_shared_cache_asks_the_answer_about_authorization() {
    let authorized: Fields<'_> = &[("authorization", "Bearer a")];
    for (says, stored) in [
        (&[("cache-control", "max-age=100")][..], None),
        (&[("cache-control", "max-age=100, public")], Some(100)),
        (&[("cache-control", "s-maxage=100")], Some(100)),
        (
            &[("cache-control", "max-age=100, must-revalidate")],
            Some(100),
        ),
    ] {
        let found = fresh_for(shared_cache, 200, says, authorized).await;
        assert_eq!(found, stored, "{says:?}");
        assert_eq!(fresh_for(application, 200, says, authorized).await, None);
    }
}

#[tokio::test]
async fn fields_come_back_byte_for_byte_without_those_of_the_connection() {
    let stage = Stage::saying(application, |_| {
        let mut answer: Response = says(
            200,
            &[
                ("cache-control", "max-age=100"),
                ("x-many", "b, c"),
                ("x-many", ""),
                ("x-many", "a"),
                ("connection", "x-hop, close"),
                ("x-hop", "1"),
                ("keep-alive", "timeout=5"),
                ("proxy-authenticate", "Basic"),
                ("upgrade", "h2c"),
                ("te", "trailers"),
            ],
            Body::from(&b"\xff\x00\xfe"[..]),
        );
        let obs_text = HeaderValue::from_bytes(b"\xe4\xf6 \xff").unwrap();
        answer.headers_mut().insert("x-bytes", obs_text);
        answer
    })
    .await;
    stage.get(&[]).await;
    let answer = stage.get(&[]).await;
    assert!(answer.is_hit());
    assert_eq!(answer.body, &b"\xff\x00\xfe"[..]);
    let many: Vec<_> = answer.headers.get_all("x-many").iter().collect();
    assert_eq!(many, ["b, c", "", "a"]);
    assert_eq!(answer.headers["x-bytes"].as_bytes(), b"\xe4\xf6 \xff");
    for name in [
        "connection",
        "x-hop",
        "keep-alive",
        "proxy-authenticate",
        "upgrade",
        "te",
    ] {
        assert_eq!(answer.header(name), None, "{name}");
    }
    assert!(answer.header("date").is_some());
}
