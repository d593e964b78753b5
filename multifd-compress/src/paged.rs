//! What QPL and UADK packets have in common: a table of lengths, then each page compressed by
//! itself.
//!
//! `u32 length[normal pages]`, big-endian, then the pages' bytes back to back. A length of a whole
//! page means that the page is there as it is; no length is more.

use crate::packet_bytes::{page_bytes, take_payload};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use multifd_core::{
    IncomingPages, MethodError, PageBatch, PayloadBuf, Prepare, RecvChannel, Region, Unpack,
    UnpackError,
};
use multifd_packet::Compression as Kind;

const LENGTH: usize = size_of::<u32>();

/// Compresses each page by itself: raw deflate, or a zlib stream.
pub(crate) struct PagedCompress {
    method: Kind,
    deflate: Compress,
    pages: Vec<u8>,
    packed: Vec<u8>,
}

impl PagedCompress {
    pub(crate) fn new(method: Kind, level: u8, zlib_header: bool) -> Self {
        Self {
            method,
            deflate: Compress::new(Compression::new(level.into()), zlib_header),
            pages: Vec::new(),
            packed: Vec::new(),
        }
    }
}

/// Compresses a page; what that does not make smaller is sent as it is.
fn pack<'a>(
    deflate: &mut Compress,
    page: &'a [u8],
    packed: &'a mut Vec<u8>,
) -> Result<&'a [u8], String> {
    deflate.reset();
    packed.clear();
    // Always enough to finish: zlib-rs 0.6 does not reset a stream that has not.
    packed.reserve(crate::deflate_bound(page.len()));
    let status = deflate
        .compress_vec(page, packed, FlushCompress::Finish)
        .map_err(|e| e.to_string())?;
    if status != Status::StreamEnd {
        return Err("deflate took more room than it may".into());
    }
    Ok(if packed.len() < page.len() {
        packed
    } else {
        page
    })
}

impl Prepare for PagedCompress {
    fn prepare(&mut self, pages: &PageBatch, payload: &mut PayloadBuf) -> Result<(), MethodError> {
        let method = self.method;
        let codec = |reason| MethodError::Codec { method, reason };
        let data = page_bytes(pages, &mut self.pages).map_err(codec)?;
        let table = pages.normal().len() * LENGTH;
        let out = payload.staged();
        out.reserve(table + data.len());
        out.resize(table, 0);
        for (index, page) in data.chunks(pages.block().page_size() as usize).enumerate() {
            let bytes = pack(&mut self.deflate, page, &mut self.packed).map_err(codec)?;
            let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes();
            if let Some(entry) = out.get_mut(index * LENGTH..(index + 1) * LENGTH) {
                entry.copy_from_slice(&length);
            }
            out.extend_from_slice(bytes);
        }
        Ok(())
    }
}

/// Decompresses pages that were compressed each by itself.
pub(crate) struct PagedDecompress {
    method: Kind,
    inflate: Decompress,
    zlib_header: bool,
    payload: Vec<u8>,
    page: Vec<u8>,
}

impl PagedDecompress {
    pub(crate) fn new(method: Kind, zlib_header: bool) -> Self {
        Self {
            method,
            inflate: Decompress::new(zlib_header),
            zlib_header,
            payload: Vec::new(),
            page: Vec::new(),
        }
    }
}

impl Unpack for PagedDecompress {
    fn unpack(
        &mut self,
        pages: &IncomingPages<'_>,
        channel: &mut dyn RecvChannel,
    ) -> Result<(), UnpackError> {
        let Self {
            method,
            inflate,
            zlib_header,
            payload,
            page,
        } = self;
        let (method, count) = (*method, pages.len());
        let payload = take_payload(pages, channel, payload)?;
        page.resize(pages.page_size(), 0);
        let too_short = |index| UnpackError::TooShort {
            method,
            page: index,
            pages: count,
        };
        let (table, mut left) = payload
            .split_at_checked(count * LENGTH)
            .ok_or_else(|| too_short(0))?;
        let (lengths, _) = table.as_chunks::<LENGTH>();
        for (index, (target, length)) in pages.pages().zip(lengths).enumerate() {
            let damaged = |reason: String| UnpackError::Damaged {
                method,
                page: index,
                pages: count,
                reason,
            };
            let length = u32::from_be_bytes(*length) as usize;
            if length > page.len() {
                return Err(damaged(format!(
                    "its length is {length}, more than a page of {}",
                    page.len()
                )));
            }
            let bytes = left.split_off(..length).ok_or_else(|| too_short(index))?;
            place(bytes, target, inflate, *zlib_header, page).map_err(damaged)?;
        }
        if left.is_empty() {
            return Ok(());
        }
        Err(UnpackError::TooLong {
            method,
            pages: count,
            left: left.len(),
        })
    }
}

/// Puts one page in place, from exactly its bytes.
fn place(
    bytes: &[u8],
    target: Region<'_>,
    inflate: &mut Decompress,
    zlib_header: bool,
    page: &mut [u8],
) -> Result<(), String> {
    if bytes.len() == page.len() {
        target.copy_from(bytes);
        return Ok(());
    }
    inflate.reset(zlib_header);
    let status = inflate
        .decompress(bytes, page, FlushDecompress::Finish)
        .map_err(|e| e.to_string())?;
    let (used, made) = (inflate.total_in(), inflate.total_out());
    if status != Status::StreamEnd || made != page.len() as u64 || used != bytes.len() as u64 {
        return Err(format!(
            "its stream of {} bytes gave {made} bytes from {used}, and {}",
            bytes.len(),
            if status == Status::StreamEnd {
                "ended there"
            } else {
                "did not end"
            }
        ));
    }
    target.copy_from(page);
    Ok(())
}
