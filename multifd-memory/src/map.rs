//! The ordered set of RAM blocks a transfer is about.

use crate::{BlockError, RamBlock};
use multifd_packet::Geometry;
use std::sync::Arc;

/// All RAM blocks of a guest, in order; a block's index in it is how clients name it.
#[derive(Debug, Default, Clone)]
pub struct RamMap {
    blocks: Vec<Arc<RamBlock>>,
}

impl RamMap {
    /// An empty map: for transfers of buffers that are no guest pages.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a block at the end and returns its index.
    ///
    /// # Errors
    /// [`BlockError::Duplicate`], [`BlockError::MixedPageSizes`].
    pub fn add(&mut self, block: RamBlock) -> Result<usize, BlockError> {
        if self.find(block.name()).is_some() {
            return Err(BlockError::Duplicate {
                block: block.name().into(),
            });
        }
        let found = block.page_size();
        if let Some(expected) = self
            .blocks
            .first()
            .map(|b| b.page_size())
            .filter(|&size| size != found)
        {
            return Err(BlockError::MixedPageSizes {
                block: block.name().into(),
                found,
                expected,
            });
        }
        self.blocks.push(Arc::new(block));
        Ok(self.blocks.len() - 1)
    }

    /// Makes the memory of all blocks read-only for good: see [`RamBlock::freeze`].
    ///
    /// # Errors
    /// [`BlockError::InUse`], and those of [`RamBlock::freeze`].
    pub fn freeze(self) -> Result<Self, BlockError> {
        let mut frozen = Vec::with_capacity(self.blocks.len());
        for block in self.blocks {
            let block = Arc::try_unwrap(block).map_err(|block| BlockError::InUse {
                block: block.name().into(),
            })?;
            frozen.push(Arc::new(block.freeze()?));
        }
        Ok(Self { blocks: frozen })
    }

    /// The block at `index`.
    pub fn get(&self, index: usize) -> Option<&Arc<RamBlock>> {
        self.blocks.get(index)
    }

    /// The block of that name.
    pub fn find(&self, name: &str) -> Option<&Arc<RamBlock>> {
        self.blocks.iter().find(|b| b.name() == name)
    }

    /// All blocks in order.
    pub fn blocks(&self) -> &[Arc<RamBlock>] {
        &self.blocks
    }

    /// Bytes of all blocks.
    pub fn total_len(&self) -> u64 {
        self.blocks.iter().map(|b| b.len()).sum()
    }

    /// The shape of packets: that of the blocks, or for 4096-byte pages in an empty map.
    ///
    /// # Errors
    /// None in practice: 4096 is a valid page size.
    pub fn geometry(&self) -> Result<Geometry, BlockError> {
        match self.blocks.first() {
            Some(block) => Ok(block.geometry()),
            None => Ok(Geometry::new(4096)?),
        }
    }
}
