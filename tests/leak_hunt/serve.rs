//! The applications: their authentication, handlers and cache.

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::HeaderName;
use std::time::Duration;
use test_support::Database;
use tower_pgcache::bb8::Pool;
use tower_pgcache::bb8_postgres::PostgresConnectionManager;
use tower_pgcache::tokio_postgres::NoTls;
use tower_pgcache::{PgCache, PgCacheBuilder, PgCacheLayer, Principal, Route, Tenant};

use crate::APPS;
use crate::asked::{Asked, Identity};
use crate::settings::{App, Cookies, Query, ROUTES, Settings, Sharing, TenantSource};

#[derive(Clone)]
struct TenantId(&'static str);

#[derive(Clone)]
struct Claims(&'static str);

/// Applies settings to whatever has the setters.
macro_rules! apply {
    ($target:expr, $settings:expr) => {{
        let (mut target, settings): (_, Settings) = ($target, $settings);
        target = match settings.sharing {
            Some(Sharing::Tenant) => target.shared_by_tenant(),
            Some(Sharing::Principal) => target.per_principal(),
            Some(Sharing::Everyone) => target.shared_by_everyone(),
            None => target,
        };
        target = match settings.cookies {
            Some(Cookies::Ignored) => target.ignore_cookies(["theme", "_ga*"]),
            Some(Cookies::Session) => target.session_cookies(["sid"]),
            None => target,
        };
        target = match settings.query {
            Some(Query::Ignored) => target.ignore_query(["utm_*"]),
            Some(Query::Only) => target.only_query(["page"]),
            Some(Query::Untouched) => target.untouched_query(),
            None => target,
        };
        if settings.authenticated_by {
            target = target.authenticated_by::<Claims>();
        }
        if settings.credential_header {
            target = target.credential_headers(["x-user-key"]);
        }
        if settings.key_header {
            target = target.key_header("x-variant");
        }
        if settings.key_cookie {
            target = target.key_cookie("theme");
        }
        if settings.key_with {
            target = target.key_with(|head| format!("{:?}", head.headers().get("x-flag")));
        }
        target
    }};
}

type Db = Pool<PostgresConnectionManager<NoTls>>;

fn configured<T>(app: &App, pool: &Db) -> PgCacheBuilder<T> {
    let mut builder = PgCacheBuilder::<T>::new(pool.clone())
        .namespace(&app.namespace)
        .generation(&app.generation)
        .ttl(Duration::from_secs(3600))
        .lookup_deadline(Duration::from_secs(20))
        .cleanup_interval(Duration::ZERO);
    let tenant = app.tenant.map(|source| match source {
        TenantSource::Extension => Tenant::extension(|t: &TenantId| t.0.to_owned()),
        TenantSource::Header => Tenant::trusted_header("x-tenant"),
        TenantSource::HostLabel => Tenant::trusted_host_label(0),
        TenantSource::PathParam => Tenant::trusted_path_param("tenant"),
        TenantSource::FromFn => Tenant::from_fn(|head| {
            let mut values = head.headers().get_all("x-tenant").iter();
            let one = values.next()?.to_str().ok()?.to_owned();
            values.next().is_none().then_some(one)
        }),
    });
    if let Some(tenant) = tenant {
        builder = builder.tenant(tenant);
    }
    if app.has_principal {
        builder = builder.principal(Principal::extension(|c: &Claims| c.0.to_owned()));
    }
    apply!(builder, app.engine)
}

/// The router, and a handle to wait for what it stores.
pub(crate) fn router(app: &App, pool: &Db) -> (Router, PgCache) {
    if app.has_table {
        let mut builder = configured::<PgCacheLayer>(app, pool);
        for (pattern, own) in ROUTES.into_iter().zip(app.routes) {
            if let Some(settings) = own {
                builder = builder
                    .route(apply!(Route::get(pattern), settings).ttl(Duration::from_secs(3600)));
            }
        }
        let layer = builder
            .build()
            .unwrap_or_else(|error| panic!("{app:?}: {error}"));
        let cache = layer.cache().clone();
        return (around(app, routes(&cache, [None; 4]), Some(layer)), cache);
    }
    let cache = configured::<PgCache>(app, pool)
        .build()
        .unwrap_or_else(|error| panic!("{app:?}: {error}"));
    let outer = app.outer.map(|settings| checked(&cache, settings));
    (around(app, routes(&cache, app.routes), outer), cache)
}

fn checked(cache: &PgCache, settings: Settings) -> PgCacheLayer {
    apply!(cache.layer(), settings).check().unwrap()
}

/// Two nested routers have the same path inside.
fn routes(cache: &PgCache, own: [Option<Settings>; 4]) -> Router {
    let route = |settings: Option<Settings>| match settings {
        Some(settings) => get(answer).layer(checked(cache, settings)),
        None => get(answer),
    };
    let [a, one, two, tenants] = own.map(route);
    Router::new()
        .route("/a/x", a)
        .nest("/n1", Router::new().route("/x", one))
        .nest("/n2", Router::new().route("/x", two))
        .route("/t/{tenant}/x", tenants)
        .fallback(answer)
}

fn around(app: &App, router: Router, layer: Option<PgCacheLayer>) -> Router {
    let cached = |router: Router| match layer {
        Some(layer) => router.layer(layer),
        None => router,
    };
    if app.auth_is_outside {
        cached(router).layer(from_fn(auth))
    } else {
        cached(router.layer(from_fn(auth)))
    }
}

async fn auth(mut request: Request, next: Next) -> Response {
    let fields = request.headers().iter();
    if let Some(identity) =
        identity_of(fields.map(|(name, value)| (name.as_str(), value.as_bytes())))
    {
        request.extensions_mut().insert(TenantId(identity.tenant));
        if let Some(user) = identity.user {
            request.extensions_mut().insert(Claims(user));
        }
    }
    next.run(request).await
}

/// Whom the request comes from, if it proves that.
pub(crate) fn identity_of<'a>(
    fields: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> Option<Identity> {
    let fields: Vec<_> = fields.collect();
    let by_field = fields
        .iter()
        .filter(|(name, _)| {
            matches!(
                *name,
                "authorization" | "x-user-key" | "x-client-certificate"
            )
        })
        .find_map(|(_, value)| Identity::of(std::str::from_utf8(value).ok()?));
    let lines = fields
        .iter()
        .filter(|(name, _)| *name == "cookie")
        .map(|(_, value)| *value);
    by_field.or_else(|| {
        cookie_token(lines, "sid")
            .iter()
            .find_map(|token| Identity::of(token))
    })
}

pub(crate) fn cookie_token<'a>(lines: impl Iterator<Item = &'a [u8]>, name: &str) -> Vec<String> {
    let sent = cookies(lines).into_iter();
    sent.filter(|(n, _)| n == name)
        .map(|(_, value)| value)
        .collect()
}

/// With their names decoded, as the usual parsers do.
pub(crate) fn cookies<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Vec<(String, String)> {
    let lines = lines.filter_map(|line| std::str::from_utf8(line).ok());
    lines
        .flat_map(|line| line.split(';'))
        .map(str::trim)
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decode(name.trim()), value.trim().to_owned()))
        .collect()
}

pub(crate) fn decode(text: &str) -> String {
    let mut rest = text.as_bytes();
    let mut decoded = Vec::new();
    while let Some((&first, others)) = rest.split_first() {
        let hex = others
            .get(..2)
            .and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if first == b'%' => {
                decoded.push(byte);
                rest = &others[2..];
            }
            _ => {
                decoded.push(first);
                rest = others;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// Names the request that it was made for; everything else follows from that.
async fn answer(request: Request) -> Response {
    let number = request.headers()["x-number"].to_str().unwrap().to_owned();
    let asked = Asked::random(crate::seed(), number.parse().unwrap(), APPS);
    let mut response = ([("x-made-for", number.clone())], number).into_response();
    if let Some((name, value)) = asked.veto {
        response
            .headers_mut()
            .insert(HeaderName::from_static(name), value.parse().unwrap());
    }
    response
}

pub(crate) fn pool(database: &Database) -> Db {
    database.pool(8)
}
