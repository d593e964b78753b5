//! Memory that is new: a virtual machine is given it when it is first used, and its host takes back
//! what has been free for a while.

use crate::machine::memory;
use crate::ours::{Outcome, guest, shared};
use multifd_core::RamBlock;
use multifd_residency::preallocate;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Touches each page of a new file of `len` bytes on tmpfs, with as many threads, and frees them
/// again; says how long the touching took.
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

/// Linux tells the host of a virtual machine about memory two seconds after some has become free:
/// about all that is free then.
const REPORT: Duration = Duration::from_millis(2200);

/// Memory that has been touched, and is freed when this is dropped: what is new to a run that
/// begins then is not new to a virtual machine's host.
pub(crate) struct Warm {
    path: PathBuf,
    memory: RamBlock,
    /// When all that was free before has been reported: what is freed then stays with the machine
    /// for two more seconds.
    reported: Instant,
}

impl Warm {
    /// Touches `len` bytes, or half of what is available if that is less, in large pieces.
    pub(crate) fn up(path: PathBuf, len: u64) -> Outcome<Option<Self>> {
        let available =
            memory("MemAvailable").ok_or("the system does not say how much memory is available")?;
        let len = len.min(available / 2) >> 21 << 21;
        if len == 0 {
            return Ok(None);
        }
        let memory = guest(&path, Some(len))?;
        let reported = Instant::now() + REPORT;
        let warm = Self {
            path,
            memory,
            reported,
        };
        // Where there is no room for it, the run is measured without.
        Ok(preallocate(&warm.memory, true).is_ok().then_some(warm))
    }
}

impl Drop for Warm {
    fn drop(&mut self) {
        // A part of the measurement: nothing says when it has been.
        std::thread::sleep(self.reported.saturating_duration_since(Instant::now()));
        let _ = std::fs::remove_file(&self.path);
    }
}
