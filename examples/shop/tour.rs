//! A few requests that show what the cache does, and a check that it does.

use std::error::Error;
use std::net::SocketAddr;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tower_pgcache::PgCache;

/// What a step asks, and what `Cache-Status` has to contain. A body makes it a PUT.
struct Step {
    tenant: &'static str,
    path: &'static str,
    body: Option<&'static str>,
    expected: &'static str,
    what: &'static str,
}

const fn read(
    tenant: &'static str,
    path: &'static str,
    expected: &'static str,
    what: &'static str,
) -> Step {
    Step {
        tenant,
        path,
        body: None,
        expected,
        what,
    }
}

/// Product 3 belongs to acme.
const STEPS: [Step; 8] = [
    read("acme", "/products/3", "stored", "computed"),
    read("acme", "/products/3", "hit", "stored in Postgres"),
    read("acme", "/products/6", "stored", "another product"),
    read("bolt", "/products", "stored", "another tenant"),
    Step {
        tenant: "acme",
        path: "/products/3/price",
        body: Some(r#"{"amount": 7}"#),
        expected: "",
        what: "a new price",
    },
    read(
        "acme",
        "/products/3",
        "stored",
        "its product is computed again",
    ),
    read("acme", "/products/6", "hit", "the other product has stayed"),
    read("bolt", "/products", "hit", "and the other tenant"),
];

/// Whether every step went as expected.
pub(crate) async fn take(address: SocketAddr, cache: &PgCache) -> Result<bool, Box<dyn Error>> {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let mut all_good = true;
    for step in STEPS {
        let request = Request::builder()
            .method(if step.body.is_some() { "PUT" } else { "GET" })
            .uri(format!("http://{address}{}", step.path))
            .header("x-tenant", step.tenant)
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(step.body.unwrap_or_default())))?;
        let (head, body) = client.request(request).await?.into_parts();
        let body: Value = serde_json::from_slice(&body.collect().await?.to_bytes())?;
        // an answer is stored in the background: let that come to its end before the next step
        cache.settled().await;
        let status = head.headers.get("cache-status");
        let status = status.and_then(|v| v.to_str().ok()).unwrap_or_default();
        let good = head.status.is_success() && status.contains(step.expected);
        all_good &= good;
        println!(
            "{} {:<5} {:<18} version {:<5} {status:<50} {}",
            if good { ' ' } else { '!' },
            step.tenant,
            step.path,
            body["version"],
            step.what
        );
    }
    Ok(all_good)
}
