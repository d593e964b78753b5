//! A file in memory, mapped where huge pages fit.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};

/// A whole file, readable and writable, shared with all who have it mapped; unmapped when dropped.
#[derive(Debug)]
pub(crate) struct SharedMapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a range of addresses is no thread's own.
unsafe impl Send for SharedMapping {}
// SAFETY: as for Send.
unsafe impl Sync for SharedMapping {}

impl Drop for SharedMapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by us, and whoever used it is gone.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

impl SharedMapping {
    /// Maps `len` bytes of `file`, more than none, at a multiple of `align`, a power of two, if
    /// there is such a place.
    pub(crate) fn new(file: &File, len: usize, align: usize) -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let near = free_place(len, align).unwrap_or(ptr::null_mut());
        // SAFETY: the address is a wish: the system takes no place that is in use.
        let base = unsafe { libc::mmap(near, len, access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        Ok(Self {
            base: mapped(base)?,
            len,
        })
    }

    pub(crate) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }
}

/// An aligned address from which on nothing is mapped, for now.
fn free_place(len: usize, align: usize) -> io::Result<*mut libc::c_void> {
    let size = len.checked_add(align).ok_or(io::ErrorKind::OutOfMemory)?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: new addresses, wherever the system has some.
    let room = mapped(unsafe { libc::mmap(ptr::null_mut(), size, libc::PROT_NONE, flags, -1, 0) })?;
    // SAFETY: just mapped, and used by nobody.
    unsafe { libc::munmap(room.as_ptr().cast(), size) };
    let skip = room.as_ptr().align_offset(align);
    Ok(room.as_ptr().wrapping_add(skip).cast())
}

fn mapped(address: *mut libc::c_void) -> io::Result<NonNull<u8>> {
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(address.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::os::fd::FromRawFd;
    use std::os::unix::fs::FileExt;

    /// An empty file in memory.
    pub(crate) fn memory_file() -> File {
        // SAFETY: a name that ends with a NUL.
        let fd = unsafe { libc::memfd_create(c"mapping".as_ptr(), 0) };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: a descriptor just made, and nobody else's.
        unsafe { File::from_raw_fd(fd) }
    }

    #[test]
    fn a_file_is_mapped_where_it_is_to_be() {
        let file = memory_file();
        file.set_len(3 * 4096).unwrap();
        for align in [1, 4096, 2 << 20] {
            let mapping = SharedMapping::new(&file, 3 * 4096, align).unwrap();
            assert!(mapping.base().addr().is_multiple_of(align));
            // SAFETY: inside what is mapped.
            let end = unsafe { mapping.base().add(3 * 4096 - 1) };
            // SAFETY: its last byte.
            unsafe { end.write_volatile(align.trailing_zeros() as u8) };
            let mut last = [0];
            file.read_exact_at(&mut last, 3 * 4096 - 1).unwrap();
            assert_eq!(u32::from(last[0]), align.trailing_zeros());
        }
    }

    #[test]
    fn what_can_not_be_mapped_is_an_error() {
        let file = File::open("/dev/null").unwrap();
        assert!(SharedMapping::new(&file, 4096, 1).is_err());
        assert!(SharedMapping::new(&memory_file(), usize::MAX, 4096).is_err());
    }
}
