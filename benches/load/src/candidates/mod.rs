//! The caches that are compared, each around [`App::item`].

#[cfg(feature = "axum-response-cache")]
mod axum_response_cache;
mod pgcache;
#[cfg(feature = "tower-http-cache")]
mod tower_http_cache;

use std::str::FromStr;
use std::time::Duration;

use axum::Router;

use crate::Error;
use crate::app::{App, ITEM};
use pgcache::{Mode, pgcache};

/// Where the peers want a lifetime: what the answers say themselves.
#[cfg_attr(
    not(any(feature = "axum-response-cache", feature = "tower-http-cache")),
    allow(dead_code)
)]
const TTL: Duration = Duration::from_secs(600);

/// One of the caches, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Candidate {
    Bare,
    PgcacheBounded,
    PgcacheStrict,
    PgcachePostgres,
    TowerHttpCacheMemory,
    TowerHttpCacheRedis,
    AxumResponseCache,
}

/// What has to run for a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    Memory,
    Postgres,
    Redis,
}

impl Candidate {
    pub(crate) const ALL: [Self; 7] = [
        Self::Bare,
        Self::PgcacheBounded,
        Self::PgcacheStrict,
        Self::PgcachePostgres,
        Self::TowerHttpCacheMemory,
        Self::TowerHttpCacheRedis,
        Self::AxumResponseCache,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::PgcacheBounded => "pgcache-bounded",
            Self::PgcacheStrict => "pgcache-strict",
            Self::PgcachePostgres => "pgcache-postgres",
            Self::TowerHttpCacheMemory => "tower-http-cache-memory",
            Self::TowerHttpCacheRedis => "tower-http-cache-redis",
            Self::AxumResponseCache => "axum-response-cache",
        }
    }

    pub(crate) fn store(self) -> Store {
        match self {
            Self::PgcacheBounded | Self::PgcacheStrict | Self::PgcachePostgres => Store::Postgres,
            Self::TowerHttpCacheRedis => Store::Redis,
            Self::Bare | Self::TowerHttpCacheMemory | Self::AxumResponseCache => Store::Memory,
        }
    }

    /// The item behind this cache; `store` is the URL of its store.
    pub(crate) async fn router(self, app: &App, store: &str) -> Result<Router, Error> {
        match self {
            Self::Bare => Ok(Router::new().route(ITEM, app.item())),
            Self::PgcacheBounded => pgcache(Mode::Bounded, app, store).await,
            Self::PgcacheStrict => pgcache(Mode::Strict, app, store).await,
            Self::PgcachePostgres => pgcache(Mode::Postgres, app, store).await,
            #[cfg(feature = "tower-http-cache")]
            Self::TowerHttpCacheMemory => Ok(tower_http_cache::memory(app)),
            #[cfg(feature = "tower-http-cache")]
            Self::TowerHttpCacheRedis => tower_http_cache::redis(app, store).await,
            #[cfg(feature = "axum-response-cache")]
            Self::AxumResponseCache => Ok(axum_response_cache::router(app)),
            #[allow(unreachable_patterns)] // with all features
            absent => Err(format!("{} is not built in", absent.name()).into()),
        }
    }
}

impl FromStr for Candidate {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let found = Self::ALL.into_iter().find(|c| c.name() == name);
        found.ok_or_else(|| format!("no candidate is called {name}; there are {}", names()).into())
    }
}

fn names() -> String {
    Candidate::ALL.map(Candidate::name).join(", ")
}
