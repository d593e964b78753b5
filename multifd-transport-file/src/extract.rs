//! A block's memory, out of a mapped-ram file.

use crate::{BlockReader, FileError};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

const ROOM: usize = 1 << 20;

/// Writes `range` (bytes, whole pages) of a block's memory to `out` from offset `to` on, byte for
/// byte; what is not stored is left as it is, a hole in a new file. Returns the bytes written.
///
/// # Errors
/// [`FileError::Short`] if the file ends within the block; [`FileError::At`].
pub fn extract(
    reader: &BlockReader<'_>,
    range: Range<u64>,
    out: &File,
    to: u64,
) -> Result<u64, FileError> {
    let mut room = vec![0; ROOM];
    let mut written = 0;
    for run in reader.stored_runs(range.clone()) {
        let mut at = run.start;
        while at < run.end {
            let len = (run.end - at).min(ROOM as u64);
            let piece = room
                .get_mut(..usize::try_from(len).unwrap_or(0))
                .unwrap_or_default();
            reader.read(at, piece)?;
            let offset = to + (at - range.start);
            out.write_all_at(piece, offset)
                .map_err(|cause| FileError::At {
                    doing: "writing",
                    offset,
                    len: piece.len(),
                    cause,
                })?;
            written += len;
            at += len;
        }
    }
    Ok(written)
}
