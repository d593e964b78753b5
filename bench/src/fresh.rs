//! Memory that is new: a virtual machine is given it when it is first used, and its host takes back what has been free for a while.

use crate::ours::{Outcome, guest, shared};
use std::path::Path;
use std::sync::Arc;
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
    let half = available()? / 2;
    let len = len.min(half) >> 21 << 21;
    if len == 0 {
        return Ok(());
    }
    let memory = Arc::new(guest(path, Some(len))?.with_known_zeros());
    std::thread::scope(|scope| {
        for (at, part) in [(0, len / 2), (len / 2, len - len / 2)] {
            let memory = &memory;
            scope.spawn(move || memory.prepare_to_write(at, usize::try_from(part).unwrap_or(0)));
        }
    });
    std::fs::remove_file(path)?;
    Ok(())
}

/// Bytes of memory that the system could give.
fn available() -> Outcome<u64> {
    let about = std::fs::read_to_string("/proc/meminfo")?;
    let line = about.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .ok_or("no MemAvailable")?;
    Ok(kib.parse::<u64>()? << 10)
}
