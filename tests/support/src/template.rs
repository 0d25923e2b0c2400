//! `initdb` takes a second or two; a copy of what it makes takes milliseconds.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};

use crate::install::Install;
use crate::target::{postgres_dir, publish};
use crate::user::ServerUser;
use crate::watchdog::{SCRIPT, Watchdog};

/// Fills `data`, where the watchdog's `initdb` would put it.
///
/// The server's user makes it there, and it is copied into `target/` by us: `target/` may be closed to that user.
pub(crate) fn make_data_dir(
    data: &Path,
    install: &Install,
    user: ServerUser,
    watchdog: &mut Watchdog,
) -> io::Result<()> {
    let template = path(install)?;
    publish(&template, |partial| {
        watchdog.initdb()?;
        ServerUser::Ourselves.copy_tree(data, partial)
    })?;
    if data.exists() {
        return Ok(());
    }
    user.copy_tree(&template, data)
}

/// Two builds of the same version may differ in their data format, and the script has `initdb`'s options.
fn path(install: &Install) -> io::Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    (&install.bin, SCRIPT).hash(&mut hasher);
    let name = format!("template-{}-{:016x}", install.version, hasher.finish());
    Ok(postgres_dir()?.join(name))
}
