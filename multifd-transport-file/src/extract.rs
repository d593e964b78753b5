//! One block's memory, out of a mapped-ram file.

use crate::{FileError, PlacedBlock, read_bitmap};
use multifd_core::runs;
use multifd_packet::Bitmap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const ROOM: usize = 1 << 20;

/// Writes a block's memory to `out`, byte for byte, from offset 0; zero pages become holes. Returns the bytes stored.
///
/// # Errors
/// [`FileError::Short`] if the file ends within the block; [`FileError::At`].
pub fn extract(file: &File, block: &PlacedBlock, out: &File) -> Result<u64, FileError> {
    let layout = &block.layout;
    let header = layout.header();
    let bitmap = read_bitmap(file, layout)?;
    let bitmap = Bitmap::new(&bitmap);
    let at = |doing, offset, len| {
        move |source| FileError::At {
            doing,
            offset,
            len,
            source,
        }
    };
    out.set_len(layout.used_length())
        .map_err(at("extending to", layout.used_length(), 0))?;
    let mut room = vec![0; ROOM];
    let mut stored = 0;
    // A page size is at most 512 KiB: it was checked when the layout was made.
    let page_size = u32::try_from(header.page_size).unwrap_or(u32::MAX);
    let pages = (0..layout.pages()).filter(|&page| bitmap.contains(page));
    for run in runs(pages.map(|page| page * header.page_size), page_size) {
        let mut done = 0;
        while done < run.len {
            let len = ROOM.min(run.len - done);
            let piece = room.get_mut(..len).unwrap_or_default();
            let offset = run.offset + done as u64;
            let from = header.pages_offset + offset;
            file.read_exact_at(piece, from)
                .map_err(|source| match source.kind() {
                    io::ErrorKind::UnexpectedEof => FileError::Short {
                        what: "pages",
                        offset: from,
                        len: len as u64,
                        end: file.metadata().map_or(0, |data| data.len()),
                    },
                    _ => at("reading", from, len)(source),
                })?;
            out.write_all_at(piece, offset)
                .map_err(at("writing", offset, len))?;
            done += len;
        }
        stored += run.len as u64;
    }
    Ok(stored)
}
