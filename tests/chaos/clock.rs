//! An instance's clock is wrong by a day.

use std::path::PathBuf;
use std::process::Command;

use crate::harness::machine::installed;
use crate::harness::{Settings, Stage, case};

const DAY: u64 = 24 * 60 * 60;

fn library() -> Option<PathBuf> {
    let places = std::fs::read_dir("/usr/lib")
        .into_iter()
        .flatten()
        .flatten();
    let mut found = places.map(|place| place.path().join("faketime/libfaketimeMT.so.1"));
    found.find(|library| library.exists())
}

/// Two instances, of which one believes that it is tomorrow, or yesterday.
async fn disagree(offset: &str) {
    if !installed("libfaketime", || library().is_some()) {
        return;
    }
    let mut stage = Stage::new().await;
    // what the one stores the other one reads
    let settings = Settings {
        memory: 0,
        ..stage.settings()
    };
    let right = stage.command(&settings);
    let mut wrong: Command = stage.command(&settings);
    wrong
        .env("LD_PRELOAD", library().unwrap())
        .env("FAKETIME", offset)
        // nobody sets that one
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    stage.serve_with(&settings, [right, wrong]).await;
    let clocks = stage.clocks().await;
    let apart = clocks[0].abs_diff(clocks[1]);
    assert!(apart.abs_diff(DAY) < 60, "{clocks:?}");
    stage.expires_in_time().await;
    stage.end().await;
}

#[test]
fn ahead() {
    case(disagree("+1d"));
}

#[test]
fn behind() {
    case(disagree("-1d"));
}
