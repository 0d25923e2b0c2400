//! A service with tenants and users: an authentication layer, and a policy for each route.
//!
//! `cargo run --example tenants`, then for example
//! `curl -i -H 'Authorization: Bearer acme:ann' http://127.0.0.1:3000/products/7`.

use std::error::Error;
use std::time::Duration;

use axum::extract::{Path, Request};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::get;
use axum::{Extension, Router};
use tower_pgcache::{CacheScope, Domain, PgCache, Principal, Tenant, domain};

const PRODUCT: Domain = domain!("product");
const PRICE: Domain = domain!("price");
const BASKET: Domain = domain!("basket");
const MIN5: Duration = Duration::from_secs(300);

/// Who is asking: what the authentication layer found out.
#[derive(Clone)]
struct User {
    tenant: String,
    name: String,
}

async fn authenticate(mut request: Request, next: Next) -> Result<Response, StatusCode> {
    let token = request
        .headers()
        .get("authorization")
        .and_then(|v| v.to_str().ok());
    // a real one would verify a signature
    let (tenant, name) = token
        .and_then(|t| t.strip_prefix("Bearer ")?.split_once(':'))
        .map(|(tenant, name)| (tenant.to_owned(), name.to_owned()))
        .ok_or(StatusCode::UNAUTHORIZED)?;
    request.extensions_mut().insert(User { tenant, name });
    Ok(next.run(request).await)
}

/// What it depends on it knows best itself.
async fn product(
    Extension(user): Extension<User>,
    Path(id): Path<u32>,
    cache: CacheScope,
) -> String {
    cache.depends_on(PRICE.entity(id));
    format!("product {id} of {}", user.tenant)
}

async fn basket(Extension(user): Extension<User>) -> String {
    format!("the basket of {}", user.name)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let pool = test_support::try_database().await?.pool(8); // an application has its own
    let cache = PgCache::builder(pool)
        .tenant(Tenant::extension(|user: &User| user.tenant.clone()))
        .principal(Principal::extension(|user: &User| user.name.clone()))
        .build()?;
    let app = Router::new()
        .route(
            "/products/{id}",
            get(product).put(|| async { "changed" }).layer(
                cache
                    .layer()
                    .ttl(MIN5)
                    .entity(PRODUCT, "id")
                    .invalidates(PRODUCT)
                    .shared_by_tenant(),
            ),
        )
        .route(
            "/basket",
            get(basket).post(|| async { "added" }).layer(
                cache
                    .layer()
                    .until_invalidated()
                    .domain(BASKET)
                    .invalidates(BASKET)
                    .per_principal(),
            ),
        )
        .layer(from_fn(authenticate)); // added last, so it runs first
    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    Ok(axum::serve(listener, app).await?)
}
