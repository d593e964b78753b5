//! Memory that is new: a virtual machine is given it when it is first used, and its host takes back what has been free for a while.

use crate::machine::memory;
use crate::ours::{Outcome, guest, shared};
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

/// Touches `len` bytes of memory, or half of what is available if that is less, in large pieces, and frees them again: what is new
/// to a run is then not new to a virtual machine's host.
pub(crate) fn warm(path: &Path, len: u64) -> Outcome<()> {
    let available = memory("MemAvailable").ok_or("the system does not say how much memory is available")?;
    let len = len.min(available / 2) >> 21 << 21;
    if len == 0 {
        return Ok(());
    }
    let memory = guest(path, Some(len))?.with_known_zeros();
    std::thread::scope(|scope| {
        for (at, part) in [(0, len / 2), (len / 2, len - len / 2)] {
            let memory = &memory;
            scope.spawn(move || memory.prepare_to_write(at, usize::try_from(part).unwrap_or(0)));
        }
    });
    std::fs::remove_file(path)?;
    Ok(())
}
