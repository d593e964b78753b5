//! The system calls that take raw IOVs at an offset, and holes.

use memmap2::{MmapMut, MmapOptions};
use multifd_core::{Iov, Region};
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

fn offset(at: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(at).map_err(|_| io::ErrorKind::FileTooLarge.into())
}

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Repeats a call that a signal interrupted.
fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match check(call()) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// One positioned write; returns the bytes written.
pub(crate) fn write_at(file: &File, iov: Iov<'_>, at: u64) -> io::Result<usize> {
    let at = offset(at)?;
    // SAFETY: the IOV names memory that is readable while it lives; the kernel only reads it.
    retry(|| unsafe { libc::pwrite(file.as_raw_fd(), iov.as_ptr().cast(), iov.len(), at) })
}

/// One positioned read; returns the bytes read, 0 at the end of the file.
pub(crate) fn read_at(file: &File, region: Region<'_>, at: u64) -> io::Result<usize> {
    let at = offset(at)?;
    // SAFETY: the region names guest memory that stays mapped while it lives, and that anyone may
    // write to.
    retry(|| unsafe {
        libc::pread(
            file.as_raw_fd(),
            region.as_mut_ptr().cast(),
            region.len(),
            at,
        )
    })
}

/// The next stretch of a range that is not a hole; `None` if there is nothing more but holes. Where
/// the file system does not tell, all of it is.
pub(crate) fn next_data(file: &File, within: Range<u64>) -> io::Result<Option<Range<u64>>> {
    if within.is_empty() {
        return Ok(None);
    }
    let seek = |at: u64, whence| {
        let at = offset(at)?;
        // SAFETY: a plain call on an open descriptor. Readers set the file's own offset before they
        // use it.
        let result = unsafe { libc::lseek(file.as_raw_fd(), at, whence) };
        u64::try_from(result).map_err(|_| io::Error::last_os_error())
    };
    let start = match seek(within.start, libc::SEEK_DATA) {
        Ok(start) => start,
        Err(e) if e.raw_os_error() == Some(libc::ENXIO) => return Ok(None),
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => return Ok(Some(within)),
        Err(e) => return Err(e),
    };
    if start >= within.end {
        return Ok(None);
    }
    let end = seek(start, libc::SEEK_HOLE)?;
    Ok(Some(start..end.min(within.end)))
}

/// Has the kernel begin to read: a hint, so that nothing comes of an error.
pub(crate) fn will_need(file: &File, at: u64, len: usize) {
    let (Ok(at), Ok(len)) = (offset(at), libc::off_t::try_from(len)) else {
        return;
    };
    // SAFETY: the call takes no memory.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), at, len, libc::POSIX_FADV_WILLNEED) };
}

/// Has the kernel begin to write what has been written to a file to its disk: a hint, so that
/// nothing comes of an error.
pub(crate) fn start_write_back(file: &File) {
    // SAFETY: the call takes no memory.
    unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Locks a file for as long as it is open, unless another has: `WouldBlock` then.
pub(crate) fn lock(file: &File) -> io::Result<()> {
    // SAFETY: a plain call on an open descriptor.
    retry(|| unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } as isize)
        .map(drop)
}

/// Whether the file system keeps its files in memory, where there is nothing to read ahead.
pub(crate) fn is_in_memory(file: &File) -> bool {
    // SAFETY: a statfs of zeros is a valid one to be filled in, and outlives the call.
    let (result, status) = unsafe {
        let mut status: libc::statfs = std::mem::zeroed();
        let result = libc::fstatfs(file.as_raw_fd(), &raw mut status);
        (result, status)
    };
    result == 0 && [libc::TMPFS_MAGIC, libc::HUGETLBFS_MAGIC].contains(&status.f_type)
}

/// What direct I/O on a file must be aligned to, as far as the file system says: addresses and
/// offsets, in bytes. `None` where it says nothing (before Linux 6.1, and some file systems).
pub(crate) fn direct_alignment(file: &File) -> Option<(usize, u64)> {
    // SAFETY: a statx of zeros is a valid one to be filled in; the path is an empty C string; both
    // outlive the call.
    let (result, status) = unsafe {
        let mut status: libc::statx = std::mem::zeroed();
        let (fd, flags) = (file.as_raw_fd(), libc::AT_EMPTY_PATH);
        let result = libc::statx(
            fd,
            c"".as_ptr(),
            flags,
            libc::STATX_DIOALIGN,
            &raw mut status,
        );
        (result, status)
    };
    let known =
        result == 0 && status.stx_mask & libc::STATX_DIOALIGN != 0 && status.stx_dio_mem_align != 0;
    known.then(|| {
        (
            status.stx_dio_mem_align as usize,
            status.stx_dio_offset_align.into(),
        )
    })
}

/// Maps part of a file, copy on write.
pub(crate) fn map_private(file: &File, at: u64, len: usize) -> io::Result<MmapMut> {
    // SAFETY: the mapping is only handed on to a RAM block, which touches it by volatile accesses:
    // that others may write to the file meanwhile is allowed for.
    unsafe { MmapOptions::new().offset(at).len(len).map_copy(file) }
}

/// Sets `len` bytes at `at` aside on the disk, without changing what they read as.
pub(crate) fn allocate(file: &File, at: u64, len: u64) -> io::Result<()> {
    let (at, len) = (offset(at)?, offset(len)?);
    // SAFETY: a plain call on an open descriptor.
    retry(|| unsafe { libc::fallocate(file.as_raw_fd(), 0, at, len) } as isize).map(drop)
}

/// Renames a file; without `replace`, only if nothing has the new name.
pub(crate) fn rename(from: &Path, to: &Path, replace: bool) -> io::Result<()> {
    if replace {
        return std::fs::rename(from, to);
    }
    let c_path = |path: &Path| CString::new(path.as_os_str().as_bytes());
    let (old, new) = (c_path(from)?, c_path(to)?);
    // SAFETY: both are NUL-terminated strings that outlive the call.
    let result = retry(|| unsafe {
        let here = libc::AT_FDCWD;
        libc::renameat2(
            here,
            old.as_ptr(),
            here,
            new.as_ptr(),
            libc::RENAME_NOREPLACE,
        ) as isize
    });
    match result {
        Ok(_) => Ok(()),
        // A file system without such a rename; two names for a moment do no harm.
        Err(e) if [Some(libc::EINVAL), Some(libc::ENOSYS)].contains(&e.raw_os_error()) => {
            std::fs::hard_link(from, to)?;
            std::fs::remove_file(from)
        }
        Err(e) => Err(e),
    }
}

/// Makes `len` bytes at `at` a hole that reads as zeros. `Ok(false)` where the file system has
/// none.
pub(crate) fn punch_hole(file: &File, at: u64, len: u64) -> io::Result<bool> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let (at, len) = (offset(at)?, offset(len)?);
    // SAFETY: a plain call on an open descriptor.
    match retry(|| unsafe { libc::fallocate(file.as_raw_fd(), mode, at, len) } as isize) {
        Ok(_) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
        Err(e) => Err(e),
    }
}
