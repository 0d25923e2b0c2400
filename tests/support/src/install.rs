//! Finding server binaries.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::fetch;
use crate::user::{ServerUser, command, output};

/// The oldest major version that the project supports.
const OLDEST: u32 = 14;
/// What is fetched if nothing is installed and `PG_MAJOR` does not say.
const FETCHED: u32 = 17;

/// A bin directory that has both `initdb` and `postgres`.
#[derive(Clone, Debug)]
pub(crate) struct Install {
    pub(crate) major: u32,
    /// As in `17.4`
    pub(crate) version: String,
    pub(crate) bin: PathBuf,
}

impl Install {
    /// An installed version, or else a fetched one. `major` or `PG_MAJOR` restricts the choice.
    pub(crate) fn find(major: Option<u32>, user: ServerUser) -> io::Result<Self> {
        let wanted = match major {
            Some(major) => Some(major),
            None => major_from_env()?,
        };
        let suits = |install: &Install| match wanted {
            Some(major) => install.major == major,
            None => install.major >= OLDEST,
        };
        candidates()
            .iter()
            .filter_map(|bin| Self::at(bin))
            .filter(suits)
            .find(|install| install.runs_as(user))
            .map_or_else(|| fetch::install(wanted.unwrap_or(FETCHED)), Ok)
    }

    /// `None` if `bin` holds no server: installations of a client have `pg_config` and `psql`, but not these.
    pub(crate) fn at(bin: &Path) -> Option<Self> {
        if !bin.join("initdb").is_file() {
            return None;
        }
        // `bin` may hold links only; the other programs and the libraries are next to the real one.
        let postgres = bin.join("postgres").canonicalize().ok()?;
        let version = parse_version(&output(command(&postgres).arg("--version")).ok()?)?;
        Some(Self {
            major: version
                .split(|c: char| !c.is_ascii_digit())
                .next()?
                .parse()
                .ok()?,
            version,
            bin: postgres.parent()?.into(),
        })
    }

    /// Whether `user` may execute it; not so below a closed home directory.
    pub(crate) fn runs_as(&self, user: ServerUser) -> bool {
        output(user.command(self.bin.join("postgres")).arg("--version")).is_ok()
    }
}

/// `postgres (Postgres) 15.18 (Debian 15.18-1)` has version `15.18`.
fn parse_version(line: &str) -> Option<String> {
    line.split_whitespace().nth(2).map(str::to_owned)
}

fn major_from_env() -> io::Result<Option<u32>> {
    let Some(value) = std::env::var_os("PG_MAJOR").filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let value = value.to_string_lossy();
    let major = value.parse().map_err(|_| {
        io::Error::other(format!(
            "PG_MAJOR is `{value}`, and not a major version such as {FETCHED}"
        ))
    })?;
    Ok(Some(major))
}

/// Directories that may hold a server, the preferred ones first, each once.
fn candidates() -> Vec<PathBuf> {
    let mut dirs = paths_from_env("PG_BIN");
    dirs.extend(pg_config());
    dirs.extend(paths_from_env("PATH"));
    dirs.extend(usual_places());
    let mut seen = HashSet::new();
    dirs.retain(|dir| seen.insert(dir.clone()));
    dirs
}

fn paths_from_env(name: &str) -> Vec<PathBuf> {
    std::env::var_os(name).map_or_else(Vec::new, |value| std::env::split_paths(&value).collect())
}

fn pg_config() -> Option<PathBuf> {
    let bin = output(command("pg_config").arg("--bindir")).ok()?;
    Some(bin.trim_end().into())
}

fn usual_places() -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = [
        ("/usr/lib/postgresql", "bin"), // Debian, Ubuntu
        ("/usr", "bin"),                // RPMs of the PostgreSQL project: /usr/pgsql-17/bin
        ("/usr/libexec", ""),           // Alpine: /usr/libexec/postgresql17
        ("/opt/homebrew/opt", "bin"),   // Homebrew: postgresql@17/bin
        ("/usr/local/opt", "bin"),
        ("/Applications/Postgres.app/Contents/Versions", "bin"),
    ]
    .into_iter()
    .flat_map(|(root, tail)| newest_first(root).map(move |dir| dir.join(tail)))
    .collect();
    places.push("/usr/local/pgsql/bin".into()); // from source
    places
}

fn newest_first(root: &str) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let mut dirs: Vec<_> = entries.map(|entry| entry.path()).collect();
    dirs.sort();
    dirs.into_iter().rev()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_versions() {
        let version = |line| parse_version(line).unwrap();
        assert_eq!(
            version("postgres (PostgreSQL) 15.18 (Debian 15.18-0)\n"),
            "15.18"
        );
        assert_eq!(version("postgres (PostgreSQL) 19beta1\n"), "19beta1");
    }
}
