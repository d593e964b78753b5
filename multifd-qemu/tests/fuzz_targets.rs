//! The fuzz targets over their seeds and the same mutations of them in every run: for machines
//! without a nightly toolchain.

#[path = "fuzz/targets.rs"]
#[allow(unreachable_pub, clippy::expect_used)]
mod targets;

use multifd_testing::{mutations, seeds};
use std::path::Path;

fn exercise(kind: &str, target: fn(&[u8]) -> bool) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds");
    for seed in seeds(&folder.join(kind)) {
        assert!(target(&seed), "a seed of {kind} is refused");
        mutations(&seed, 3, 1000, |bytes| {
            target(bytes);
        });
    }
}

#[test]
fn main_channel() {
    exercise("main_channel", targets::main_channel);
}

#[test]
fn mapped_file() {
    exercise("mapped_file", targets::mapped_file);
}

#[test]
fn device_sections() {
    exercise("device_sections", targets::device_sections);
}
