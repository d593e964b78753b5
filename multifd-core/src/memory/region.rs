//! Ranges of RAM blocks: what is read, written, and handed to the kernel.

use super::copy::{copy_in, copy_out};
use super::scan;
use crate::RamBlock;
use std::io;
use std::marker::PhantomData;

/// Linux 6.1's; not in `libc` for every C library.
const MADV_COLLAPSE: libc::c_int = 25;

/// A huge page, where the system's pages are of 4 KiB.
pub(crate) const HUGE: usize = 2 << 20;

/// A range of a [`RamBlock`], mapped for `'a`; the guest may read and write it at any time.
///
/// Layout: that of `struct iovec`, address then length, so that a slice of them is what `readv` and `recvmsg` take.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Region<'a> {
    pub(super) base: *mut u8,
    pub(super) len: usize,
    pub(super) block: PhantomData<&'a RamBlock>,
}

// SAFETY: a region is a raw range of a block that is Send and Sync and outlives it.
unsafe impl Send for Region<'_> {}
// SAFETY: as for Send.
unsafe impl Sync for Region<'_> {}

impl Region<'_> {
    /// Gives the range its pages, with the contents it has.
    pub(crate) fn populate(&self) -> io::Result<()> {
        loop {
            // SAFETY: the range is mapped; its contents stay as they are.
            if unsafe { libc::madvise(self.base.cast(), self.len, libc::MADV_POPULATE_WRITE) } == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    /// Makes the range, which has a page at least, one huge page (or several), with the contents it has; says whether it is.
    pub(crate) fn make_huge(&self) -> bool {
        let aligned = self.base.addr().is_multiple_of(HUGE) && self.len.is_multiple_of(HUGE);
        // SAFETY: the range is mapped; its contents stay as they are.
        let made = aligned && unsafe { libc::madvise(self.base.cast(), self.len, MADV_COLLAPSE) } == 0;
        // With larger pages than these the system does nothing, and calls it a success.
        made && self.last_page().is_resident()
    }

    fn last_page(&self) -> Self {
        let len = self.len.min(4096);
        // SAFETY: inside the region, or at its end.
        let base = unsafe { self.base.add(self.len - len) };
        Self { base, len, ..*self }
    }

    /// Whether the first of the range's pages have memory, as far as the system says.
    pub(crate) fn is_resident(&self) -> bool {
        const FIRST: usize = 16;
        // SAFETY: asks for a number.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
        let asked = self.len.min(FIRST * page);
        let mut resident = [0; FIRST];
        // SAFETY: the range is mapped, and there is a byte for each of its pages.
        let result = unsafe { libc::mincore(self.base.cast(), asked, resident.as_mut_ptr()) };
        let pages = resident.get(..asked.div_ceil(page)).unwrap_or_default();
        result == 0 && pages.iter().all(|page| page & 1 != 0)
    }

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

    /// Copies `bytes` to the start of the region and returns how many fitted. A fault (`SIGSEGV`) if the block is frozen.
    pub fn copy_from(&self, bytes: &[u8]) -> usize {
        let len = self.len.min(bytes.len());
        // SAFETY: the region is mapped, and writable, or, in a frozen block, read-only: then this is a fault that changes nothing.
        // `bytes` is a slice of at least `len` bytes.
        unsafe { copy_in(bytes.as_ptr(), self.base, len) };
        len
    }

    /// Makes the region zero; memory that is zero already is only read, so untouched pages stay unallocated.
    pub fn clear(&self) {
        if !self.is_zero() {
            // SAFETY: the region is mapped; writable or not as above. `write_bytes` forms no reference; the compiler may not
            // assume anything about what others read meanwhile.
            unsafe { self.base.write_bytes(0, self.len) };
        }
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

/// Room for regions that is used again for every packet.
#[derive(Debug, Default)]
pub struct RegionBuf {
    room: Vec<Region<'static>>,
}

impl RegionBuf {
    /// The emptied room, for regions that live as long as the borrow.
    pub fn begin<'a>(&'a mut self) -> &'a mut Vec<Region<'a>> {
        self.room.clear();
        // SAFETY: the types differ in a lifetime only; the vector is empty, and this function, the only way in,
        // clears it before anyone reads what an earlier borrow left.
        unsafe {
            std::mem::transmute::<&'a mut Vec<Region<'static>>, &'a mut Vec<Region<'a>>>(&mut self.room)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
