//! The memory that is moved: zero pages, compressible ones, random ones, in runs.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

const PAGE: usize = 4096;

/// A small generator whose numbers are the same everywhere (xorshift64*).
#[derive(Debug, Clone)]
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_mut(8) {
            let number = self.next().to_le_bytes();
            word.copy_from_slice(&number[..word.len()]);
        }
    }
}

/// Bytes as programs and libraries have them, from this machine.
fn compressible(most: usize) -> std::io::Result<Vec<u8>> {
    let mut files: Vec<PathBuf> = Vec::new();
    for folder in ["/usr/bin", "/usr/lib/x86_64-linux-gnu", "/usr/share/doc"] {
        let Ok(entries) = std::fs::read_dir(folder) else {
            continue;
        };
        files.extend(
            entries
                .flatten()
                .map(|entry| entry.path())
                .filter(|path| path.is_file()),
        );
    }
    files.sort();
    let mut bytes = Vec::new();
    for file in files {
        let left = most.saturating_sub(bytes.len());
        if left == 0 {
            break;
        }
        if let Ok(file) = File::open(file) {
            file.take((left as u64).min(8 << 20))
                .read_to_end(&mut bytes)?;
        }
    }
    if bytes.is_empty() {
        return Err(std::io::Error::other(
            "this machine has no files to make compressible memory of",
        ));
    }
    Ok(bytes)
}

/// Writes an image: of ten runs of 1 to 64 pages, three are zero, four from files of the machine,
/// three random.
pub(crate) fn write(path: &Path, len: u64, seed: u64) -> std::io::Result<()> {
    let source = compressible(256 << 20)?;
    let mut numbers = Numbers::new(seed);
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut room = vec![0; 64 * PAGE];
    let (mut left, mut at) = (usize::try_from(len).map_err(std::io::Error::other)?, 0);
    while left > 0 {
        let pages = 1 + (numbers.next() % 64) as usize;
        let run = &mut room[..(pages * PAGE).min(left)];
        match numbers.next() % 10 {
            0..3 => run.fill(0),
            3..7 => {
                for byte in run.iter_mut() {
                    *byte = source[at % source.len()];
                    at += 1;
                }
            }
            _ => numbers.fill(run),
        }
        out.write_all(run)?;
        left -= run.len();
    }
    out.flush()
}
