//! RAM blocks from `vm-memory` regions (feature `vm-memory`).

use crate::{BlockError, RamBlock, RamMap};
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap};

impl RamMap {
    /// A map with one block for each region of `memory`, in the order of their guest addresses,
    /// named `ram0`, `ram1`, and so on. `page_size` is bytes.
    ///
    /// The blocks keep the regions mapped. Pages received into them do not show in the regions' own
    /// dirty bitmaps.
    ///
    /// ```
    /// use multifd_memory::RamMap;
    /// use vm_memory::{GuestAddress, GuestMemoryMmap};
    ///
    /// let low = (GuestAddress(0), 1 << 20);
    /// let high = (GuestAddress(1 << 32), 1 << 20);
    /// let memory = GuestMemoryMmap::<()>::from_ranges(&[low, high])?;
    /// let map = RamMap::from_guest_memory(&memory, 4096)?;
    /// assert_eq!(map.find("ram1").map(|block| block.len()), Some(1 << 20));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`BlockError`] if a region's length is no multiple of the page size, or the page size can
    /// not be used.
    pub fn from_guest_memory<B>(
        memory: &GuestMemoryMmap<B>,
        page_size: u32,
    ) -> Result<Self, BlockError>
    where
        B: Bitmap + Send + Sync + 'static,
    {
        let mut map = Self::new();
        for (index, region) in memory.iter().enumerate() {
            map.add(RamBlock::from_guest_region(
                &format!("ram{index}"),
                region,
                page_size,
            )?)?;
        }
        Ok(map)
    }
}

impl RamBlock {
    /// A block over one region of a `vm-memory` guest memory, which it keeps mapped. `page_size` is
    /// bytes.
    ///
    /// # Errors
    /// [`BlockError`] if the name, length or page size cannot be used, or the region is not mapped
    /// for reading and writing.
    pub fn from_guest_region<B>(
        name: &str,
        region: &GuestRegionMmap<B>,
        page_size: u32,
    ) -> Result<Self, BlockError>
    where
        B: Bitmap + Send + Sync + 'static,
    {
        const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
        let mapping = region.get_mmap();
        if mapping.prot() & READ_WRITE != READ_WRITE {
            return Err(BlockError::Protection { block: name.into() });
        }
        let (base, len) = (mapping.as_ptr(), mapping.size());
        // SAFETY: the mapping covers exactly this range and moves into the block as its owner;
        // vm-memory hands out no references to guest memory, only volatile accesses, which tolerate
        // other writers.
        unsafe { Self::from_raw_parts(name, base, len, page_size, mapping) }
    }
}
