//! A snapshot's file, written out; and all of a snapshot, looked at.

use super::files::stretches;
use super::{Snapshot, SnapshotFiles};
use crate::StoreError;
use crate::threads::FirstError;
use multifd_core::CancelHandle;
use multifd_core::sync::lock;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Most problems that are listed.
const MAX_PROBLEMS: usize = 100;

impl SnapshotFiles {
    /// Writes a file into `out`, which must be empty; where it is zero there are holes. `done`
    /// counts bytes. `to` is what `out` is called in errors.
    ///
    /// # Errors
    /// [`StoreError`]; then a part of it has been written.
    pub fn write_to(
        &self,
        path: &str,
        (out, to): (&File, &Path),
        threads: usize,
        done: &AtomicU64,
        cancel: &CancelHandle,
    ) -> Result<(), StoreError> {
        let snapshot = self.snapshot();
        let failed = |cause| StoreError::Path {
            path: to.into(),
            doing: "writing",
            cause,
        };
        let len = self.len(path).ok_or_else(|| StoreError::Missing {
            store: snapshot.manifest().head.name.clone(),
            object: path.into(),
        })?;
        out.set_len(len).map_err(failed)?;
        if let Some(text) = self.text(path) {
            return out.write_all_at(text, 0).map_err(failed);
        }
        // Where each chunk goes, perhaps in part: chunk, first byte, bytes, place.
        let mut places: Vec<(usize, u32, u32, u64)> = Vec::new();
        for part in self.parts(path) {
            for stretch in stretches(snapshot.manifest(), *part, part.at) {
                if let Some(chunk) = stretch.chunk {
                    let (from, len) = (stretch.from as u32, stretch.len as u32);
                    places.push((chunk, from, len, stretch.at));
                }
            }
        }
        places.sort_unstable();
        let mut order: Vec<usize> = places.iter().map(|place| place.0).collect();
        order.dedup();
        let problem = FirstError::default();
        let stop = |error: StoreError| {
            problem.note(error);
            false
        };
        snapshot.fetch(&order, threads, |chunk, contents| {
            if let Some(cancelled) = cancel.error() {
                return stop(StoreError::Cancelled(cancelled));
            }
            let contents = match contents {
                Ok(contents) => contents,
                Err(error) => return stop(error),
            };
            let first = places.partition_point(|place| place.0 < chunk);
            for &(_, from, len, at) in places[first..].iter().take_while(|place| place.0 == chunk) {
                let Some(piece) = contents.get(from as usize..(from + len) as usize) else {
                    return stop(snapshot.chunk_error(chunk, "it is too short"));
                };
                if let Err(error) = out.write_all_at(piece, at) {
                    return stop(failed(error));
                }
                done.fetch_add(u64::from(len), Ordering::Relaxed);
            }
            true
        })?;
        problem.result()
    }
}

impl Snapshot {
    /// Reads every chunk, and returns what is wrong: each chunk that cannot be read, with its
    /// place. At most 100 are listed, and how many more there are. `done` counts chunks.
    ///
    /// # Errors
    /// [`StoreError::Cancelled`].
    pub fn verify(
        &self,
        threads: usize,
        done: &AtomicU64,
        cancel: &CancelHandle,
    ) -> Result<Vec<String>, StoreError> {
        let mut order: Vec<usize> = (0..self.manifest().chunks().len()).collect();
        let chunks = self.manifest().chunks();
        order.sort_by_key(|&chunk| (chunks[chunk].pack, chunks[chunk].offset));
        let problems = Mutex::new((Vec::new(), 0_usize));
        self.fetch(&order, threads, |_, contents| {
            done.fetch_add(1, Ordering::Relaxed);
            if let Err(error) = contents {
                let mut problems = lock(&problems);
                if problems.0.len() < MAX_PROBLEMS {
                    problems.0.push(error.to_string());
                } else {
                    problems.1 += 1;
                }
            }
            cancel.error().is_none()
        })?;
        if let Some(cancelled) = cancel.error() {
            return Err(StoreError::Cancelled(cancelled));
        }
        let (mut problems, more) = problems
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        if more > 0 {
            problems.push(format!("{more} more chunks cannot be read"));
        }
        Ok(problems)
    }
}
