//! HTTP response caching for axum and any other tower HTTP service, with PostgreSQL as the only infrastructure.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![warn(missing_docs)]

mod body;
mod builder;
mod cache;
mod domain;
mod engine;
mod error;
mod future;
mod http;
mod key;
mod layer;
mod nesting;
mod plan;
mod policy;
mod request;
mod route;
mod service;
mod store;
mod tenant;

pub use self::http::cache_status::Bypass;
pub use self::http::storable::NotStored;
pub use body::ResponseBody;
pub use builder::PgCacheBuilder;
pub use cache::PgCache;
pub use domain::{Domain, Scope};
pub use engine::{Cleaned, Stats};
pub use error::{ConfigError, Error, ErrorKind};
pub use future::ResponseFuture;
pub use layer::PgCacheLayer;
pub use route::Route;
pub use service::PgCacheService;
pub use tenant::Tenant;

pub use {bb8, bb8_postgres, tokio_postgres};
