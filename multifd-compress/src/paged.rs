//! What QPL and UADK packets have in common: a table of lengths, then each page compressed by itself.
//!
//! `u32 length[normal pages]`, big-endian, then the pages' bytes back to back. A length of a whole page means that the page
//! is there as it is; no length is more.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use multifd_core::{
    IncomingPages, MethodError, PageBatch, PayloadBuf, Prepare, RecvChannel, Region, Unpack, UnpackError,
};
use multifd_packet::Method;

const LENGTH: usize = size_of::<u32>();

/// Compresses each page by itself: raw deflate, or a zlib stream.
pub(crate) struct PagedCompress {
    method: Method,
    deflate: Compress,
    page: Vec<u8>,
    packed: Vec<u8>,
}

impl PagedCompress {
    pub(crate) fn new(method: Method, level: u8, zlib_header: bool) -> Self {
        Self {
            method,
            deflate: Compress::new(Compression::new(level.into()), zlib_header),
            page: Vec::new(),
            packed: Vec::new(),
        }
    }

    /// Compresses `self.page` into `self.packed`; `false` if that does not make it smaller.
    fn pack(&mut self) -> Result<bool, String> {
        self.deflate.reset();
        self.packed.clear();
        // Always enough to finish: zlib-rs 0.6 does not reset a stream that has not.
        self.packed.reserve(crate::deflate_bound(self.page.len()));
        let status = self
            .deflate
            .compress_vec(&self.page, &mut self.packed, FlushCompress::Finish)
            .map_err(|e| e.to_string())?;
        if status != Status::StreamEnd {
            return Err("deflate took more room than it may".into());
        }
        Ok(self.packed.len() < self.page.len())
    }
}

impl Prepare for PagedCompress {
    fn prepare(&mut self, pages: &PageBatch, payload: &mut PayloadBuf) -> Result<(), MethodError> {
        let method = self.method;
        let codec = |reason| MethodError::Codec { method, reason };
        let table = pages.normal().len() * LENGTH;
        let size = pages.block().page_size() as usize;
        let out = payload.staged();
        out.reserve(table + pages.normal().len() * size);
        out.resize(table, 0);
        self.page.resize(size, 0);
        for (index, &offset) in pages.normal().iter().enumerate() {
            let region = pages.block().page(offset).map_err(|e| codec(e.to_string()))?;
            region.copy_to(&mut self.page);
            let smaller = self.pack().map_err(codec)?;
            let bytes = if smaller { &self.packed } else { &self.page };
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
    method: Method,
    inflate: Decompress,
    zlib_header: bool,
    payload: Vec<u8>,
    page: Vec<u8>,
}

impl PagedDecompress {
    pub(crate) fn new(method: Method, zlib_header: bool) -> Self {
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
        payload.resize(pages.payload_len(), 0);
        channel.recv(payload)?;
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
