//! Two files' idea of one block.

use crate::{BlockReader, FileError};
use multifd_core::{Run, runs};
use rayon::prelude::*;
use std::collections::BTreeSet;

/// Bytes compared at a time.
const CHUNK: u64 = 1 << 20;

/// The pages in which two blocks differ, as runs of adjacent ones in order. Where one block is
/// longer, its further pages differ unless they are zero. All processors take part.
///
/// # Errors
/// [`FileError`], of either file.
pub fn changed_pages(a: &BlockReader<'_>, b: &BlockReader<'_>) -> Result<Vec<Run>, FileError> {
    let page_size = a.block().layout.header().page_size;
    let len = a
        .block()
        .layout
        .used_length()
        .max(b.block().layout.used_length());
    // What neither stores is zero in both.
    let stored = [a, b]
        .into_iter()
        .flat_map(|reader| reader.stored_runs(0..len));
    let chunks: BTreeSet<u64> = stored
        .flat_map(|run| run.start / CHUNK..run.end.div_ceil(CHUNK))
        .collect();
    let chunks: Vec<u64> = chunks.into_iter().collect();
    let found: Vec<Vec<u64>> = chunks
        .into_par_iter()
        .map(|chunk| {
            changed_in(
                a,
                b,
                chunk * CHUNK,
                CHUNK.min(len - chunk * CHUNK),
                page_size,
            )
        })
        .collect::<Result<_, _>>()?;
    let page = u32::try_from(page_size).unwrap_or(u32::MAX);
    Ok(runs(found.into_iter().flatten(), page).collect())
}

fn changed_in(
    a: &BlockReader<'_>,
    b: &BlockReader<'_>,
    at: u64,
    len: u64,
    page_size: u64,
) -> Result<Vec<u64>, FileError> {
    let size = usize::try_from(len).unwrap_or(0);
    let (mut one, mut other) = (vec![0; size], vec![0; size]);
    a.read(at, &mut one)?;
    b.read(at, &mut other)?;
    let page = usize::try_from(page_size).unwrap_or(usize::MAX);
    let pages = one.chunks(page).zip(other.chunks(page)).enumerate();
    let changed = pages.filter(|(_, (x, y))| x != y);
    Ok(changed
        .map(|(number, _)| at + number as u64 * page_size)
        .collect())
}
