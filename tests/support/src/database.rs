use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use bb8_postgres::PostgresConnectionManager;
use tokio_postgres::{Client, Config, NoTls};

use crate::Error;
use crate::external::DropGuard;

/// An empty database.
#[derive(Clone)]
pub struct Database {
    name: String,
    url: String,
    config: Config,
    /// Only on a server that is not ours.
    _guard: Option<Arc<DropGuard>>,
}

impl Database {
    /// Makes one on the server of `config`, which `url` describes too; both name a database to connect to.
    pub(crate) async fn create(config: &Config, url: &str) -> Result<Self, Error> {
        let name = new_name();
        let client = connect(config).await?;
        // template0, because nobody is connected to it, and an encoding that does not depend on the server.
        let sql = format!(
            "CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'"
        );
        client
            .batch_execute(&sql)
            .await
            .map_err(|e| Error::caused("cannot make a database for tests", &e))?;
        let mut config = config.clone();
        config.dbname(&name);
        Ok(Self {
            url: with_database(url, &name),
            name,
            config,
            _guard: None,
        })
    }

    pub(crate) fn guarded(self, guard: DropGuard) -> Self {
        Self {
            _guard: Some(Arc::new(guard)),
            ..self
        }
    }

    /// The same one on a server that has a copy of it.
    pub(crate) fn elsewhere(&self, config: &Config, url: &str) -> Self {
        let mut config = config.clone();
        config.dbname(&self.name);
        Self {
            url: with_database(url, &self.name),
            name: self.name.clone(),
            config,
            _guard: None,
        }
    }

    /// Its name, unique on its server.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `postgres://…`, for programs that want one.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// To connect in other ways than [`connect`](Self::connect) and [`pool`](Self::pool) do.
    pub fn config(&self) -> Config {
        self.config.clone()
    }

    /// A connection; it is served by a task of the current runtime.
    ///
    /// # Panics
    ///
    /// If the server refuses.
    pub async fn connect(&self) -> Client {
        connect(&self.config)
            .await
            .unwrap_or_else(|e| panic!("{e}"))
    }

    /// A connection, if there is one to be had: a standby may not have the database yet.
    pub async fn try_connect(&self) -> Option<Client> {
        connect(&self.config).await.ok()
    }

    /// A pool of at most `size` connections, which are made when they are needed. Getting one may take 30 s.
    pub fn pool(&self, size: u32) -> bb8::Pool<PostgresConnectionManager<NoTls>> {
        bb8::Pool::builder()
            .max_size(size)
            .connection_timeout(Duration::from_secs(30))
            .build_unchecked(PostgresConnectionManager::new(self.config(), NoTls))
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the URL: it may have a password, and a failed test prints this.
        f.debug_struct("Database")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

pub(crate) async fn connect(config: &Config) -> Result<Client, Error> {
    let (client, connection) = config
        .connect(NoTls)
        .await
        .map_err(|e| Error::caused("cannot connect to PostgreSQL", &e))?;
    // It ends with an error when the server is killed, which the client reports as well.
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(client)
}

/// What the names of all databases begin with; a number, the pid of the maker, follows.
pub(crate) const PREFIX: &str = "pgcache_test_";

fn new_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let now = UNIX_EPOCH.elapsed().unwrap_or_default().as_millis();
    format!("{PREFIX}{}_{count}_{now:x}", std::process::id())
}

/// `url` for another database; it may also be a list of `key=value`.
fn with_database(url: &str, name: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return format!("{url} dbname={name}"); // the last one counts
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let server = rest.split('/').next().unwrap_or_default();
    let parameters: Vec<_> = query
        .split('&')
        .filter(|parameter| !parameter.is_empty() && !parameter.starts_with("dbname="))
        .collect();
    let mark = if parameters.is_empty() { "" } else { "?" };
    format!("{scheme}://{server}/{name}{mark}{}", parameters.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_the_database_of_a_url() {
        for (url, expected) in [
            ("postgres://u:p@h:1/old", "postgres://u:p@h:1/new"),
            ("postgres://h", "postgres://h/new"),
            (
                "postgres://h?user=u&dbname=old&port=2",
                "postgres://h/new?user=u&port=2",
            ),
            (
                "postgresql://%2Fsock/old?user=u",
                "postgresql://%2Fsock/new?user=u",
            ),
            ("host=h dbname=old", "host=h dbname=old dbname=new"),
        ] {
            let got = with_database(url, "new");
            assert_eq!(got, expected);
            let config: Config = got.parse().unwrap();
            assert_eq!(config.get_dbname(), Some("new"));
        }
    }
}
