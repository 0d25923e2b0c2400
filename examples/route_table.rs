//! A service that is not axum: a tower service on hyper, with all settings in one table of routes.
//!
//! `cargo run --example route_table`, then `curl -i http://127.0.0.1:3000/products/7` twice.

use std::convert::Infallible;
use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tower::{ServiceBuilder, service_fn};
use tower_pgcache::{Domain, PgCacheLayer, Route, domain};

const PRODUCT: Domain = domain!("product");

async fn shop(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, path) => (StatusCode::OK, format!("computed for {path}\n")),
        (&Method::POST, _) => (StatusCode::CREATED, "created\n".to_owned()),
        _ => (StatusCode::METHOD_NOT_ALLOWED, String::new()),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    Ok(response)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let pool = test_support::try_database().await?.pool(8); // an application has its own
    let cache = PgCacheLayer::builder(pool)
        .route(
            Route::get("/products")
                .ttl(Duration::from_secs(60))
                .domain(PRODUCT),
        )
        .route(
            Route::get("/products/{id}")
                .ttl(Duration::from_secs(300))
                .entity(PRODUCT, "id"),
        )
        .route(Route::post("/products").invalidates(PRODUCT))
        .route(Route::get("/health").bypass())
        .build()?;
    let service = ServiceBuilder::new().layer(cache).service(service_fn(shop));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    loop {
        let (connection, _) = listener.accept().await?;
        let service = TowerToHyperService::new(service.clone());
        tokio::spawn(async move {
            let served = http1::Builder::new()
                .serve_connection(TokioIo::new(connection), service)
                .await;
            served.unwrap_or_else(|error| eprintln!("a connection failed: {error}"));
        });
    }
}
