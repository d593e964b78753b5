//! Memory that is new: a virtual machine is given it when it is first used, and its host takes back what has been free for a while.

use crate::ours::{Outcome, shared};
use std::path::Path;
use std::time::{Duration, Instant};

/// Touches each page of a new file of `len` bytes on tmpfs, with as many threads, and frees them again; says how long the touching took.
pub(crate) fn touch(path: &Path, len: u64, threads: usize) -> Outcome<Duration> {
    let mut map = shared(path, Some(len))?;
    let part = map.len().div_ceil(threads);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for part in map.chunks_mut(part) {
            scope.spawn(|| part.chunks_mut(4096).for_each(|page| page[0] = 1));
        }
    });
    let took = begun.elapsed();
    std::fs::remove_file(path)?;
    Ok(took)
}
