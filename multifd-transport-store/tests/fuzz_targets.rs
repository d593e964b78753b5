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
fn manifest() {
    exercise("manifest", targets::manifest);
}

#[test]
fn chunk_table() {
    exercise("chunk_table", targets::chunk_table);
}

#[test]
fn pack_index() {
    exercise("pack_index", targets::pack_index);
}

#[test]
fn working_set() {
    exercise("working_set", targets::working_set);
}
