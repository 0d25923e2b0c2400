//! Every answer says which versions of which rows it was made from, and when.

use std::error::Error;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Value, json};
use tower_pgcache::tokio_postgres::Row;

use super::{Db, TenantId};

/// A request with this field gets an answer that took so much longer to make, after the tables were read: to see
/// what becomes of changes in the meantime.
const HOLD: &str = "x-hold-milliseconds";
const LONGEST_HOLD: u64 = 2000;

type Answer = Result<Json<Value>, Failure>;

pub(super) async fn description() -> Json<Value> {
    json!({
        "GET /products": "the products of the tenant, with their prices",
        "GET /products/{id}": "a product with its price",
        "PUT /products/{id}": "{\"name\": text, \"stock\": number}",
        "PUT /products/{id}/price": "{\"amount\": number}",
        "GET /orders": "the orders of the tenant",
        "POST /orders": "{\"product_id\": number, \"quantity\": number}",
        "GET /report": "products, orders and turnover by category",
        "GET /totals": "the number of products of each tenant; the only one without a tenant",
        "X-Tenant": "acme, bolt or crane: whose shop it is",
        "X-Hold-Milliseconds": "how much longer the answer takes to make",
    })
    .into()
}

/// Products with their prices; further conditions may follow.
const PRODUCTS: &str = "
    SELECT p.id, p.name, p.category, p.stock, p.version, r.amount, r.version AS price_version
      FROM product p LEFT JOIN price r ON r.product_id = p.id AND r.tenant_id = p.tenant_id
     WHERE p.tenant_id = $1";

fn product_of(row: &Row) -> Value {
    json!({
        "id": row.get::<_, i64>("id"),
        "name": row.get::<_, &str>("name"),
        "category": row.get::<_, &str>("category"),
        "stock": row.get::<_, i32>("stock"),
        "version": row.get::<_, i64>("version"),
        "price": row.get::<_, Option<i32>>("amount").map(|amount| json!({
            "amount": amount,
            "version": row.get::<_, i64>("price_version"),
        })),
    })
}

pub(super) async fn products(
    State(db): State<Db>,
    Extension(tenant): Extension<TenantId>,
    headers: HeaderMap,
) -> Answer {
    let sql = format!("{PRODUCTS} ORDER BY p.id");
    let rows = db.get().await?.query(&sql, &[&tenant.0]).await?;
    hold(&headers).await;
    Ok(list("products", rows.iter().map(product_of)))
}

pub(super) async fn product(
    State(db): State<Db>,
    Extension(tenant): Extension<TenantId>,
    Path(id): Path<i64>,
    headers: HeaderMap,
) -> Answer {
    let sql = format!("{PRODUCTS} AND p.id = $2");
    let row = db.get().await?.query_opt(&sql, &[&tenant.0, &id]).await?;
    hold(&headers).await;
    let mut product = product_of(&row.ok_or(Failure::NotFound)?);
    product["computed_at"] = now().into();
    Ok(Json(product))
}

pub(super) async fn orders(
    State(db): State<Db>,
    Extension(tenant): Extension<TenantId>,
    headers: HeaderMap,
) -> Answer {
    let rows = db
        .get()
        .await?
        .query(
            "SELECT id, product_id, quantity, version FROM orders WHERE tenant_id = $1 ORDER BY id",
            &[&tenant.0],
        )
        .await?;
    hold(&headers).await;
    let order = |row: &Row| {
        json!({
            "id": row.get::<_, i64>("id"),
            "product_id": row.get::<_, i64>("product_id"),
            "quantity": row.get::<_, i32>("quantity"),
            "version": row.get::<_, i64>("version"),
        })
    };
    Ok(list("orders", rows.iter().map(order)))
}

pub(super) async fn report(
    State(db): State<Db>,
    Extension(tenant): Extension<TenantId>,
    headers: HeaderMap,
) -> Answer {
    let rows = db
        .get()
        .await?
        .query(
            "SELECT p.category, count(DISTINCT p.id) AS products, count(o.id) AS orders,
                    coalesce(sum(o.quantity * r.amount), 0)::bigint AS turnover,
                    max(greatest(p.version, r.version, o.version)) AS version,
                    json_object_agg(p.id, p.version)::text AS product_versions,
                    coalesce(json_object_agg(r.product_id, r.version) FILTER (WHERE r.product_id IS NOT NULL), '{}')::text AS price_versions,
                    coalesce(json_object_agg(o.id, o.version) FILTER (WHERE o.id IS NOT NULL), '{}')::text AS order_versions
               FROM product p
               LEFT JOIN price r ON r.product_id = p.id AND r.tenant_id = p.tenant_id
               LEFT JOIN orders o ON o.product_id = p.id AND o.tenant_id = p.tenant_id
              WHERE p.tenant_id = $1 GROUP BY p.category ORDER BY p.category",
            &[&tenant.0],
        )
        .await?;
    hold(&headers).await;
    let category = |row: &Row| {
        json!({
            "category": row.get::<_, &str>("category"),
            "products": row.get::<_, i64>("products"),
            "orders": row.get::<_, i64>("orders"),
            "turnover": row.get::<_, i64>("turnover"),
            "version": row.get::<_, i64>("version"),
            "product_versions": versions(row, "product_versions"),
            "price_versions": versions(row, "price_versions"),
            "order_versions": versions(row, "order_versions"),
        })
    };
    Ok(list("categories", rows.iter().map(category)))
}

pub(super) async fn totals(State(db): State<Db>, headers: HeaderMap) -> Answer {
    let rows = db
        .get()
        .await?
        .query(
            "SELECT tenant_id, count(*) AS products, max(version) AS version,
                    json_object_agg(id, version)::text AS product_versions
               FROM product GROUP BY tenant_id ORDER BY tenant_id",
            &[],
        )
        .await?;
    hold(&headers).await;
    let tenant = |row: &Row| {
        json!({
            "tenant": row.get::<_, &str>("tenant_id"),
            "products": row.get::<_, i64>("products"),
            "version": row.get::<_, i64>("version"),
            "product_versions": versions(row, "product_versions"),
        })
    };
    Ok(list("tenants", rows.iter().map(tenant)))
}

#[derive(serde::Deserialize)]
pub(super) struct ProductDraft {
    name: String,
    stock: i32,
}

pub(super) async fn change_product(
    State(db): State<Db>,
    Extension(tenant): Extension<TenantId>,
    Path(id): Path<i64>,
    Json(draft): Json<ProductDraft>,
) -> Answer {
    let row = db
        .get()
        .await?
        .query_opt(
            "UPDATE product SET name = $3, stock = $4, version = nextval('shop_version')
              WHERE tenant_id = $1 AND id = $2 RETURNING id, version",
            &[&tenant.0, &id, &draft.name, &draft.stock],
        )
        .await?;
    written(&row.ok_or(Failure::NotFound)?)
}

#[derive(serde::Deserialize)]
pub(super) struct PriceDraft {
    amount: i32,
}

pub(super) async fn change_price(
    State(db): State<Db>,
    Extension(tenant): Extension<TenantId>,
    Path(id): Path<i64>,
    Json(draft): Json<PriceDraft>,
) -> Answer {
    let row = db
        .get()
        .await?
        .query_opt(
            "UPDATE price SET amount = $3, version = nextval('shop_version')
              WHERE tenant_id = $1 AND product_id = $2 RETURNING product_id AS id, version",
            &[&tenant.0, &id, &draft.amount],
        )
        .await?;
    written(&row.ok_or(Failure::NotFound)?)
}

#[derive(serde::Deserialize)]
pub(super) struct OrderDraft {
    product_id: i64,
    quantity: i32,
}

pub(super) async fn create_order(
    State(db): State<Db>,
    Extension(tenant): Extension<TenantId>,
    Json(draft): Json<OrderDraft>,
) -> Result<(StatusCode, Json<Value>), Failure> {
    let row = db
        .get()
        .await?
        .query_one(
            "INSERT INTO orders (tenant_id, product_id, quantity) VALUES ($1, $2, $3) RETURNING id, version",
            &[&tenant.0, &draft.product_id, &draft.quantity],
        )
        .await?;
    Ok((StatusCode::CREATED, written(&row)?))
}

fn written(row: &Row) -> Answer {
    Ok(Json(json!({
        "id": row.get::<_, i64>("id"),
        "version": row.get::<_, i64>("version"),
        "computed_at": now(),
    })))
}

/// An answer of several rows has their largest version.
fn list(name: &str, rows: impl Iterator<Item = Value>) -> Json<Value> {
    let rows: Vec<Value> = rows.collect();
    let version = rows.iter().filter_map(|row| row["version"].as_i64()).max();
    Json(json!({ "version": version, "computed_at": now(), name: rows }))
}

/// From the ids of rows to their versions.
fn versions(row: &Row, column: &str) -> Value {
    serde_json::from_str(row.get(column)).unwrap_or_default()
}

/// Milliseconds since 1970.
fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_millis().try_into().unwrap_or(u64::MAX))
}

async fn hold(headers: &HeaderMap) {
    let asked = headers.get(HOLD).and_then(|value| value.to_str().ok());
    if let Some(milliseconds) = asked.and_then(|value| value.parse::<u64>().ok()) {
        tokio::time::sleep(Duration::from_millis(milliseconds.min(LONGEST_HOLD))).await;
    }
}

pub(super) enum Failure {
    NotFound,
    /// The database does not answer as it should.
    Database,
}

impl<E: Error> From<E> for Failure {
    fn from(error: E) -> Self {
        eprintln!("a handler failed: {error}");
        Self::Database
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (status, error) = match self {
            Self::NotFound => (StatusCode::NOT_FOUND, "this tenant has no such product"),
            Self::Database => (
                StatusCode::SERVICE_UNAVAILABLE,
                "the database is not available",
            ),
        };
        let body = json!({ "error": error, "computed_at": now() });
        (status, Json(body)).into_response()
    }
}
