//! zlib: one stream for the life of a channel, each packet's part ended with a sync flush.

use crate::packet_bytes::page_bytes;
use crate::stream::{Decompress, Inflate, check_level};
use flate2::{Compress, Compression, FlushCompress, FlushDecompress};
use multifd_core::{MethodError, PageBatch, PayloadBuf, Prepare, Unpack};

/// The method zlib. Its packets are parts of one stream: only their channel can prepare them, so this is no method with
/// [`IndependentPackets`](multifd_core::IndependentPackets).
#[derive(Debug, Clone, Copy)]
pub struct Zlib {
    level: u8,
}

impl Zlib {
    /// zlib at a level from 0 (stored) to 9 (smallest); QEMU's default is 1.
    ///
    /// # Errors
    /// [`MethodError::Level`] for a level above 9.
    pub fn new(level: u8) -> Result<Self, MethodError> {
        let level = check_level(multifd_packet::Method::Zlib, level, 9)?;
        Ok(Self { level })
    }
}

impl Default for Zlib {
    fn default() -> Self {
        Self { level: 1 }
    }
}

impl multifd_core::Method for Zlib {
    fn kind(&self) -> multifd_packet::Method {
        multifd_packet::Method::Zlib
    }

    fn preparer(&self) -> Result<Box<dyn Prepare>, MethodError> {
        let level = Compression::new(self.level.into());
        Ok(Box::new(StreamCompress {
            deflate: Compress::new(level, true),
            pages: Vec::new(),
        }))
    }

    fn unpacker(&self) -> Result<Box<dyn Unpack>, MethodError> {
        Ok(Box::new(Decompress::new(flate2::Decompress::new(true))))
    }
}

fn delta(before: u64, after: u64) -> usize {
    usize::try_from(after.saturating_sub(before)).unwrap_or(0)
}

struct StreamCompress {
    deflate: Compress,
    pages: Vec<u8>,
}

impl Prepare for StreamCompress {
    fn prepare(&mut self, pages: &PageBatch, payload: &mut PayloadBuf) -> Result<(), MethodError> {
        let codec = |reason| MethodError::Codec {
            method: multifd_packet::Method::Zlib,
            reason,
        };
        let input = page_bytes(pages, &mut self.pages).map_err(codec)?;
        deflate_part(&mut self.deflate, input, payload.staged()).map_err(codec)
    }
}

/// Compresses all of `input`, flushes, and appends the result to `out`.
fn deflate_part(deflate: &mut Compress, mut input: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
    // The most deflate makes of `input` in stored blocks, and the flush's own empty one.
    out.reserve(input.len() + input.len() / 1000 + 64);
    loop {
        let before = deflate.total_in();
        deflate
            .compress_vec(input, out, FlushCompress::Sync)
            .map_err(|e| e.to_string())?;
        let used = delta(before, deflate.total_in());
        input = input.get(used..).unwrap_or_default();
        // A flush is complete when it leaves room.
        if out.len() < out.capacity() {
            return if input.is_empty() {
                Ok(())
            } else {
                Err(format!("{} bytes of input were not taken", input.len()))
            };
        }
        out.reserve(4096);
    }
}

impl Inflate for flate2::Decompress {
    const METHOD: multifd_packet::Method = multifd_packet::Method::Zlib;

    fn inflate(&mut self, input: &[u8], out: &mut [u8]) -> Result<(usize, usize), String> {
        let (before_in, before_out) = (self.total_in(), self.total_out());
        self.decompress(input, out, FlushDecompress::Sync)
            .map_err(|e| e.to_string())?;
        Ok((
            delta(before_in, self.total_in()),
            delta(before_out, self.total_out()),
        ))
    }
}
