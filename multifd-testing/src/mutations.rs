//! Damaged copies of a seed, the same in every run.

use std::path::Path;

/// The files of a folder, by name: the seeds of a fuzz target.
pub fn seeds(folder: &Path) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(folder).expect("the seeds are part of the crate");
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "no seeds in {}", folder.display());
    paths
        .iter()
        .map(|path| std::fs::read(path).unwrap())
        .collect()
}

/// Runs a fuzz target that says whether it accepts its input over the seeds in `folder`, all of
/// which it must accept, and over mutations of them: see [`mutations`] for `step` and `random`.
pub fn exercise(folder: &Path, (step, random): (usize, usize), target: fn(&[u8]) -> bool) {
    for seed in seeds(folder) {
        assert!(target(&seed), "a seed in {} is refused", folder.display());
        mutations(&seed, step, random, |bytes| {
            target(bytes);
        });
    }
}

/// Runs `target` over `seed`, over every `step`th truncation of it, over every `step`th byte set to
/// telling values, and over `random` copies with a few bytes damaged.
pub fn mutations(seed: &[u8], step: usize, random: usize, mut target: impl FnMut(&[u8])) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    target(seed);
    for len in (0..seed.len()).step_by(step) {
        target(&seed[..len]);
    }
    let mut bytes = seed.to_vec();
    for at in (0..seed.len()).step_by(step) {
        for value in [
            0,
            1,
            0x7f,
            0x80,
            0xff,
            seed[at] ^ 1,
            seed[at].wrapping_add(1),
        ] {
            bytes[at] = value;
            target(&bytes);
        }
        bytes[at] = seed[at];
    }
    for _ in 0..random {
        bytes.copy_from_slice(seed);
        for _ in 0..=next() % 8 {
            let at = next() % bytes.len().max(1);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = [0, 0xff, next() as u8][next() % 3];
            }
        }
        target(&bytes);
    }
}
