//! zlib: one stream for the life of a channel, each packet's part ended with a sync flush.

use crate::incompressible::Sieve;
use crate::packet_bytes::page_bytes;
use crate::stream::{Decompress, Inflate, Refused, check_level};
use flate2::{Compress, Compression, FlushCompress, FlushDecompress};
use multifd_core::{MethodError, PageBatch, PayloadBuf, Prepare, Unpack};

/// The method zlib. Its packets are parts of one stream: only their channel can prepare them, so
/// this is no method with [`IndependentPackets`](multifd_core::IndependentPackets).
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
        let level = check_level(multifd_packet::Compression::Zlib, level, 9)?;
        Ok(Self { level })
    }
}

impl Default for Zlib {
    fn default() -> Self {
        Self { level: 1 }
    }
}

impl multifd_core::Method for Zlib {
    fn kind(&self) -> multifd_packet::Compression {
        multifd_packet::Compression::Zlib
    }

    fn preparer(&self) -> Result<Box<dyn Prepare>, MethodError> {
        let level = Compression::new(self.level.into());
        Ok(Box::new(StreamCompress {
            deflate: Compress::new(level, true),
            has_history: true,
            sieve: (self.level > 0).then(Sieve::new),
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
    /// Something may refer to what `deflate` was given before, or the stream's header is still to
    /// come.
    has_history: bool,
    /// None where all is stored anyway.
    sieve: Option<Sieve>,
    pages: Vec<u8>,
}

impl Prepare for StreamCompress {
    fn prepare(&mut self, pages: &PageBatch, payload: &mut PayloadBuf) -> Result<(), MethodError> {
        let codec = |reason| MethodError::Codec {
            method: multifd_packet::Compression::Zlib,
            reason,
        };
        let size = pages.block().page_size() as usize;
        let Self {
            deflate,
            has_history,
            sieve,
            pages: room,
        } = self;
        let input = page_bytes(pages, room).map_err(codec)?;
        let out = payload.staged();
        let mut parts = Parts {
            left: input,
            size,
            sieve,
            next: None,
        };
        while let Some((part, is_compressible)) = parts.next() {
            if is_compressible {
                deflate_part(deflate, part, FlushCompress::Sync, out).map_err(codec)?;
                *has_history = true;
                continue;
            }
            // What comes after must not refer to what came before, as `deflate` knows nothing of
            // what is stored between.
            if std::mem::take(has_history) {
                deflate_part(deflate, &[], FlushCompress::Full, out).map_err(codec)?;
            }
            store(part, out);
        }
        Ok(())
    }
}

/// Appends `input` as stored blocks of a stream that is at a byte's start, as it is after a flush
/// (RFC 1951, 3.2.4).
fn store(input: &[u8], out: &mut Vec<u8>) {
    let most = usize::from(u16::MAX);
    out.reserve(input.len() + 5 * input.len().div_ceil(most));
    for block in input.chunks(most) {
        let len = u16::try_from(block.len()).unwrap_or(u16::MAX);
        out.push(0);
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&(!len).to_le_bytes());
        out.extend_from_slice(block);
    }
}

/// Splits a packet's pages into parts that are compressible and parts that are not.
struct Parts<'a> {
    left: &'a [u8],
    size: usize,
    sieve: &'a mut Option<Sieve>,
    /// What the first page left is, if it has been looked at.
    next: Option<bool>,
}

impl<'a> Parts<'a> {
    fn is_compressible(&mut self, page: &[u8]) -> bool {
        !self
            .sieve
            .as_mut()
            .is_some_and(|sieve| sieve.is_incompressible(page))
    }

    fn next(&mut self) -> Option<(&'a [u8], bool)> {
        let mut pages = self.left.chunks(self.size);
        let first = pages.next()?;
        let is_compressible = self
            .next
            .take()
            .unwrap_or_else(|| self.is_compressible(first));
        let mut len = first.len();
        for page in pages {
            let other = self.is_compressible(page);
            if other != is_compressible {
                self.next = Some(other);
                break;
            }
            len += page.len();
        }
        let (part, left) = self.left.split_at_checked(len)?;
        self.left = left;
        Some((part, is_compressible))
    }
}

/// Compresses all of `input`, flushes, and appends the result to `out`.
fn deflate_part(
    deflate: &mut Compress,
    mut input: &[u8],
    flush: FlushCompress,
    out: &mut Vec<u8>,
) -> Result<(), String> {
    // The most deflate makes of `input` in stored blocks, and the flush's own empty one.
    out.reserve(input.len() + input.len() / 1000 + 64);
    loop {
        let before = deflate.total_in();
        deflate
            .compress_vec(input, out, flush)
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
    const METHOD: multifd_packet::Compression = multifd_packet::Compression::Zlib;

    fn inflate(&mut self, input: &[u8], out: &mut [u8]) -> Result<(usize, usize), Refused> {
        let (before_in, before_out) = (self.total_in(), self.total_out());
        self.decompress(input, out, FlushDecompress::Sync)
            .map_err(|e| Refused::Damaged(e.to_string()))?;
        Ok((
            delta(before_in, self.total_in()),
            delta(before_out, self.total_out()),
        ))
    }
}
