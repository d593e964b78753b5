//! The fuzz targets over their seeds and the same mutations of them in every run: for machines
//! without a nightly toolchain.
#![cfg(all(
    feature = "zlib",
    feature = "zstd",
    feature = "qpl",
    feature = "uadk",
    feature = "qatzip"
))]

#[path = "fuzz/targets.rs"]
#[allow(unreachable_pub, clippy::expect_used)]
mod targets;

use std::path::Path;

fn exercise(kind: &str, target: fn(&[u8]) -> bool) {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds");
    multifd_testing::exercise(&seeds.join(kind), (97, 300), target);
}

#[test]
fn zlib() {
    exercise("zlib", targets::zlib);
}

#[test]
fn zstd() {
    exercise("zstd", targets::zstd);
}

#[test]
fn qpl() {
    exercise("qpl", targets::qpl);
}

#[test]
fn uadk() {
    exercise("uadk", targets::uadk);
}

#[test]
fn qatzip() {
    exercise("qatzip", targets::qatzip);
}
