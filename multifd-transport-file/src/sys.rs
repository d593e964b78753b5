//! The system calls that take raw IOVs at an offset, and holes.

use multifd_core::{Iov, Region};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

fn offset(at: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(at).map_err(|_| io::ErrorKind::FileTooLarge.into())
}

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Writes all of `iov` at `at`, however many calls that takes.
pub(crate) fn write_all_at(file: &File, mut iov: Iov<'_>, mut at: u64) -> io::Result<()> {
    while !iov.is_empty() {
        // SAFETY: the IOV names memory that is readable while it lives; the kernel only reads it.
        let result = unsafe { libc::pwrite(file.as_raw_fd(), iov.as_ptr().cast(), iov.len(), offset(at)?) };
        match check(result) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                iov = iov.advanced(n);
                at += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Fills `region` from `at`; returns the bytes read, fewer only at the end of the file.
pub(crate) fn read_full_at(file: &File, mut region: Region<'_>, mut at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while !region.is_empty() {
        // SAFETY: the region names guest memory that stays mapped while it lives, and that anyone may write to.
        let result = unsafe {
            libc::pread(
                file.as_raw_fd(),
                region.as_mut_ptr().cast(),
                region.len(),
                offset(at)?,
            )
        };
        match check(result) {
            Ok(0) => break,
            Ok(n) => {
                region = region.advanced(n);
                filled += n;
                at += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// Makes `len` bytes at `at` a hole that reads as zeros. `Ok(false)` where the file system has none.
pub(crate) fn punch_hole(file: &File, at: u64, len: u64) -> io::Result<bool> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    loop {
        // SAFETY: a plain call on an open descriptor.
        let result = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset(at)?, offset(len)?) };
        match check(result as isize) {
            Ok(_) => return Ok(true),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(false),
            Err(e) => return Err(e),
        }
    }
}
