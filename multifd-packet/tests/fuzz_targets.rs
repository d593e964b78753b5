//! The fuzz targets' functions over their seeds and deterministic mutations of them: what runs where there is no
//! nightly toolchain. The seeds were cut from streams recorded from a QEMU 10.0.2 (see `fuzz/seeds/README.md`).

// Test code: a panic is how a target reports a broken promise.
#![allow(clippy::expect_used, clippy::unwrap_used)]

#[path = "../fuzz/targets.rs"]
#[allow(unreachable_pub, clippy::wildcard_imports)]
mod targets;

use std::path::Path;

fn seeds(kind: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/seeds")
        .join(kind);
    let mut seeds: Vec<_> = std::fs::read_dir(&folder)
        .expect("the seeds folder is part of the crate")
        .map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
        .collect();
    seeds.sort();
    assert!(!seeds.is_empty(), "no seeds in {}", folder.display());
    seeds
}

/// Runs `target` over each seed, every truncation of it, every byte set to telling values, and 2,000 random damages.
fn exercise(kind: &str, target: fn(&[u8])) {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random as usize
    };
    for seed in seeds(kind) {
        for len in 0..=seed.len() {
            target(&seed[..len]);
        }
        for at in 0..seed.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff, seed[at] ^ 1, seed[at].wrapping_add(1)] {
                let mut bytes = seed.clone();
                bytes[at] = value;
                target(&bytes);
            }
        }
        for _ in 0..2000 {
            let mut bytes = seed.clone();
            for _ in 0..=next() % 8 {
                let at = next() % bytes.len();
                bytes[at] = next() as u8;
            }
            target(&bytes);
        }
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
fn reencode() {
    for kind in ["init", "ram", "device_state", "mapped_ram"] {
        exercise(kind, targets::reencode);
    }
}
