//! Postgres refuses to run as root; so does everything here that would make files the server has to own.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::{self, Error};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// Whom the server runs as.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ServerUser {
    /// Us; we are not root.
    Ourselves,
    /// An unprivileged user; we are root.
    Other { uid: u32, gid: u32 },
}

impl ServerUser {
    pub(crate) fn find() -> io::Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self::Ourselves);
        }
        let passwd = fs::read_to_string("/etc/passwd")?;
        ["postgres", "nobody"]
            .iter()
            .find_map(|name| Self::named(name, &passwd))
            .ok_or_else(|| {
                Error::other(
                    "PostgreSQL does not run as root, and there is no user `postgres` or `nobody` to run it as",
                )
            })
    }

    fn named(name: &str, passwd: &str) -> Option<Self> {
        passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            if fields.next()? != name {
                return None;
            }
            let mut ids = fields.skip(1).map(str::parse);
            let uid = ids.next()?.ok()?;
            let gid = ids.next()?.ok()?;
            Some(Self::Other { uid, gid })
        })
    }

    /// `program`, to be run as this user. (With the uid, std drops the supplementary groups too.)
    pub(crate) fn command(self, program: impl AsRef<OsStr>) -> Command {
        let mut command = command(program);
        command.current_dir("/"); // ours may be closed to that user
        if let Self::Other { uid, gid } = self {
            command.uid(uid).gid(gid);
        }
        command
    }

    pub(crate) fn own(self, path: &Path) -> io::Result<()> {
        match self {
            Self::Ourselves => Ok(()),
            Self::Other { uid, gid } => chown(path, Some(uid), Some(gid)),
        }
    }

    /// Copies a directory. Each directory changes hands before it is filled: if we are killed half-way, the
    /// watchdog, which runs as that user, can still remove it.
    pub(crate) fn copy_tree(self, from: &Path, to: &Path) -> io::Result<()> {
        fs::create_dir(to)?;
        fs::set_permissions(to, Permissions::from_mode(0o700))?;
        self.own(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            let (from, to) = (entry.path(), to.join(entry.file_name()));
            let kind = entry.file_type()?;
            if kind.is_dir() {
                self.copy_tree(&from, &to)?;
            } else if kind.is_symlink() {
                std::os::unix::fs::symlink(fs::read_link(&from)?, &to)?;
            } else {
                fs::copy(&from, &to)?;
                self.own(&to)?;
            }
        }
        Ok(())
    }
}

/// `program` without the `PG*` variables, which would redirect Postgres's own programs, and with messages in English.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    command.env("LC_ALL", "C");
    command
}

/// Runs to the end and returns what was printed; an error holds everything that helps to understand it.
pub(crate) fn output(command: &mut Command) -> io::Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|e| Error::new(e.kind(), format!("{program}: {e}")))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let status = output.status;
    Err(Error::other(format!(
        "{program} failed ({status})\n{stdout}{stderr}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_ids_in_passwd() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\npostgres:x:101:104:,,,:/var/lib/postgresql:/bin/bash\n";
        assert!(matches!(
            ServerUser::named("postgres", passwd),
            Some(ServerUser::Other { uid: 101, gid: 104 })
        ));
        assert!(ServerUser::named("nobody", passwd).is_none());
    }
}
