//! A file in memory, mapped at an aligned address.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};

/// A range of addresses, unmapped when dropped.
#[derive(Debug)]
struct Mapped {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a range of addresses is no thread's own.
unsafe impl Send for Mapped {}
// SAFETY: as for Send.
unsafe impl Sync for Mapped {}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by us, and whoever used it is gone.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// A whole file, readable and writable, shared with all who have it mapped.
#[derive(Debug)]
pub(crate) struct SharedMapping {
    base: *mut u8,
    /// With what is left over around it.
    _room: Mapped,
}

// SAFETY: as for its range.
unsafe impl Send for SharedMapping {}
// SAFETY: as for Send.
unsafe impl Sync for SharedMapping {}

impl SharedMapping {
    /// Maps `len` bytes of `file`, more than none, at a multiple of `align`, a power of two, or wherever if that is 0.
    pub(crate) fn new(file: &File, len: usize, align: usize) -> io::Result<Self> {
        let size = len.checked_add(align).ok_or(io::ErrorKind::OutOfMemory)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: new addresses, wherever the system has some.
        let room = mapped(unsafe { libc::mmap(ptr::null_mut(), size, libc::PROT_NONE, flags, -1, 0) })?;
        let room = Mapped {
            base: room,
            len: size,
        };
        let base = room.base.as_ptr();
        // SAFETY: the room is longer than the file by the alignment.
        let base = unsafe { base.add(base.align_offset(align.max(1))) };
        let (access, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_FIXED,
        );
        // SAFETY: takes the place of addresses that are ours and that nobody uses.
        mapped(unsafe { libc::mmap(base.cast(), len, access, flags, file.as_raw_fd(), 0) })?;
        Ok(Self { base, _room: room })
    }

    pub(crate) fn base(&self) -> *mut u8 {
        self.base
    }
}

fn mapped(address: *mut libc::c_void) -> io::Result<NonNull<u8>> {
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(address.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_file_is_mapped_where_it_is_to_be() {
        let file = tempfile();
        file.set_len(3 * 4096).unwrap();
        for align in [0, 4096, 2 << 20] {
            let mapping = SharedMapping::new(&file, 3 * 4096, align).unwrap();
            assert!(mapping.base().addr().is_multiple_of(align.max(1)));
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
        assert!(SharedMapping::new(&file, 4096, 0).is_err());
        assert!(SharedMapping::new(&tempfile(), usize::MAX, 4096).is_err());
    }

    fn tempfile() -> File {
        use std::os::fd::FromRawFd;
        // SAFETY: a name that ends with a NUL.
        let fd = unsafe { libc::memfd_create(c"mapping".as_ptr(), 0) };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: a descriptor just made, and nobody else's.
        unsafe { File::from_raw_fd(fd) }
    }
}
