//! Programs and file systems that a case needs.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Whether a package of Debian is there, or could be installed. If not, the reason was printed.
pub(crate) fn installed(package: &str, is_there: impl Fn() -> bool) -> bool {
    if is_there() {
        return true;
    }
    let _ = writeln!(std::io::stderr(), "installing the Debian package {package}");
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(arguments);
        command
            .stdin(Stdio::null())
            .output()
            .is_ok_and(|output| output.status.success())
    };
    let install = ["install", "-y", "--no-install-recommends", package];
    // the list of packages of a fresh machine is empty
    if apt(&install) || (apt(&["update"]) && apt(&install)) {
        return is_there();
    }
    skipped(&format!(
        "{package} is not installed, and `apt-get install {package}` fails"
    ));
    false
}

/// Not captured: somebody should see it.
pub(crate) fn skipped(reason: &str) {
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    let _ = writeln!(std::io::stderr(), "{name} is skipped: {reason}");
}

/// A file system in memory that has little room. It goes with its handle, or with this process.
#[derive(Debug)]
pub(crate) struct SmallDisk {
    path: PathBuf,
    keeper: Child,
}

impl SmallDisk {
    /// For the user that `like` belongs to; `None` where one may not mount, and that was said.
    pub(crate) fn mount(path: &Path, megabytes: u32, like: &Path) -> Option<Self> {
        const SCRIPT: &str =
            "mkdir -p \"$1\" && mount -t tmpfs -o size=$2m,mode=700 tmpfs \"$1\" || exit 1
            echo mounted; read -r _; umount -l \"$1\"; rmdir \"$1\"";
        let mut keeper = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "small-disk"])
            .arg(path)
            .arg(megabytes.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut answer = String::new();
        let mut stdout = BufReader::new(keeper.stdout.take().unwrap());
        stdout.read_line(&mut answer).unwrap();
        if answer != "mounted\n" {
            let _ = keeper.wait();
            skipped("this user may not mount a tmpfs");
            return None;
        }
        own(path, like);
        Some(Self {
            path: path.to_owned(),
            keeper,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// Gives what is at `path`, and all below it, to the user that `like` belongs to.
pub(crate) fn own(path: &Path, like: &Path) {
    let whose = fs::metadata(like).unwrap();
    chown(path, Some(whose.uid()), Some(whose.gid())).unwrap();
    if path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path).unwrap() {
            own(&entry.unwrap().path(), like);
        }
    }
}
