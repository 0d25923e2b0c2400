//! Server binaries from npm packages, for machines without any.

use std::fs::{self, Permissions};
use std::io::{self, Error, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use crate::install::Install;
use crate::target::{postgres_dir, publish};
use crate::user::output;

const INSTEAD: &str = "Install PostgreSQL (Debian, Ubuntu: `apt-get install postgresql`; macOS: `brew install postgresql`), \
     or npm, so that server binaries can be fetched into target/, \
     or set PG_BIN to the bin directory of a server, or DATABASE_URL to a running one.";

/// Fixed versions, so that two machines run the same.
const PACKAGES: [(u32, &str); 5] = [
    (14, "14.23.0-beta.17"),
    (15, "15.18.0-beta.17"),
    (16, "16.14.0-beta.17"),
    (17, "17.10.0-beta.17"),
    (18, "18.4.0-beta.17"),
];

/// The fetched installation of this major version; the first call fetches it.
pub(crate) fn install(major: u32) -> io::Result<Install> {
    let package = package(major)?;
    let dest = postgres_dir()?.join(major.to_string());
    let build = |partial: &Path| {
        announce(&package, &dest);
        fetch(&package, partial)
    };
    publish(&dest, build).map_err(|e| {
        let reason = if e.kind() == io::ErrorKind::NotFound {
            "there is no npm to fetch it with".to_owned()
        } else {
            format!("fetching it failed: {e}")
        };
        Error::other(format!(
            "PostgreSQL {major} is not installed, and {reason}\n{INSTEAD}"
        ))
    })?;
    Install::at(&dest.join("bin")).ok_or_else(|| {
        let dest = dest.display();
        Error::other(format!(
            "The PostgreSQL of {package} in {dest} does not run on this machine.\n{INSTEAD}"
        ))
    })
}

fn package(major: u32) -> io::Result<String> {
    let (_, version) = PACKAGES
        .iter()
        .find(|(known, _)| *known == major)
        .ok_or_else(|| {
            let known = PACKAGES.map(|(known, _)| known.to_string()).join(", ");
            Error::other(format!(
                "PostgreSQL {major} is not installed, and only {known} can be fetched.\n{INSTEAD}"
            ))
        })?;
    Ok(format!("@embedded-postgres/{}@{version}", platform()?))
}

fn platform() -> io::Result<&'static str> {
    match (std::env::consts::OS, std::env::consts::ARCH) {
        ("linux", "x86_64") => Ok("linux-x64"),
        ("linux", "aarch64") => Ok("linux-arm64"),
        ("macos", "x86_64") => Ok("darwin-x64"),
        ("macos", "aarch64") => Ok("darwin-arm64"),
        (os, arch) => Err(Error::other(format!(
            "PostgreSQL is not installed, and there is none to fetch for {os} on {arch}.\n{INSTEAD}"
        ))),
    }
}

/// Not with `eprintln`, which a test harness captures: whoever waits for this should see why.
fn announce(package: &str, dest: &Path) {
    let dest = dest.display();
    let _ = writeln!(
        io::stderr(),
        "fetching PostgreSQL server binaries into {dest}, once: npm package {package}"
    );
}

/// Leaves `bin`, `lib` and `share` in `dest`.
fn fetch(package: &str, dest: &Path) -> io::Result<()> {
    fs::create_dir(dest)?;
    let tarball = output(&mut npm_pack(package, dest))?;
    output(
        Command::new("tar")
            .arg("-xzf")
            .arg(tarball.trim_end())
            .current_dir(dest),
    )?;
    let unpacked = dest.join("package");
    make_links(&unpacked)?;
    make_executable(&unpacked.join("native/bin"))?;
    for part in ["bin", "lib", "share"] {
        fs::rename(unpacked.join("native").join(part), dest.join(part))?;
    }
    for rest in ["package", "npm-cache"] {
        fs::remove_dir_all(dest.join(rest))?;
    }
    fs::remove_file(dest.join(tarball.trim_end()))
}

/// npm downloads, and verifies the checksum. It prints the name of the file, and by default it would keep a cache
/// and a log in the home directory.
fn npm_pack(package: &str, dest: &Path) -> Command {
    let mut npm = Command::new("npm");
    npm.args(["pack", "--loglevel=error", package])
        .env("npm_config_cache", dest.join("npm-cache"))
        .env("npm_config_update_notifier", "false")
        .current_dir(dest);
    npm
}

/// npm cannot carry symbolic links; the package lists them, with the paths of `source` and `target` below the package.
fn make_links(unpacked: &Path) -> io::Result<()> {
    let list = unpacked.join("native/pg-symlinks.json");
    if !list.exists() {
        return Ok(());
    }
    for (source, target) in parse_links(&fs::read_to_string(list)?) {
        let name = Path::new(source).file_name().unwrap_or_default(); // they are in the same directory
        let link = unpacked.join(target);
        if !link.exists() {
            symlink(name, link)?;
        }
    }
    Ok(())
}

/// `[{"source":"native/lib/libpq.so.5.18","target":"native/lib/libpq.so.5"},…]`: flat, and no escapes in file names.
fn parse_links(json: &str) -> Vec<(&str, &str)> {
    json.split('}')
        .filter_map(|object| Some((member(object, "source")?, member(object, "target")?)))
        .collect()
}

fn member<'a>(object: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = object.split_once(&format!("\"{name}\""))?;
    rest.split('"').nth(1)
}

fn make_executable(bin: &Path) -> io::Result<()> {
    for entry in fs::read_dir(bin)? {
        fs::set_permissions(entry?.path(), Permissions::from_mode(0o755))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_the_list_of_links() {
        let json = r#"[{"source":"native/lib/a.so.5.18","target":"native/lib/a.so.5"}, { "source": "b.1", "target": "b" }]"#;
        assert_eq!(
            parse_links(json),
            [("native/lib/a.so.5.18", "native/lib/a.so.5"), ("b.1", "b")]
        );
    }

    #[test]
    fn an_unknown_version_is_an_error_that_helps() {
        let error = install(9).unwrap_err().to_string();
        assert!(
            error.contains("PostgreSQL 9") && error.contains("DATABASE_URL"),
            "{error}"
        );
    }
}
