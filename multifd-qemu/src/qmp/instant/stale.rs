//! Pages that are zero, and in whose place a file has something else.

use crate::Error;
use multifd_transport_file::{BlockReader, FileError, data_in};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Bytes looked at at once.
const ROOM: usize = 1 << 20;

/// The ranges (bytes) of a block's pages that are zero, but hold something in the file: QEMU leaves
/// what it has written for an earlier round of a page that became zero. Holes are not looked at.
pub(super) fn stale_pages(file: &File, reader: &BlockReader<'_>) -> Result<Vec<Range<u64>>, Error> {
    let layout = &reader.block().layout;
    let page = layout.header().page_size;
    let start = layout.header().pages_offset;
    let mut stale = Vec::new();
    let mut room = vec![0; ROOM];
    let mut from = 0;
    let stored = reader.stored_runs(0..layout.used_length());
    let end = layout.used_length()..layout.used_length();
    for run in stored.chain([end]) {
        for data in data_in(file, start + from..start + run.start)? {
            // Whole pages.
            let mut at = data.start - (data.start - start) % page;
            while at < data.end {
                let len = (data.end - at).div_ceil(page) * page;
                let len = usize::try_from(len).unwrap_or(ROOM).min(ROOM);
                let bytes = room.get_mut(..len).unwrap_or_default();
                let read = read_some(file, bytes, at)?;
                let pages = bytes.get(..read).unwrap_or_default();
                for (index, bytes) in pages.chunks(usize::try_from(page).unwrap_or(1)).enumerate() {
                    if bytes.iter().any(|&byte| byte != 0) {
                        let offset = at - start + index as u64 * page;
                        push(&mut stale, offset..offset + page);
                    }
                }
                at += len as u64;
            }
        }
        from = run.end;
    }
    Ok(stale)
}

/// Adds a range behind others, joined with the last one if it follows it.
pub(super) fn push(ranges: &mut Vec<Range<u64>>, more: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if more.start <= last.end => last.end = last.end.max(more.end),
        _ => ranges.push(more),
    }
}

/// The ranges of both lists, in order, none twice.
pub(super) fn union(one: Vec<Range<u64>>, other: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut all = [one, other].concat();
    all.sort_unstable_by_key(|range| range.start);
    let mut joined = Vec::with_capacity(all.len());
    for range in all {
        push(&mut joined, range);
    }
    joined
}

/// Reads as much as there is; the end of the file reads as nothing.
fn read_some(file: &File, bytes: &mut [u8], at: u64) -> Result<usize, FileError> {
    let len = bytes.len();
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(cause) => {
                return Err(FileError::At {
                    doing: "reading",
                    offset: at,
                    len,
                    cause,
                });
            }
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_joined() {
        let joined = union(vec![0..2, 6..8], vec![1..3, 3..4, 10..11]);
        assert_eq!(joined, [0..4, 6..8, 10..11]);
        assert!(union(Vec::new(), Vec::new()).is_empty());
    }
}
