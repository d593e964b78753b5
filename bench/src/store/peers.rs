//! What else keeps memory.

use crate::ours::Outcome;
use memmap2::Mmap;
use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

const PAGE: usize = 4096;

fn map(file: &Path) -> Outcome<Mmap> {
    let file = File::open(file)?;
    // SAFETY: nobody writes to the file while it is measured.
    #[allow(unsafe_code)]
    let map = unsafe { Mmap::map(&file)? };
    Ok(map)
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes
        .chunks(64)
        .all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
}

/// zstd alone, on all processors: pieces of so many bytes that are not zero, compressed at level 1
/// and thrown away, or written to a file in any order and synced. Returns seconds.
pub(super) fn zstd_alone(file: &Path, piece: usize, to: Option<&Path>) -> Outcome<f64> {
    let map = map(file)?;
    let written = to.map(File::create).transpose()?;
    let next = AtomicUsize::new(0);
    let begun = Instant::now();
    let work = || -> std::io::Result<()> {
        let mut compressor = zstd::bulk::Compressor::new(1)?;
        let mut out = Vec::with_capacity(zstd::zstd_safe::compress_bound(piece));
        loop {
            let at = next.fetch_add(piece, Ordering::Relaxed);
            let Some(bytes) = map
                .get(at..map.len().min(at + piece))
                .filter(|b| !b.is_empty())
            else {
                return Ok(());
            };
            if !is_zero(bytes) {
                out.clear();
                compressor.compress_to_buffer(bytes, &mut out)?;
                if let Some(mut file) = written.as_ref() {
                    file.write_all(&out)?;
                }
            }
        }
    };
    std::thread::scope(|scope| -> std::io::Result<()> {
        let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or(Ok(())))
    })?;
    written.map_or(Ok(()), |file| file.sync_all())?;
    Ok(begun.elapsed().as_secs_f64())
}

/// The same back: pieces that were compressed first. Returns bytes of memory a second.
pub(super) fn unzstd_rate(file: &Path, piece: usize) -> Outcome<f64> {
    let map = map(file)?;
    let pieces = map.chunks(piece).filter(|bytes| !is_zero(bytes));
    let packed: Vec<(Vec<u8>, usize)> = pieces
        .map(|bytes| Ok((zstd::bulk::compress(bytes, 1)?, bytes.len())))
        .collect::<std::io::Result<_>>()?;
    let total: usize = packed.iter().map(|(_, len)| len).sum();
    let next = AtomicUsize::new(0);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut out = vec![0; piece];
                while let Some((bytes, _)) = packed.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let _ = zstd::bulk::decompress_to_buffer(bytes, &mut out);
                }
            });
        }
    });
    #[allow(clippy::cast_precision_loss)] // Figures for people.
    Ok(total as f64 / begun.elapsed().as_secs_f64())
}

/// Runs a program to its end, in silence. Returns seconds.
pub(super) fn program(name: &str, args: &[&str], variables: &[(&str, &str)]) -> Outcome<f64> {
    let begun = Instant::now();
    let output = Command::new(name)
        .args(args)
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()?;
    if !output.status.success() {
        return Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(begun.elapsed().as_secs_f64())
}

/// Whether a program is here.
pub(super) fn has(name: &str) -> bool {
    Command::new(name).arg("--version").output().is_ok()
}

/// Bytes of all files below a folder.
pub(super) fn size(folder: &Path) -> Outcome<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let data = entry.metadata()?;
        sum += if data.is_dir() {
            size(&entry.path())?
        } else {
            data.size()
        };
    }
    Ok(sum)
}

/// The optimum: each different page that is not zero, compressed by itself.
#[derive(Default)]
pub(super) struct Optimum {
    seen: HashSet<[u8; 32]>,
    pub(super) bytes: u64,
}

impl Optimum {
    /// Adds a file; returns how many bytes it added.
    pub(super) fn add(&mut self, file: &Path) -> Outcome<u64> {
        let before = self.bytes;
        for page in map(file)?.chunks(PAGE) {
            if !is_zero(page) && self.seen.insert(*blake3::hash(page).as_bytes()) {
                self.bytes += zstd::bulk::compress(page, 1)?.len().min(PAGE) as u64;
            }
        }
        Ok(self.bytes - before)
    }
}
