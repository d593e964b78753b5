//! Direct I/O beside buffered I/O: aligned page data goes past the page cache, whatever is not
//! aligned through it.

use crate::{FileError, sys};
use memmap2::MmapMut;
use multifd_core::{Iov, Region};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

/// What to assume where the file system does not say what it needs: no disk in use asks for more.
const ASSUMED_ALIGN: usize = 4096;
/// Bytes of a bounce buffer.
const BOUNCE: usize = 1 << 20;

/// Whether page data goes past the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DirectIo {
    /// No.
    #[default]
    Off,
    /// Yes, and it is an error if the file system refuses.
    On,
    /// Where the file system does not refuse.
    IfPossible,
}

/// Whether a file's page data can go past the page cache.
pub fn can_be_direct(file: &File) -> bool {
    open_direct(file, false).is_ok()
}

/// A file for page data: a descriptor through the page cache, and maybe one past it.
#[derive(Debug, Clone)]
pub(crate) struct PageFile {
    pub(crate) buffered: Arc<File>,
    direct: Option<Direct>,
    /// What will be read soon is worth a hint.
    reads_ahead: bool,
}

#[derive(Debug, Clone)]
struct Direct {
    file: Arc<File>,
    memory_align: usize,
    offset_align: u64,
}

impl PageFile {
    /// A file whose page data is read or, with `write`, also written as `mode` says.
    pub(crate) fn new(file: File, mode: DirectIo, write: bool) -> Result<Self, FileError> {
        let direct = match mode {
            DirectIo::Off => None,
            DirectIo::On => {
                let direct = open_direct(&file, write);
                Some(direct.map_err(|cause| FileError::DirectRefused { cause })?)
            }
            DirectIo::IfPossible => open_direct(&file, write).ok(),
        };
        Ok(Self {
            reads_ahead: !write && direct.is_none() && !sys::is_in_memory(&file),
            buffered: Arc::new(file),
            direct,
        })
    }

    pub(crate) fn reads_ahead(&self) -> bool {
        self.reads_ahead
    }

    /// Says that a part of the file will be read soon.
    pub(crate) fn will_need(&self, at: u64, len: usize) {
        sys::will_need(&self.buffered, at, len);
    }

    pub(crate) fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// The descriptor past the page cache, if that is in use and the place is aligned for it.
    fn direct(&self, at: u64, len: usize) -> Option<&Direct> {
        let fits = |direct: &&Direct| {
            at.is_multiple_of(direct.offset_align)
                && (len as u64).is_multiple_of(direct.offset_align)
        };
        self.direct.as_ref().filter(fits)
    }

    /// Writes all of `iov` at `at`, however many calls that takes.
    pub(crate) fn write_all(
        &self,
        mut iov: Iov<'_>,
        mut at: u64,
        bounce: &mut Bounce,
    ) -> io::Result<()> {
        while !iov.is_empty() {
            let written = match self.direct(at, iov.len()) {
                Some(direct) if direct.memory_fits(iov.as_ptr()) => {
                    sys::write_at(&direct.file, iov, at)?
                }
                Some(direct) => {
                    let staged = bounce.room(iov.len())?;
                    iov.copy_to(staged);
                    sys::write_at(&direct.file, Iov::from(&*staged), at)?
                }
                // What is not aligned; and the rest of a write that came short.
                None => sys::write_at(&self.buffered, iov, at)?,
            };
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            iov = iov.advanced(written);
            at += written as u64;
        }
        Ok(())
    }

    /// Fills `region` from `at`; returns the bytes read, fewer only at the end of the file.
    pub(crate) fn read_full(
        &self,
        mut region: Region<'_>,
        mut at: u64,
        bounce: &mut Bounce,
    ) -> io::Result<usize> {
        let mut filled = 0;
        while !region.is_empty() {
            let read = match self.direct(at, region.len()) {
                Some(direct) if direct.memory_fits(region.as_mut_ptr()) => {
                    sys::read_at(&direct.file, region, at)?
                }
                Some(direct) => {
                    let staged = bounce.room(region.len())?;
                    let read = std::os::unix::fs::FileExt::read_at(&*direct.file, staged, at)?;
                    region.copy_from(staged.get(..read).unwrap_or_default())
                }
                None => sys::read_at(&self.buffered, region, at)?,
            };
            if read == 0 {
                break;
            }
            region = region.advanced(read);
            filled += read;
            at += read as u64;
        }
        Ok(filled)
    }
}

impl Direct {
    fn memory_fits(&self, at: *const u8) -> bool {
        at.addr().is_multiple_of(self.memory_align)
    }
}

/// Opens a file once more, past the page cache.
fn open_direct(file: &File, write: bool) -> io::Result<Direct> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let direct = OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(libc::O_DIRECT)
        .open(path)?;
    let (memory_align, offset_align) =
        sys::direct_alignment(&direct).unwrap_or((ASSUMED_ALIGN, ASSUMED_ALIGN as u64));
    if offset_align == 0 {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(Direct {
        file: Arc::new(direct),
        memory_align,
        offset_align,
    })
}

/// Buffers of one thread, made when they are first needed.
#[derive(Debug, Default)]
pub(crate) struct Bounce {
    /// Aligned, for memory that is not.
    aligned: Option<MmapMut>,
    /// What a page held before.
    #[cfg(feature = "digest")]
    before: Vec<u8>,
}

impl Bounce {
    /// Room for `len` bytes, or for as many as there are.
    fn room(&mut self, len: usize) -> io::Result<&mut [u8]> {
        let buffer = match &mut self.aligned {
            Some(buffer) => buffer,
            none => none.insert(MmapMut::map_anon(BOUNCE)?),
        };
        let len = len.min(buffer.len());
        Ok(buffer.get_mut(..len).unwrap_or_default())
    }

    /// Room for `len` bytes of what is about to be overwritten.
    #[cfg(feature = "digest")]
    pub(crate) fn before(&mut self, len: usize) -> &mut [u8] {
        self.before.resize(len, 0);
        &mut self.before
    }
}
