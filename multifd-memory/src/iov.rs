//! IOVs: raw ranges of memory on their way to a channel.

use crate::Region;
use crate::copy::copy_out;
use std::marker::PhantomData;

/// A range of memory to be written to a channel: a piece of a header, of staged data, or of guest
/// memory.
///
/// The range is mapped and readable for `'a`. Guest memory may change while it is read, so there is
/// no way to get a slice of it: hand [`Iov::as_ptr`] and [`Iov::len`] to the kernel, or copy the
/// bytes with [`Iov::copy_to`].
///
/// Layout: that of `struct iovec`, address then length, so that a slice of them is what `writev`
/// and `sendmsg` take.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Iov<'a> {
    base: *const u8,
    len: usize,
    memory: PhantomData<&'a [u8]>,
}

// SAFETY: an Iov only reads, through raw pointers, memory that stays mapped for 'a; any thread may
// do so.
unsafe impl Send for Iov<'_> {}
// SAFETY: as for Send; an Iov has no interior state.
unsafe impl Sync for Iov<'_> {}

impl Iov<'_> {
    /// The first byte's address.
    pub fn as_ptr(&self) -> *const u8 {
        self.base
    }

    /// Bytes in the range.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the range is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies the range to the start of `out` and returns how many bytes fitted.
    pub fn copy_to(&self, out: &mut [u8]) -> usize {
        let len = self.len.min(out.len());
        // SAFETY: the range is readable for 'a, and `out` is an exclusive slice of at least `len`
        // bytes.
        unsafe { copy_out(self.base, out.as_mut_ptr(), len) };
        len
    }

    /// The range without its first `n` bytes; empty if there are fewer.
    #[must_use]
    pub fn advanced(self, n: usize) -> Self {
        let n = n.min(self.len);
        // SAFETY: `n` is at most the range's length.
        let base = unsafe { self.base.add(n) };
        Self {
            base,
            len: self.len - n,
            memory: PhantomData,
        }
    }

    /// The first `n` bytes of the range; all of it if there are fewer.
    #[must_use]
    pub fn shortened(self, n: usize) -> Self {
        Self {
            len: self.len.min(n),
            ..self
        }
    }
}

impl<'a> From<&'a [u8]> for Iov<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self {
            base: bytes.as_ptr(),
            len: bytes.len(),
            memory: PhantomData,
        }
    }
}

impl<'a> From<Region<'a>> for Iov<'a> {
    fn from(region: Region<'a>) -> Self {
        Self {
            base: region.as_mut_ptr(),
            len: region.len(),
            memory: PhantomData,
        }
    }
}
