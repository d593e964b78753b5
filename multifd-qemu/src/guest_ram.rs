//! Memory as the place of a received guest's RAM, and what prepares it for its writers.

use crate::Error;
use crate::ram_sink::{Announced, RamSink};
use crate::receive_options::MakeMemory;
use multifd_core::memory::PlainWriter;
use multifd_core::{BlockError, Destination, RamBlock, RamMap, RamWriter, Run, ZeroPages};
#[cfg(feature = "residency")]
use multifd_residency::Residency;
use std::sync::Arc;

/// Guest RAM, and the main channel's way to write to it.
pub(crate) struct GuestRam {
    make: Option<MakeMemory>,
    ram: RamMap,
    writer: Box<dyn RamWriter>,
    #[cfg(feature = "residency")]
    huge_pages: bool,
    #[cfg(feature = "residency")]
    residency: Option<Residency>,
}

impl GuestRam {
    /// Memory from `make` if there is one; it may get huge pages or not (feature `residency`).
    pub(crate) fn new(make: Option<MakeMemory>, huge_pages: bool) -> Self {
        #[cfg(not(feature = "residency"))]
        let _ = huge_pages;
        Self {
            make,
            ram: RamMap::new(),
            writer: Box::new(PlainWriter),
            #[cfg(feature = "residency")]
            huge_pages,
            #[cfg(feature = "residency")]
            residency: None,
        }
    }

    /// The memory with what prepares it. It is all new: that it reads as zeros is asked of those
    /// who make it.
    #[cfg(feature = "residency")]
    fn destination(&mut self, announced: &Announced<'_>) -> Arc<dyn Destination> {
        let residency = Residency::of_new(&self.ram)
            .huge_pages(self.huge_pages)
            .thread_start(announced.common.thread_start.clone());
        self.writer = Box::new(residency.occasional_writer());
        let destination = Arc::new(residency.decorate(self.ram.clone()));
        self.residency = Some(residency);
        destination
    }

    /// The memory.
    #[cfg(not(feature = "residency"))]
    fn destination(&mut self, _: &Announced<'_>) -> Arc<dyn Destination> {
        Arc::new(self.ram.clone())
    }
}

impl RamSink for GuestRam {
    fn start(&mut self, announced: &Announced<'_>) -> Result<Arc<dyn Destination>, Error> {
        for info in announced.blocks {
            let block = match &mut self.make {
                Some(make) => make(info, announced.page_size)?,
                None => RamBlock::anonymous(&info.name, info.used_length, announced.page_size)?,
            };
            if block.name() != info.name || block.len() != info.used_length {
                return Err(Error::OtherMemory {
                    block: info.name.clone(),
                    len: info.used_length,
                });
            }
            self.ram.add(block)?;
        }
        Ok(self.destination(announced))
    }

    fn page(&mut self, block: usize, offset: u64, contents: Option<&[u8]>) -> Result<(), Error> {
        let block = self.ram.get(block).ok_or_else(|| BlockError::Outside {
            block: String::new(),
            offset,
            len: 0,
            block_len: 0,
        })?;
        let page = block.page(offset)?;
        let Some(contents) = contents else {
            return Ok(self.writer.clear(block, offset)?);
        };
        let run = Run {
            offset,
            len: page.len(),
        };
        self.writer.prepare(block, &mut std::iter::once(run));
        page.copy_from(contents);
        Ok(())
    }

    fn finish(&mut self) -> Result<(RamMap, ZeroPages), Error> {
        // Others may write now.
        #[cfg(feature = "residency")]
        if let Some(residency) = &self.residency {
            residency.end();
        }
        Ok((self.ram.clone(), ZeroPages::Detect))
    }
}
