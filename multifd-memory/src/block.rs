//! RAM blocks and regions of them.

use crate::mapping::SharedMapping;
use crate::{BlockError, Region};
use memmap2::{MmapMut, MmapOptions};
use multifd_packet::{Geometry, NAME_LEN};
use std::any::Any;
use std::fs::File;
use std::marker::PhantomData;
use std::sync::Arc;

/// A named, contiguous piece of guest memory (QEMU's RAM block): what packets name and offsets
/// count in.
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
}

// SAFETY: the memory stays mapped while `owner` lives, and is only touched by volatile or kernel
// accesses that tolerate other writers; nothing in the block depends on the thread.
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
    /// [`BlockError`] if the name, length or page size cannot be used, or there is no memory.
    pub fn anonymous(name: &str, len: u64, page_size: u32) -> Result<Self, BlockError> {
        check(name, len, page_size)?;
        let no_memory = |cause| BlockError::Memory {
            block: name.into(),
            len,
            cause: Arc::new(cause),
        };
        let size =
            usize::try_from(len).map_err(|_| no_memory(std::io::ErrorKind::OutOfMemory.into()))?;
        let room = size
            .checked_add(alignment(size))
            .ok_or_else(|| no_memory(std::io::ErrorKind::OutOfMemory.into()))?;
        let mut map = MmapOptions::new()
            .len(room)
            .no_reserve_swap()
            .map_anon()
            .map_err(no_memory)?;
        let skip = map.as_ptr().align_offset(alignment(size));
        // SAFETY: the mapping is longer than the block by the alignment, which is more than what is
        // skipped.
        let base = unsafe { map.as_mut_ptr().add(skip) };
        // SAFETY: the mapping covers this range and moves into the block as its owner.
        let mut block = unsafe { Self::from_raw_parts(name, base, size, page_size, map) }?;
        block.private = true;
        Ok(block)
    }

    /// A block over all of a file in memory (a memfd, or one on a tmpfs or hugetlbfs), which others
    /// have mapped, too, as a guest has. It is mapped where huge pages can be used.
    ///
    /// If the file is cut short later, using what is no longer there is a fault (`SIGBUS`), as with
    /// any mapping.
    ///
    /// # Errors
    /// [`BlockError`] if the name, the file's length or the page size cannot be used, or the
    /// system does not map it to be read and written.
    pub fn shared(name: &str, file: &File, page_size: u32) -> Result<Self, BlockError> {
        let cannot = |len| {
            move |cause| BlockError::Memory {
                block: name.into(),
                len,
                cause: Arc::new(cause),
            }
        };
        let len = file.metadata().map_err(cannot(0))?.len();
        check(name, len, page_size)?;
        let size = usize::try_from(len)
            .map_err(|_| cannot(len)(std::io::ErrorKind::OutOfMemory.into()))?;
        let mapping = SharedMapping::new(file, size, alignment(size)).map_err(cannot(len))?;
        let base = mapping.base();
        // SAFETY: the mapping covers exactly this range and moves into the block as its owner.
        unsafe { Self::from_raw_parts(name, base, size, page_size, mapping) }
    }

    /// Makes the block's memory read-only for good, so that a codec may read it in place. Only
    /// blocks made by [`RamBlock::anonymous`] can be frozen: nobody else writes to them. A write
    /// through a [`Region`] of a frozen block is a fault (`SIGSEGV`), and the engine's receiver refuses
    /// such blocks.
    ///
    /// # Errors
    /// [`BlockError::Shared`] if the memory is not the block's alone; [`BlockError::Memory`] if the
    /// system refuses.
    pub fn freeze(self) -> Result<Self, BlockError> {
        if self.frozen {
            return Ok(self);
        }
        let Self { name, owner, .. } = self;
        let shared = || BlockError::Shared {
            block: name.to_string(),
        };
        if !self.private {
            return Err(shared());
        }
        let map = owner.downcast::<MmapMut>().map_err(|_| shared())?;
        let map = map.make_read_only().map_err(|cause| BlockError::Memory {
            block: name.to_string(),
            len: self.len as u64,
            cause: Arc::new(cause),
        })?;
        Ok(Self {
            name,
            owner: Box::new(map),
            frozen: true,
            ..self
        })
    }

    /// Whether the memory has been made read-only.
    pub fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// The bytes of a frozen block's range in place; `None` if the block is not frozen, or the
    /// range does not lie in it whole.
    pub fn frozen_bytes(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let region = self.region(offset, len).ok().filter(|_| self.frozen)?;
        // SAFETY: the range is mapped for as long as the block lives, and nobody can write to it:
        // the mapping is private to this process, anonymous, owned by the block, and read-only
        // since it was frozen, which took the block by value, so that no region from before is
        // left.
        Some(unsafe { std::slice::from_raw_parts(region.as_mut_ptr(), region.len()) })
    }

    /// A block over a writable mapping the caller made, whole.
    ///
    /// # Errors
    /// [`BlockError`] if the name, length or page size cannot be used.
    pub fn from_mmap(name: &str, mut map: MmapMut, page_size: u32) -> Result<Self, BlockError> {
        let (base, len) = (map.as_mut_ptr(), map.len());
        // SAFETY: the mapping covers exactly this range and moves into the block as its owner.
        unsafe { Self::from_raw_parts(name, base, len, page_size, map) }
    }

    /// A block over `len` bytes at `base` that `owner` keeps mapped.
    ///
    /// # Errors
    /// [`BlockError`] if the name, length or page size cannot be used.
    ///
    /// # Safety
    /// The range must be mapped readable, and writable if the block is received into, until `owner`
    /// is dropped. No Rust reference to it may be live while the block is in use. Writes by others
    /// (a guest, a device) are fine.
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

/// What memory of `len` bytes is to be aligned to, so that huge pages fit if it is as long as one.
fn alignment(len: usize) -> usize {
    if len < Region::HUGE { 1 } else { Region::HUGE }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn regions_stay_inside_their_block() {
        let block = RamBlock::anonymous("pc.ram", 8192, 4096).unwrap();
        assert_eq!(block.region(0, 8192).unwrap().len(), 8192);
        assert_eq!(block.region(8192, 0).unwrap().len(), 0);
        for (offset, len) in [
            (0, 8193),
            (4097, 4096),
            (8193, 0),
            (u64::MAX, 1),
            (1, usize::MAX),
        ] {
            let error = block.region(offset, len).unwrap_err();
            assert!(
                matches!(
                    error,
                    BlockError::Outside {
                        block_len: 8192,
                        ..
                    }
                ),
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
            Err(BlockError::Shared { .. })
        ));
    }

    #[test]
    fn a_file_in_memory_is_shared_at_an_aligned_address() {
        let file = crate::mapping::tests::memory_file();
        file.set_len(3 << 20).unwrap();
        let block = RamBlock::shared("pc.ram", &file, 4096).unwrap();
        assert_eq!(block.len(), 3 << 20);
        assert!(block.base.addr().is_multiple_of(Region::HUGE));
        block.page((3 << 20) - 4096).unwrap().copy_from(b"page");
        let mut found = [0; 4];
        file.read_exact_at(&mut found, (3 << 20) - 4096).unwrap();
        assert_eq!(&found, b"page");

        for len in [0, 4095] {
            file.set_len(len).unwrap();
            let refused = RamBlock::shared("pc.ram", &file, 4096);
            assert!(matches!(refused, Err(BlockError::Length { .. })), "{len}");
        }
    }
}
