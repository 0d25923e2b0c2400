use std::sync::OnceLock;

use crate::{Database, Error, Server, external};

/// A fresh, empty database, on the server of `DATABASE_URL` or on the one that this process shares.
///
/// # Panics
///
/// If there is none to be had; the message says what to install.
pub async fn database() -> Database {
    try_database().await.unwrap_or_else(|e| panic!("{e}"))
}

/// As [`database`], for programs that report errors.
///
/// # Errors
///
/// If there is none to be had; the message says what to install.
pub async fn try_database() -> Result<Database, Error> {
    match std::env::var("DATABASE_URL") {
        Ok(url) if !url.is_empty() => external::database(&url).await,
        _ => shared_server().await?.try_database().await,
    }
}

/// Never dropped, like every static; its watchdog notices the end of the process.
///
/// No connection is kept with it: each test has a runtime of its own, which ends before the next one's.
async fn shared_server() -> Result<&'static Server, Error> {
    static SERVER: OnceLock<Result<Server, Error>> = OnceLock::new();

    let start = || Server::start().map_err(|e| Error::new(e.to_string()));
    tokio::task::spawn_blocking(move || SERVER.get_or_init(start))
        .await
        .map_err(|e| Error::caused("the start of PostgreSQL", &e))?
        .as_ref()
        .map_err(Clone::clone)
}
