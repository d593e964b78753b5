//! What all writers of a guest's new memory share.

use crate::helpers::Pool;
use crate::new_pages::NewBlock;
use multifd_core::{RamBlock, RamMap};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(Debug)]
pub(crate) struct Shared {
    /// By the address of their [`RamBlock`], which the map keeps.
    blocks: HashMap<usize, (Arc<RamBlock>, NewBlock)>,
    pub(crate) huge_pages: AtomicBool,
    /// Others may write now.
    pub(crate) over: AtomicBool,
    pub(crate) pool: Arc<Pool>,
}

impl Shared {
    pub(crate) fn new(ram: &RamMap, processors: usize) -> Self {
        let new = |block: &Arc<RamBlock>| {
            let new = NewBlock::new(block.len(), block.page_size());
            (Arc::as_ptr(block).addr(), (Arc::clone(block), new))
        };
        Self {
            blocks: ram.blocks().iter().map(new).collect(),
            huge_pages: AtomicBool::new(true),
            over: AtomicBool::new(false),
            pool: Arc::new(Pool::new(processors)),
        }
    }

    /// What is known of a block, while it is new.
    pub(crate) fn new_block(&self, block: &Arc<RamBlock>) -> Option<&NewBlock> {
        let (_, new) = self.blocks.get(&Arc::as_ptr(block).addr())?;
        (!self.over.load(Ordering::Relaxed)).then_some(new)
    }

    pub(crate) fn allows_huge_pages(&self) -> bool {
        self.huge_pages.load(Ordering::Relaxed)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.pool.close();
    }
}
