//! RAM blocks and regions of them.

use super::mapping::SharedMapping;
use super::{copy_in, copy_out, scan};
use crate::BlockError;
use crate::known_zeros::KnownZeros;
use memmap2::{MmapMut, MmapOptions};
use multifd_packet::{Geometry, NAME_LEN};
use std::any::Any;
use std::fs::File;
use std::marker::PhantomData;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

/// A named, contiguous piece of guest memory (QEMU's RAM block): what packets name and offsets count in.
pub struct RamBlock {
    name: Box<str>,
    base: *mut u8,
    len: usize,
    geometry: Geometry,
    // Whatever keeps the memory mapped.
    owner: Box<dyn Any + Send + Sync>,
    /// Nobody else has this memory mapped.
    private: bool,
    frozen: bool,
    huge_pages: bool,
    pub(crate) known_zeros: Option<KnownZeros>,
}

// SAFETY: the memory stays mapped while `owner` lives, and is only touched by volatile or kernel accesses that
// tolerate other writers; nothing in the block depends on the thread.
unsafe impl Send for RamBlock {}
// SAFETY: as for Send.
unsafe impl Sync for RamBlock {}

impl std::fmt::Debug for RamBlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RamBlock")
            .field("name", &self.name)
            .field("len", &self.len)
            .field("page_size", &self.page_size())
            .finish_non_exhaustive()
    }
}

impl RamBlock {
    /// A block of fresh, zeroed, private memory. `len` and `page_size` are bytes.
    ///
    /// # Errors
    /// [`BlockError`] if the name, length or page size can not be used, or there is no memory.
    pub fn anonymous(name: &str, len: u64, page_size: u32) -> Result<Self, BlockError> {
        check(name, len, page_size)?;
        let no_memory = |source| BlockError::Memory {
            block: name.into(),
            len,
            source: Arc::new(source),
        };
        let size = usize::try_from(len).map_err(|_| no_memory(std::io::ErrorKind::OutOfMemory.into()))?;
        let room = size
            .checked_add(room_to_align(size))
            .ok_or_else(|| no_memory(std::io::ErrorKind::OutOfMemory.into()))?;
        let mut map = MmapOptions::new()
            .len(room)
            .no_reserve_swap()
            .map_anon()
            .map_err(no_memory)?;
        let skip = map.as_ptr().align_offset(room_to_align(size).max(1));
        // SAFETY: the mapping is longer than the block by more than what is skipped.
        let base = unsafe { map.as_mut_ptr().add(skip) };
        // SAFETY: the mapping covers this range and moves into the block as its owner.
        let mut block = unsafe { Self::from_raw_parts(name, base, size, page_size, map) }?;
        block.private = true;
        Ok(block)
    }

    /// A block over all of a file in memory (a memfd, or one on a tmpfs or hugetlbfs), which others have mapped, too, as a guest has.
    /// It is mapped where huge pages can be used.
    ///
    /// If the file is cut short later, using what is no longer there is a fault (`SIGBUS`), as with any mapping.
    ///
    /// # Errors
    /// [`BlockError`] if the name, the file's length or the page size can not be used, or the system does not map it to be read and written.
    pub fn shared(name: &str, file: &File, page_size: u32) -> Result<Self, BlockError> {
        let cannot = |len| {
            move |source| BlockError::Memory {
                block: name.into(),
                len,
                source: Arc::new(source),
            }
        };
        let about = file.metadata().map_err(cannot(0))?;
        let len = about.len();
        check(name, len, page_size)?;
        let size = usize::try_from(len).map_err(|_| cannot(len)(std::io::ErrorKind::OutOfMemory.into()))?;
        // A file on a hugetlbfs has blocks of the size of its pages.
        let block_size = usize::try_from(about.blksize()).unwrap_or_default();
        let align = room_to_align(size).max(block_size);
        let mapping = SharedMapping::new(file, size, align).map_err(cannot(len))?;
        let base = mapping.base();
        // SAFETY: the mapping covers exactly this range and moves into the block as its owner.
        unsafe { Self::from_raw_parts(name, base, size, page_size, mapping) }
    }

    /// New memory is given no huge pages.
    ///
    /// Otherwise, where memory is known to be new ([`RamBlock::with_known_zeros`]), and its address is a multiple of 2 MiB, 2 MiB of it
    /// become one huge page (`MADV_COLLAPSE`, Linux 6.1) as soon as a packet fills an eighth of them. That takes a fraction of the
    /// time of 512 small ones, and the guest is faster with it afterwards; but zero pages in between take memory, too. Linux does that
    /// whatever a tmpfs was mounted with (`huge=never` is the default), unless its `shmem_enabled` says `deny`.
    #[must_use]
    pub fn without_huge_pages(mut self) -> Self {
        self.huge_pages = false;
        self
    }

    /// Whether it may have huge pages.
    pub(crate) fn huge_pages(&self) -> bool {
        self.huge_pages
    }

    /// Makes the block's memory read-only for good, so that a codec may read it in place. Only blocks made by
    /// [`RamBlock::anonymous`] can be frozen: nobody else writes to them. A write through a [`Region`] of a frozen block is
    /// a fault (`SIGSEGV`), and a [`Receiver`](crate::Receiver) refuses such blocks.
    ///
    /// # Errors
    /// [`BlockError::Map`] if the memory is not the block's alone; [`BlockError::Memory`] if the system refuses.
    pub fn freeze(self) -> Result<Self, BlockError> {
        let Self {
            name,
            owner,
            private,
            frozen,
            len,
            ..
        } = self;
        let refuse = |reason| BlockError::Map {
            block: name.to_string(),
            reason,
        };
        if frozen {
            return Ok(Self {
                name,
                owner,
                private,
                frozen,
                ..self
            });
        }
        if !private {
            return Err(refuse("only memory that nobody else can write to can be frozen"));
        }
        let map = owner
            .downcast::<MmapMut>()
            .map_err(|_| refuse("its memory is no mapping of its own"))?;
        let map = map.make_read_only().map_err(|source| BlockError::Memory {
            block: name.to_string(),
            len: len as u64,
            source: Arc::new(source),
        })?;
        Ok(Self {
            name,
            owner: Box::new(map),
            private,
            frozen: true,
            ..self
        })
    }

    /// Whether the memory has been made read-only.
    pub fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// The bytes of a frozen block's range in place; `None` if the block is not frozen, or the range does not lie in it
    /// whole.
    pub fn frozen_bytes(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let region = self.region(offset, len).ok().filter(|_| self.frozen)?;
        // SAFETY: the range is mapped for as long as the block lives, and nobody can write to it: the mapping is private
        // to this process, anonymous, owned by the block, and read-only since it was frozen, which took the block by
        // value, so that no region from before is left.
        Some(unsafe { std::slice::from_raw_parts(region.as_mut_ptr(), region.len()) })
    }

    /// A block over a writable mapping the caller made, whole.
    ///
    /// # Errors
    /// [`BlockError`] if the name, length or page size can not be used.
    pub fn from_mmap(name: &str, mut map: MmapMut, page_size: u32) -> Result<Self, BlockError> {
        let (base, len) = (map.as_mut_ptr(), map.len());
        // SAFETY: the mapping covers exactly this range and moves into the block as its owner.
        unsafe { Self::from_raw_parts(name, base, len, page_size, map) }
    }

    /// A block over `len` bytes at `base` that `owner` keeps mapped.
    ///
    /// # Errors
    /// [`BlockError`] if the name, length or page size can not be used.
    ///
    /// # Safety
    /// The range must be mapped readable, and writable if the block is received into, until `owner` is dropped. No
    /// Rust reference to it may be live while the block is in use. Writes by others (a guest, a device) are fine.
    pub unsafe fn from_raw_parts(
        name: &str,
        base: *mut u8,
        len: usize,
        page_size: u32,
        owner: impl Any + Send + Sync,
    ) -> Result<Self, BlockError> {
        let geometry = check(name, len as u64, page_size)?;
        Ok(Self {
            name: name.into(),
            base,
            len,
            geometry,
            owner: Box::new(owner),
            private: false,
            frozen: false,
            huge_pages: true,
            known_zeros: None,
        })
    }

    /// The name, 1 to 255 bytes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Length in bytes, a positive multiple of the page size.
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// Never true: a block has at least one page.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Page size in bytes.
    pub fn page_size(&self) -> u32 {
        self.geometry.page_size()
    }

    /// The shape of this block's packets.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// `len` bytes from `offset`.
    ///
    /// # Errors
    /// [`BlockError::Outside`] unless the whole range lies in the block.
    pub fn region(&self, offset: u64, len: usize) -> Result<Region<'_>, BlockError> {
        let fits = usize::try_from(offset)
            .ok()
            .filter(|&at| at <= self.len && len <= self.len - at);
        let Some(at) = fits else {
            return Err(BlockError::Outside {
                block: self.name.to_string(),
                offset,
                len: len as u64,
                block_len: self.len as u64,
            });
        };
        // SAFETY: `at` is inside the block.
        let base = unsafe { self.base.add(at) };
        Ok(Region {
            base,
            len,
            block: PhantomData,
        })
    }

    /// The page at `offset`.
    ///
    /// # Errors
    /// [`BlockError::Outside`] unless it lies in the block whole.
    pub fn page(&self, offset: u64) -> Result<Region<'_>, BlockError> {
        self.region(offset, self.page_size() as usize)
    }
}

/// A huge page, where the system's pages are of 4 KiB.
const HUGE: usize = 2 << 20;

/// What `len` bytes are to be aligned to, so that huge pages fit: 0 if there is none among them.
fn room_to_align(len: usize) -> usize {
    if len < HUGE { 0 } else { HUGE }
}

fn check(name: &str, len: u64, page_size: u32) -> Result<Geometry, BlockError> {
    if name.is_empty() || name.len() >= NAME_LEN || name.contains('\0') {
        return Err(BlockError::Name { block: name.into() });
    }
    let geometry = Geometry::new(page_size)?;
    if len == 0 || !len.is_multiple_of(page_size.into()) {
        return Err(BlockError::Length {
            block: name.into(),
            len,
            page_size,
        });
    }
    Ok(geometry)
}

/// A range of a [`RamBlock`], mapped for `'a`; the guest may read and write it at any time.
///
/// Layout: that of `struct iovec`, address then length, so that a slice of them is what `readv` and `recvmsg` take.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Region<'a> {
    base: *mut u8,
    len: usize,
    block: PhantomData<&'a RamBlock>,
}

// SAFETY: a region is a raw range of a block that is Send and Sync and outlives it.
unsafe impl Send for Region<'_> {}
// SAFETY: as for Send.
unsafe impl Sync for Region<'_> {}

impl Region<'_> {
    /// Gives the range its pages, if the system can do that: it need not.
    pub(crate) fn populate(&self) {
        // SAFETY: the range is mapped; its contents stay as they are.
        unsafe { libc::madvise(self.base.cast(), self.len, libc::MADV_POPULATE_WRITE) };
    }

    /// Makes the range, which has a page at least, one huge page (or several), with the contents it has; says whether it is.
    pub(crate) fn make_huge(&self) -> bool {
        let aligned = self.base.addr().is_multiple_of(HUGE) && self.len.is_multiple_of(HUGE);
        // SAFETY: the range is mapped; its contents stay as they are.
        let made = aligned && unsafe { libc::madvise(self.base.cast(), self.len, libc::MADV_COLLAPSE) } == 0;
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
    fn regions_stay_inside_their_block() {
        let block = RamBlock::anonymous("pc.ram", 8192, 4096).unwrap();
        assert_eq!(block.region(0, 8192).unwrap().len(), 8192);
        assert_eq!(block.region(8192, 0).unwrap().len(), 0);
        for (offset, len) in [(0, 8193), (4097, 4096), (8193, 0), (u64::MAX, 1), (1, usize::MAX)] {
            let error = block.region(offset, len).unwrap_err();
            assert!(
                matches!(error, BlockError::Outside { block_len: 8192, .. }),
                "{error}"
            );
        }
        assert!(RamBlock::anonymous("", 4096, 4096).is_err());
        assert!(RamBlock::anonymous("a", 4095, 4096).is_err());
        assert!(RamBlock::anonymous("a", 0, 4096).is_err());
        assert!(RamBlock::anonymous("a", 4096, 3000).is_err());
    }

    #[test]
    fn only_private_memory_can_be_frozen_and_then_it_can_be_read_in_place() {
        let block = RamBlock::anonymous("b", 8192, 4096).unwrap();
        block.page(4096).unwrap().copy_from(b"abc");
        assert_eq!(block.frozen_bytes(4096, 3), None);
        let block = block.freeze().unwrap().freeze().unwrap();
        assert_eq!(block.frozen_bytes(4096, 3), Some(&b"abc"[..]));
        assert_eq!(block.frozen_bytes(8190, 3), None);
        assert_eq!(block.page(4096).unwrap().copy_to(&mut [0; 3]), 3);

        let shared = MmapOptions::new().len(4096).map_anon().unwrap();
        assert!(matches!(
            RamBlock::from_mmap("s", shared, 4096).unwrap().freeze(),
            Err(BlockError::Map { .. })
        ));
    }

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
