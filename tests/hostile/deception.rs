//! Cache deception: a victim is led to a URL that looks like something public, and its private answer is fetched
//! from the cache afterwards.

use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::header::SET_COOKIE;

use crate::site::{Site, get};

const TARGETS: [&str; 10] = [
    "/account/x.css",
    "/account%2fx.css",
    "/account;x.css",
    "/account/..%2fstatic/x.css",
    "/static/..%2faccount",
    "/account?x.css",
    "/account%3fx.css",
    "/account%23.css",
    "/account/%2e%2e/static/x.css",
    "/account%00.css",
];

/// Whatever the URL looks like, this handler finds the account in it.
async fn account(request: Request) -> Response {
    let credentials = [
        "authorization",
        "cookie",
        "x-api-key",
        "x-auth-token",
        "x-session",
    ];
    let who = credentials
        .iter()
        .find_map(|name| request.headers().get(*name));
    let mut answer = format!("account of {who:?}").into_response();
    if let Some(who) = request.headers().get("x-session") {
        answer.headers_mut().insert(SET_COOKIE, who.clone());
    }
    answer
}

#[tokio::test]
async fn a_private_answer_is_not_stored_because_its_url_looks_public() {
    let site = Site::new().await;
    let app = Router::new().fallback(account).layer(site.layer());
    let credentials = [
        ("authorization", "Bearer secret"),
        ("cookie", "sid=secret"),
        ("x-api-key", "secret"),
        ("x-auth-token", "secret"),
        // known by no name, but the answer sets a cookie
        ("x-session", "sid=secret"),
    ];
    for target in TARGETS {
        for credential in credentials {
            let victim = get(&app, target, &[credential]).await;
            assert!(victim.text().contains("secret"));
            site.settled().await;
            for fields in [&[][..], &[("accept", "text/css")]] {
                let thief = get(&app, target, fields).await;
                assert!(!thief.text().contains("secret"), "{target} {credential:?}");
                assert!(thief.header("set-cookie").is_none());
            }
            // what is stored by now is the answer for nobody, and the victim does not get it either
            let victim = get(&app, target, &[credential]).await;
            let is_known = credential.0 != "x-session";
            assert_eq!(victim.text().contains("secret"), is_known, "{target}");
            site.cache.clear().await.unwrap();
        }
    }
}
