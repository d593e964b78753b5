//! Where the contents of chunks come from.

use crate::StoreError;
use crate::name::ChunkName;
use multifd_core::{RamBlock, ZeroPages};

/// Something to be stored, read chunk by chunk from several threads.
pub trait ChunkSource: Sync {
    /// Fills `out` with the bytes from `offset` on. A source that knows that they are all zero
    /// returns `false`, and may leave `out` untouched; the others need not look.
    ///
    /// # Errors
    /// [`StoreError`], if they cannot be read.
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<bool, StoreError>;

    /// The name that the chunk at `offset` has, if that is known without reading it, by the rules
    /// of the store that is written to.
    fn name(&self, _offset: u64) -> Option<ChunkName> {
        None
    }
}

/// Bytes in memory as a source.
#[derive(Debug, Clone, Copy)]
pub struct Bytes<'b>(pub &'b [u8]);

impl ChunkSource for Bytes<'_> {
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<bool, StoreError> {
        let from = usize::try_from(offset).ok();
        let bytes = from.and_then(|from| self.0.get(from..from.checked_add(out.len())?));
        let bytes = bytes.ok_or(StoreError::Limit {
            what: "bytes of a stream",
            found: offset.saturating_add(out.len() as u64),
            limit: self.0.len() as u64,
        })?;
        out.copy_from_slice(bytes);
        Ok(true)
    }
}

/// Whether all bytes are zero.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    let mut blocks = bytes.chunks_exact(64);
    blocks.all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
        && blocks.remainder().iter().all(|byte| *byte == 0)
}

/// A RAM block as a source.
pub(super) struct BlockSource<'b> {
    pub(super) block: &'b RamBlock,
    pub(super) zeros: &'b ZeroPages,
}

impl ChunkSource for BlockSource<'_> {
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<bool, StoreError> {
        let region = self.block.region(offset, out.len())?;
        let ZeroPages::Told(zeros) = self.zeros else {
            if region.is_zero() {
                return Ok(false);
            }
            region.copy_to(out);
            return Ok(true);
        };
        // Pages that are known to be zero are not touched: their memory may mean nothing.
        let page = self.block.page_size() as usize;
        let mut any = false;
        let mut at = 0;
        while at < out.len() {
            let start = at;
            let len = |at: usize| (page - (offset as usize + at) % page).min(out.len() - at);
            let first = offset + at as u64;
            let page_start = first - first % page as u64;
            let zero = zeros.is_zero(self.block, page_start);
            at += len(at);
            while at < out.len() && zeros.is_zero(self.block, offset + at as u64) == zero {
                at += len(at);
            }
            if zero {
                out[start..at].fill(0);
            } else {
                any = true;
                let stretch = self.block.region(offset + start as u64, at - start)?;
                stretch.copy_to(&mut out[start..at]);
            }
        }
        Ok(any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use multifd_core::ZeroTest;
    use std::sync::Arc;

    struct Odd;

    impl ZeroTest for Odd {
        fn is_zero(&self, block: &RamBlock, offset: u64) -> bool {
            offset / u64::from(block.page_size()) % 2 == 1
        }
    }

    #[test]
    fn pages_said_to_be_zero_read_as_zeros() {
        let block = RamBlock::anonymous("b", 8 * 4096, 4096).unwrap();
        for page in 0..8 {
            block
                .page(page * 4096)
                .unwrap()
                .copy_from(&[page as u8 + 1; 4096]);
        }
        let told = ZeroPages::Told(Arc::new(Odd));
        let source = BlockSource {
            block: &block,
            zeros: &told,
        };
        let mut out = vec![9; 4 * 4096];
        assert!(source.read(4 * 4096, &mut out).unwrap());
        for (n, page) in out.chunks(4096).enumerate() {
            let expected = if n % 2 == 1 { 0 } else { n as u8 + 5 };
            assert!(page.iter().all(|byte| *byte == expected), "{n}");
        }
        // Chunks that are smaller than a page.
        let mut out = vec![9; 2048];
        assert!(!source.read(4096 + 2048, &mut out).unwrap());
        assert!(source.read(8192 + 2048, &mut out).unwrap());
        assert!(source.read(7 * 4096 + 1, &mut vec![0; 4096]).is_err());
    }

    #[test]
    fn zeros_are_zero() {
        let mut bytes = vec![0; 1000];
        assert!(is_zero(&bytes) && is_zero(&[]));
        for at in [0, 63, 64, 500, 999] {
            bytes[at] = 1;
            assert!(!is_zero(&bytes), "{at}");
            bytes[at] = 0;
        }
    }
}
