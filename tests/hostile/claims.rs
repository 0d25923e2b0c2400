//! Poisoning: a request that shapes the answer that others get, with what is no part of a usual key.

use axum::Router;
use axum::extract::Request;
use axum::middleware::map_request;
use http::Method;
use test_support::wire::serve;

use crate::site::{Site, ask, echo, echoing, exchange, get};

/// Each stands alone beside a usual `Host`.
const FIELDS: [&str; 27] = [
    "x-forwarded-host: evil.example",
    "x-forwarded-host: evil.example, shop.example",
    "x-forwarded-proto: evil",
    "x-forwarded-protocol: evil",
    "x-forwarded-scheme: evil",
    "x-forwarded-ssl: evil",
    "x-forwarded-port: evil",
    "x-forwarded-prefix: /evil",
    "x-forwarded-path: /evil",
    "x-forwarded-uri: /evil",
    "x-host: evil.example",
    "x-original-host: evil.example",
    "x-http-host-override: evil.example",
    "x-scheme: evil",
    "x-url-scheme: evil",
    "x-original-url: /evil",
    "x-original-uri: /evil",
    "x-rewrite-url: /evil",
    "front-end-https: evil",
    "forwarded: host=evil.example",
    "forwarded: for=192.0.2.1;host=evil.example, for=192.0.2.2",
    "forwarded: for=\"x;host=evil.example\"",
    "x-http-method-override: EVIL",
    "x-http-method: EVIL",
    "x-method-override: EVIL",
    "connection: x-forwarded-host, close\r\nx-forwarded-host: evil.example",
    "X-FORWARDED-HOST: evil.example\r\nx-forwarded-host: shop.example",
];

/// Requests that are odd as a whole; `/0` stands for the path.
const REQUESTS: [&str; 18] = [
    "GET /0 HTTP/1.1\r\nhost: shop.example\r\nhost: evil.example\r\n\r\n",
    "GET /0 HTTP/1.1\r\nhost: evil.example\r\n\r\n",
    "GET /0 HTTP/1.1\r\nhost: sHop.exaMple\r\n\r\n",
    "GET http://sHop.exaMple/0 HTTP/1.1\r\nhost: shop.example\r\n\r\n",
    "GET /0 HTTP/1.1\r\nhost: evil@shop.example\r\n\r\n",
    "GET /0 HTTP/1.0\r\nx-host: evil\r\n\r\n",
    "GET http://evil.example/0 HTTP/1.1\r\nhost: shop.example\r\n\r\n",
    "GET http://shop.example/0 HTTP/1.1\r\nhost: evil.example\r\n\r\n",
    "GET evil://shop.example/0 HTTP/1.1\r\nhost: shop.example\r\n\r\n",
    "GET /0#evil HTTP/1.1\r\nhost: shop.example\r\n\r\n",
    "GET /0 HTTP/1.1\r\nhost: shop.example\r\ncontent-length: 4\r\n\r\nevil",
    "GET /0 HTTP/1.1\r\nhost: shop.example\r\ntransfer-encoding: chunked\r\n\r\n4\r\nevil\r\n0\r\n\r\n",
    "GET /0 HTTP/1.1\r\nhost: shop.example\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\nevil!",
    "GET /0 HTTP/1.1\r\nhost: shop.example\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n4\r\nevil\r\n0\r\n\r\n",
    "HEAD /0 HTTP/1.1\r\nhost: shop.example\r\nx-forwarded-host: evil\r\n\r\n",
    "evil /0 HTTP/1.1\r\nhost: shop.example\r\n\r\n",
    "GET /0 HTTP/1.1\r\nhost: shop.example\r\nauthorization: evil\r\n\r\n",
    "GET /0 HTTP/1.1\r\nhost: shop.example\r\ncookie: sid=evil\r\n\r\n",
];

/// The hostile request comes first, and its answer has every chance to be stored.
#[tokio::test]
async fn what_a_request_says_about_its_target_shapes_nobody_elses_answer() {
    let site = Site::new().await;
    let address = site.serve_echo().await;
    let by_field = FIELDS
        .iter()
        .map(|field| format!("GET /0 HTTP/1.1\r\nhost: shop.example\r\n{field}\r\n\r\n"));
    let requests = by_field.chain(REQUESTS.map(str::to_owned));
    let mut shaped = 0;
    for (n, hostile) in requests.enumerate() {
        let at = |request: &str| {
            let request = request.replacen("/0", &format!("/{n}"), 1);
            request.replacen("\r\n", "\r\nconnection: close\r\n", 1)
        };
        let answer = exchange(address, at(&hostile).as_bytes()).await;
        shaped += usize::from(answer.to_lowercase().contains("evil"));
        site.settled().await;
        let usual = at("GET /0 HTTP/1.1\r\nhost: shop.example\r\n\r\n");
        let victim = exchange(address, usual.as_bytes()).await;
        assert!(victim.starts_with("HTTP/1.1 200"), "{victim}");
        assert!(!victim.contains("sHop"), "{hostile}\n{victim}");
        assert!(
            !victim.to_lowercase().contains("evil"),
            "{hostile}\n{victim}"
        );
        site.settled().await;
        let next = exchange(address, usual.as_bytes()).await;
        assert!(next.contains("pgcache; hit"), "{hostile}\n{next}");
    }
    // nearly all got as far as the handler; otherwise this would prove nothing
    assert!(shaped >= FIELDS.len() + 8, "only {shaped}");
}

#[tokio::test]
async fn a_proxy_that_says_the_same_of_every_request_costs_no_hit() {
    let site = Site::new().await;
    let app = echoing(site.layer());
    let from = |client: &'static str, forwarded: &'static str| {
        [
            ("host", "shop.internal"),
            ("x-forwarded-for", client),
            ("x-real-ip", client),
            ("x-forwarded-host", "shop.example"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-port", "443"),
            ("forwarded", forwarded),
        ]
    };
    let ann = from("192.0.2.1", "for=192.0.2.1;host=shop.example;proto=https");
    let bob = from(
        "192.0.2.2",
        "for=\"[2001:db8::1]:4711\";host=shop.example;proto=https",
    );
    get(&app, "/", &ann).await;
    site.settled().await;
    assert!(get(&app, "/", &bob).await.is_hit());
}

/// The override stands inside the cache, where it sees a GET.
#[tokio::test]
async fn a_method_in_a_field_is_neither_stored_nor_answered_from_the_store() {
    let site = Site::new().await;
    let overriding = map_request(|mut request: Request| async move {
        if let Some(method) = request.headers().get("x-http-method-override") {
            *request.method_mut() = Method::from_bytes(method.as_bytes()).unwrap();
        }
        request
    });
    let app = Router::new()
        .fallback(echo)
        .layer(overriding)
        .layer(site.layer());
    let delete = [("x-http-method-override", "DELETE")];
    for _ in 0..2 {
        let answer = get(&app, "/1", &delete).await;
        assert!(answer.text().starts_with("DELETE /1"), "{}", answer.text());
        assert!(answer.cache_status().starts_with("fwd=method"));
        site.settled().await;
    }
    assert!(get(&app, "/1", &[]).await.text().starts_with("GET /1"));
    site.settled().await;
    let answer = get(&app, "/1", &delete).await;
    assert!(answer.text().starts_with("DELETE"), "the stored GET");
    // who asks for what the request is anyhow loses nothing
    assert!(
        get(&app, "/1", &[("x-http-method-override", "GET")])
            .await
            .is_hit()
    );
    // nor do questions in a body
    let searching = echoing(site.layer().safe_post(100));
    for _ in 0..2 {
        let answer = ask(&searching, "POST", "/2", &delete).await;
        assert!(answer.cache_status().starts_with("fwd=method"));
        site.settled().await;
    }
}

/// What the client asks about its own copy is not what is stored for others.
#[tokio::test]
async fn preconditions_and_ranges_of_one_client_do_not_cut_what_others_get() {
    let site = Site::new().await;
    let address = serve(echoing(site.layer())).await;
    let fields = [
        "range: bytes=0-0",
        "range: bytes=9999999-",
        "if-none-match: *",
        "if-match: \"none\"",
        "if-unmodified-since: Thu, 01 Jan 1970 00:00:00 GMT",
        "if-modified-since: Fri, 01 Jan 2100 00:00:00 GMT",
        "if-range: \"x\"\r\nrange: bytes=0-0",
    ];
    for (n, field) in fields.into_iter().enumerate() {
        let request = |field: &str| {
            format!("GET /{n} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{field}\r\n\r\n")
        };
        exchange(address, request(field).as_bytes()).await;
        site.settled().await;
        let victim = exchange(address, request("accept: */*").as_bytes()).await;
        assert!(victim.starts_with("HTTP/1.1 200"), "{field}\n{victim}");
        assert!(victim.contains(&format!("GET /{n} ")), "{field}\n{victim}");
    }
}
