//! The fuzz targets' functions over their seeds and deterministic mutations of them: what runs where there is no nightly
//! toolchain. The seeds are heads and tails of streams recorded from a QEMU 10.0.2 (see `fuzz/seeds/README.md`).
#![allow(clippy::expect_used, clippy::unwrap_used)] // A panic is how a target reports a broken promise.

#[path = "../fuzz/targets.rs"]
#[allow(unreachable_pub)]
mod targets;

use std::path::Path;

/// Runs `target` over each seed, truncations of it, and random damages.
fn exercise(kind: &str, target: fn(&[u8]) -> bool) {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random as usize
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/seeds")
        .join(kind);
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).expect("the seeds are part of the crate") {
        let seed = std::fs::read(entry.unwrap().path()).unwrap();
        count += 1;
        assert!(target(&seed), "a seed of {kind} is refused");
        for len in (0..seed.len()).step_by(3) {
            target(&seed[..len]);
        }
        for _ in 0..1000 {
            let mut bytes = seed.clone();
            for _ in 0..=next() % 4 {
                let at = next() % bytes.len();
                bytes[at] = [0, 0xff, next() as u8][next() % 3];
            }
            target(&bytes);
        }
    }
    assert!(count > 0, "no seeds in {}", folder.display());
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
