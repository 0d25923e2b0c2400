//! Fields that are long, many, or lists without end.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue};
use test_support::http::send;

use crate::site::{MINUTE, Site, get};

const LONG: usize = 60_000;

#[tokio::test]
async fn long_values_that_count_are_told_apart_and_take_no_room() {
    let site = Site::new().await;
    let varying = |request: Request| async move {
        let sum = |name: &str| {
            request
                .headers()
                .get_all(name)
                .iter()
                .fold(0, |n, v| n + v.len())
        };
        let body = format!(
            "{} {} {}",
            sum("x-part"),
            sum("x-vary"),
            sum("accept-encoding")
        );
        ([("vary", "x-vary, accept-encoding")], body)
    };
    let app = Router::new()
        .fallback(varying)
        .layer(site.layer().key_header("x-part"));
    for round in 0..2 {
        for n in 0..5 {
            let long = "x, ".repeat(LONG / 3 + n);
            let answers = [
                get(&app, "/", &[("x-part", &long)]).await,
                get(&app, "/", &[("x-vary", &long)]).await,
                get(&app, "/", &[("accept-encoding", &long)]).await,
                get(&app, "/", &[("x-vary", "short"), ("x-part", &long)]).await,
            ];
            let length = long.len();
            let expected = [
                format!("{length} 0 0"),
                format!("0 {length} 0"),
                format!("0 0 {length}"),
                format!("{length} 5 0"),
            ];
            for (answer, expected) in answers.iter().zip(expected) {
                assert_eq!(answer.text(), expected);
                assert_eq!(answer.is_hit(), round == 1, "{expected}");
            }
        }
        site.settled().await;
    }
    let sql = site.database.connect().await;
    let size = "SELECT sum(pg_column_size(e))::bigint FROM pgcache.entry e";
    let size: i64 = sql.query_one(size, &[]).await.unwrap().get(0);
    assert!(size < 100_000, "{size} bytes");
}

#[tokio::test]
async fn many_fields_are_no_fault_in_requests_or_answers() {
    let site = Site::new().await;
    let many = |request: Request| async move {
        let mut answer = "page".into_response();
        if let Some(count) = request.uri().path().strip_prefix("/same/") {
            for _ in 0..count.parse::<usize>().unwrap() {
                answer
                    .headers_mut()
                    .append("x-a", HeaderValue::from_static("1"));
            }
        }
        if let Some(count) = request.uri().path().strip_prefix("/other/") {
            for n in 0..count.parse::<usize>().unwrap() {
                let name: http::HeaderName = format!("x-{n}").parse().unwrap();
                answer
                    .headers_mut()
                    .insert(name, HeaderValue::from_static("1"));
            }
        }
        answer
    };
    let app = Router::new().fallback(many).layer(site.layer());
    for uri in [
        "/",
        "/same/1000",
        "/same/24000",
        "/same/24576",
        "/same/40000",
        "/other/1000",
        "/other/24000",
        "/other/24570",
    ] {
        for _ in 0..2 {
            let mut request = Request::get(uri).body(Body::empty()).unwrap();
            for n in 0..10_000 {
                let name: http::HeaderName = format!("x-f-{n}").parse().unwrap();
                request
                    .headers_mut()
                    .insert(name, HeaderValue::from_static("1"));
            }
            request.headers_mut().extend((0..10_000).map(|_| {
                (
                    http::header::ACCEPT,
                    HeaderValue::from_static("text/*;q=0.1"),
                )
            }));
            let answer = send(&app, request).await;
            assert_eq!(answer.text(), "page", "{uri}");
            let count = uri.rsplit('/').next().unwrap().parse().unwrap_or(0);
            assert!(answer.headers.len() >= count, "{uri}");
            site.settled().await;
        }
    }
}

fn app_with_body(site: &Site, body: Bytes) -> Router {
    let handler = || async move { ([("etag", "\"tag\"")], body) };
    Router::new().fallback(handler).layer(site.layer())
}

#[tokio::test]
async fn ranges_get_no_more_than_the_body() {
    let site = Site::new().await;
    let body: Bytes = (0..1_000_000u32)
        .map(|n| n as u8)
        .collect::<Vec<_>>()
        .into();
    let app = app_with_body(&site, body.clone());
    get(&app, "/", &[]).await;
    site.settled().await;
    let list = |range: &dyn Fn(u64) -> String| {
        let ranges: Vec<String> = (0..10_000).map(range).collect();
        format!("bytes={}", ranges.join(","))
    };
    let huge = "9".repeat(50_000);
    let bombs = [
        list(&|_| "0-".to_owned()),
        list(&|n| format!("{n}-")),
        list(&|n| format!("{}-{}", 2 * n, 2 * n)),
        list(&|n| format!("{}-{}", 20_000 - 2 * n, 20_000 - 2 * n)),
        list(&|n| format!("0-{n}")),
        list(&|_| "-1".to_owned()),
        format!("bytes=0-{huge}"),
        format!("bytes={huge}-"),
        format!("bytes={huge}-{huge}"),
        format!("bytes=-{huge}"),
        format!("bytes={}", ",".repeat(50_000)),
        format!("bytes=0-0{}", " ".repeat(50_000)),
        "bytes=5-2".to_owned(),
        "bytes=--1".to_owned(),
        "bytes=\u{b2}-".to_owned(),
    ];
    for bomb in &bombs {
        let mut request = Request::get("/").body(Body::empty()).unwrap();
        let value = HeaderValue::from_bytes(bomb.as_bytes()).unwrap();
        request.headers_mut().insert("range", value);
        let before = heap::living().bytes;
        let answer = send(&app, request).await;
        let shown = &bomb[..bomb.len().min(40)];
        assert!(answer.is_hit(), "{shown}");
        assert!(answer.body.len() <= body.len(), "{shown}");
        match answer.status.as_u16() {
            200 => assert_eq!(answer.body, body, "{shown}"),
            206 => assert!(!answer.body.is_empty(), "{shown}"),
            status => assert_eq!((status, answer.body.len()), (416, 0), "{shown}"),
        }
        let took = heap::living().bytes - before;
        assert!(took < 16 << 20, "{shown}: {took} bytes");
    }
}

#[tokio::test]
async fn lists_without_end_are_read_to_theirs() {
    let site = Site::new().await;
    let app = app_with_body(&site, Bytes::from_static(b"page"));
    get(&app, "/", &[]).await;
    site.settled().await;
    let tags: String = (0..10_000).map(|n| format!("W/\"{n}\", ")).collect();
    let answer = get(&app, "/", &[("if-none-match", &tags)]).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (200, "page"));
    let answer = get(&app, "/", &[("if-none-match", &format!("{tags}\"tag\""))]).await;
    assert_eq!(answer.status, 304);
    let answer = get(&app, "/", &[("if-match", &tags)]).await;
    assert_eq!(answer.status, 412);

    // of many directives the last one counts, too
    let noise: String = (0..10_000).map(|n| format!("x{n}=\"a,b\", ")).collect();
    let obeying = |end: &'static str| {
        let said = format!("{noise}{end}");
        let handler = || async move { ([("cache-control", said)], "page") };
        Router::new()
            .fallback(handler)
            .layer(site.layer().request_directives(true))
    };
    for (n, (end, is_stored)) in [
        ("max-age=60", true),
        ("no-store", false),
        ("private", false),
    ]
    .into_iter()
    .enumerate()
    {
        let app = obeying(end);
        let uri = format!("/{n}");
        get(&app, &uri, &[]).await;
        site.settled().await;
        assert_eq!(get(&app, &uri, &[]).await.is_hit(), is_stored, "{end}");
        let asked = format!("{noise}no-cache");
        let answer = get(&app, &uri, &[("cache-control", &asked)]).await;
        assert!(!answer.is_hit(), "{end}");
    }
}

/// What is stored for one kind of client is never for the other.
#[tokio::test]
async fn odd_preferences_get_what_they_mean() {
    fn accepts_gzip(headers: &HeaderMap) -> bool {
        let lines = headers.get_all("accept-encoding").iter();
        let joined: Vec<&str> = lines.map(|line| line.to_str().unwrap()).collect();
        joined.join(",").split(',').any(|member| {
            let member = member.to_ascii_lowercase().replace([' ', '\t'], "");
            member.split(';').next() == Some("gzip") && !member.contains("q=0")
        })
    }
    async fn coded(request: Request) -> Response {
        let coding = if accepts_gzip(request.headers()) {
            "gzip"
        } else {
            "identity"
        };
        ([("vary", "accept-encoding")], coding).into_response()
    }
    let site = Site::new().await;
    let app = Router::new().fallback(coded).layer(site.layer());
    let long = "gzip;q=0,".repeat(5_000);
    let oddities: [&[&str]; 18] = [
        &[],
        &[""],
        &[","],
        &["gzip"],
        &["GZIP"],
        &["gzip;q=0"],
        &["gzip; q=0"],
        &["gzip ;\tQ=0"],
        &["gzip;q=0.000"],
        &["identity;q=0, gzip"],
        &["gzip", "br"],
        &["br", "gzip"],
        &["br,gzip;q=0"],
        &["*"],
        &["\"gzip\""],
        &["xgzip, gzipx"],
        &["br;x=\"a, gzip;q=0"],
        &[&long],
    ];
    for _ in 0..2 {
        for values in oddities {
            let fields: Vec<_> = values
                .iter()
                .map(|value| ("accept-encoding", *value))
                .collect();
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("accept-encoding", value.parse().unwrap());
            }
            let expected = if accepts_gzip(&headers) {
                "gzip"
            } else {
                "identity"
            };
            let answer = tokio::time::timeout(MINUTE, get(&app, "/", &fields))
                .await
                .unwrap();
            assert_eq!(answer.text(), expected, "{values:?}");
        }
        site.settled().await;
    }
}
