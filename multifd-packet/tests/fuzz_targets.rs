//! The fuzz targets over their seeds and the same mutations of them in every run: for machines
//! without a nightly toolchain. The seeds were cut from streams of a QEMU 10.0.2: see
//! `fuzz/seeds/README.md`.

#[path = "fuzz/targets.rs"]
#[allow(unreachable_pub, clippy::wildcard_imports, clippy::expect_used)]
mod targets;

use multifd_testing::{mutations, seeds};
use std::path::Path;

fn exercise(kind: &str, target: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds");
    for seed in seeds(&folder.join(kind)) {
        mutations(&seed, 1, 2000, target);
    }
}

#[test]
fn init() {
    exercise("init", targets::init);
}

#[test]
fn ram() {
    exercise("ram", targets::ram);
}

#[test]
fn device_state() {
    exercise("device_state", targets::device_state);
}

#[test]
fn mapped_ram() {
    exercise("mapped_ram", targets::mapped_ram);
}

#[test]
fn packets() {
    for kind in ["init", "ram", "device_state"] {
        exercise(kind, targets::packets);
    }
}

#[test]
fn reencode() {
    for kind in ["init", "ram", "device_state", "mapped_ram"] {
        exercise(kind, targets::reencode);
    }
}
