//! What outlives a process is kept below `target/`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// `target/postgres`, which `cargo clean` removes.
pub(crate) fn postgres_dir() -> io::Result<PathBuf> {
    let dir = target_dir()?.join("postgres");
    fs::create_dir_all(&dir)?;
    Ok(dir)
}

/// The directory with cargo's tag above the running program, wherever `CARGO_TARGET_DIR` or a config has put it.
/// Doc tests run from elsewhere and get the default.
fn target_dir() -> io::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let tagged = program
        .ancestors()
        .find(|dir| dir.join("CACHEDIR.TAG").is_file());
    Ok(match tagged {
        Some(dir) => dir.to_path_buf(),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target"),
    })
}

/// Makes `dest` with `build` unless it is there already. `build` gets a path to fill, on the same file system.
///
/// `dest` appears whole or not at all, and processes that want it at the same time build it once.
pub(crate) fn publish(dest: &Path, build: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    if dest.exists() {
        return Ok(());
    }
    let lock = File::create(with_suffix(dest, ".lock"))?;
    // Released when the file is closed, hence also when this process is killed.
    flock(&lock, FlockOperation::LockExclusive)?;
    if dest.exists() {
        return Ok(());
    }
    let partial = with_suffix(dest, ".partial");
    if partial.exists() {
        fs::remove_dir_all(&partial)?; // of a process that was killed
    }
    build(&partial)
        .and_then(|()| fs::rename(&partial, dest))
        .inspect_err(|_| {
            let _ = fs::remove_dir_all(&partial);
        })
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}
