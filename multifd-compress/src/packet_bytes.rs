//! A packet's bytes in memory of our own: pages before they are compressed, a payload before it is
//! decompressed.

use multifd_core::{IncomingPages, PageBatch, RecvChannel, UnpackError};

/// Room for `len` bytes at the start of `room`, which only ever grows: nothing is cleared twice.
fn grow(room: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if room.len() < len {
        room.resize(len, 0);
    }
    room.get_mut(..len).unwrap_or_default()
}

/// A batch's normal pages, one after another: in place if they lie so in memory that cannot
/// change; else copied out of guest memory, which may change while a codec looks at it.
pub(crate) fn page_bytes<'a>(
    pages: &'a PageBatch,
    room: &'a mut Vec<u8>,
) -> Result<&'a [u8], String> {
    let mut runs = pages.normal_runs();
    if let (Some(run), None) = (runs.next(), runs.next())
        && let Some(bytes) = pages.block().frozen_bytes(run.offset, run.len)
    {
        return Ok(bytes);
    }
    let size = pages.block().page_size() as usize;
    let all = grow(room, pages.normal().len() * size);
    let mut left = &mut *all;
    for run in pages.normal_runs() {
        let region = pages
            .block()
            .region(run.offset, run.len)
            .map_err(|e| e.to_string())?;
        let copied = region.copy_to(left);
        left = left.split_at_mut(copied).1;
    }
    Ok(all)
}

/// Takes a packet's whole payload from its channel.
pub(crate) fn take_payload<'a>(
    pages: &IncomingPages<'_>,
    channel: &mut dyn RecvChannel,
    room: &'a mut Vec<u8>,
) -> Result<&'a [u8], UnpackError> {
    let payload = grow(room, pages.payload_len());
    channel.recv(payload)?;
    Ok(payload)
}
