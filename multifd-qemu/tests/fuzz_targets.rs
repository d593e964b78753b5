//! The fuzz targets over their seeds and the same mutations of them in every run: for machines
//! without a nightly toolchain.

#[path = "fuzz/targets.rs"]
#[allow(unreachable_pub, clippy::expect_used)]
mod targets;

use std::path::Path;

fn exercise(kind: &str, target: fn(&[u8]) -> bool) {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds");
    multifd_testing::exercise(&seeds.join(kind), (3, 1000), target);
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
