#![doc = include_str!("../README.md")]
//!
//! # Where to look
//!
//! | | |
//! |---|---|
//! | [`PgCacheLayer`] | the middleware, and what can be set for a route |
//! | [`PgCache`], [`PgCacheBuilder`] | the engine: invalidation, housekeeping, what can be set for all routes |
//! | [`Domain`], [`Scope`], [`domain!`] | what answers depend on, and what changes name |
//! | [`Watch`] | a table whose changes invalidate, by whatever program |
//! | [`Tenant`] | where the tenant of a request is found |
//! | [`Route`] | a row of a central table of routes |
//! | [`Bypass`], [`NotStored`] | the reasons that `Cache-Status` gives |
//!
//! # Features
//!
//! - `axum` (default): the layer knows axum's `OriginalUri` and `MatchedPath`, so that nested routers and path
//!   parameters are understood.
//! - `compression`: answers can be stored compressed ([`PgCacheBuilder::compress_from`]). Builds libzstd, in C.
//! - `test-util`: `PgCache::ephemeral`, `test::expire`, `assert_hit!` and `assert_miss!`, for the tests of
//!   applications.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![warn(missing_docs)]
// what asks Postgres is not used there
#![cfg_attr(all(test, shuttle), allow(dead_code))]

mod answer;
mod body;
mod builder;
mod cache;
mod call;
mod domain;
mod engine;
mod error;
// for cargo-fuzz, which sets the cfg; no part of what the crate promises
mod future;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod head;
mod http;
mod key;
mod layer;
mod nesting;
mod notable;
mod plan;
mod policy;
mod query;
mod read;
mod request;
mod route;
mod rules;
mod runtime;
mod search;
mod service;
mod store;
mod sync;
mod tenant;
#[cfg(feature = "test-util")]
pub mod test;
mod watch;

pub use self::http::cache_status::Bypass;
pub use self::http::storable::NotStored;
pub use body::ResponseBody;
pub use builder::PgCacheBuilder;
pub use cache::PgCache;
pub use domain::{Domain, Scope};
pub use engine::{Capabilities, Cleaned, Stats};
pub use error::{ConfigError, Error, ErrorKind};
pub use future::ResponseFuture;
pub use head::RequestHead;
pub use layer::PgCacheLayer;
pub use policy::{ClientCache, GeneratedEtag, Policy};
pub use route::Route;
pub use runtime::{CacheScope, DependsOn, Invalidates, NoStore, Ttl};
pub use service::PgCacheService;
pub use tenant::{Principal, Tenant};
pub use watch::{Adopted, Watch};

pub use {bb8, bb8_postgres, tokio_postgres};
