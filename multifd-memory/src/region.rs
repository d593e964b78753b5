//! Ranges of RAM blocks: what is read, written, and handed to the kernel.

use crate::copy::{copy_in, copy_out};
use crate::scan;
use std::marker::PhantomData;

/// A range of a [`RamBlock`](crate::RamBlock), mapped for `'a`; the guest may read and write it at any time.
///
/// Layout: that of `struct iovec`, address then length, so that a slice of them is what `readv` and
/// `recvmsg` take.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Region<'a> {
    pub(crate) base: *mut u8,
    pub(crate) len: usize,
    pub(crate) block: PhantomData<&'a ()>,
}

// SAFETY: a region is a raw range of a block that is Send and Sync and outlives it.
unsafe impl Send for Region<'_> {}
// SAFETY: as for Send.
unsafe impl Sync for Region<'_> {}

impl Region<'_> {
    /// The first byte's address, for the kernel.
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.base
    }

    /// Bytes in the region.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the region is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether every byte was zero when it was read.
    pub fn is_zero(&self) -> bool {
        // SAFETY: the region is mapped and readable.
        unsafe { scan::is_zero(self.base, self.len) }
    }

    /// Copies the region to the start of `out` and returns how many bytes fitted.
    pub fn copy_to(&self, out: &mut [u8]) -> usize {
        let len = self.len.min(out.len());
        // SAFETY: the region is mapped; `out` is an exclusive slice of at least `len` bytes.
        unsafe { copy_out(self.base, out.as_mut_ptr(), len) };
        len
    }

    /// Copies `bytes` to the start of the region and returns how many fitted. A fault (`SIGSEGV`)
    /// if the block is frozen.
    pub fn copy_from(&self, bytes: &[u8]) -> usize {
        let len = self.len.min(bytes.len());
        // SAFETY: the region is mapped, and writable, or, in a frozen block, read-only: then this
        // is a fault that changes nothing. `bytes` is a slice of at least `len` bytes.
        unsafe { copy_in(bytes.as_ptr(), self.base, len) };
        len
    }

    /// Makes the region zero; memory that is zero already is only read, so untouched pages stay
    /// unallocated.
    pub fn clear(&self) {
        if !self.is_zero() {
            // SAFETY: the region is mapped; writable or not as above. `write_bytes` forms no
            // reference; the compiler may not assume anything about what others read meanwhile.
            unsafe { self.base.write_bytes(0, self.len) };
        }
    }

    /// The region in pieces of at most `room` bytes, each copied there and handed to `take`.
    pub fn chunks(&self, room: &mut [u8], mut take: impl FnMut(&[u8])) {
        let mut left = *self;
        while !left.is_empty() && !room.is_empty() {
            let n = left.copy_to(room);
            take(room.get(..n).unwrap_or_default());
            left = left.advanced(n);
        }
    }

    /// Fills the region from pieces of at most `room` bytes, each made by `fill`.
    ///
    /// # Errors
    /// The first error of `fill`; what comes after it is not written.
    pub fn fill_by<E>(
        &self,
        room: &mut [u8],
        mut fill: impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut left = *self;
        let step = room.len();
        while !left.is_empty() && step > 0 {
            let Some(piece) = room.get_mut(..left.len().min(step)) else {
                break;
            };
            fill(piece)?;
            left.copy_from(piece);
            left = left.advanced(piece.len());
        }
        Ok(())
    }

    /// The region without its first `n` bytes; empty if there are fewer.
    #[must_use]
    pub fn advanced(self, n: usize) -> Self {
        let n = n.min(self.len);
        // SAFETY: `n` is at most the region's length.
        let base = unsafe { self.base.add(n) };
        Self {
            base,
            len: self.len - n,
            block: PhantomData,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::RamBlock;

    #[test]
    fn bytes_go_in_and_out_and_clear_clears() {
        let block = RamBlock::anonymous("b", 4096, 4096).unwrap();
        let page = block.page(0).unwrap();
        assert!(page.is_zero());
        assert_eq!(page.advanced(4090).copy_from(b"0123456789"), 6);
        assert!(!page.is_zero());
        let mut out = [0; 6];
        page.advanced(4090).copy_to(&mut out);
        assert_eq!(&out, b"012345");
        page.clear();
        assert!(page.is_zero());
    }
}
