//! The memory that a migration is received into, and what prepares it for its writers.

use crate::receive_options::MakeMemory;
use crate::{BlockInfo, Error};
use multifd_core::memory::PlainWriter;
use multifd_core::{RamBlock, RamMap, RamWriter, Receiver, ReceiverConfig};
#[cfg(feature = "residency")]
use multifd_residency::Residency;

/// Guest RAM, and the main channel's way to write to it.
pub(crate) struct GuestRam {
    ram: RamMap,
    writer: Box<dyn RamWriter>,
    #[cfg(feature = "residency")]
    residency: Option<Residency>,
}

impl Default for GuestRam {
    fn default() -> Self {
        Self {
            ram: RamMap::new(),
            writer: Box::new(PlainWriter),
            #[cfg(feature = "residency")]
            residency: None,
        }
    }
}

impl GuestRam {
    /// Memory for these blocks, from `make` if there is one.
    pub(crate) fn new(
        blocks: &[BlockInfo],
        page_size: u32,
        mut make: Option<&mut MakeMemory>,
    ) -> Result<Self, Error> {
        let mut this = Self::default();
        for info in blocks {
            let block = match &mut make {
                Some(make) => make(info, page_size)?,
                None => RamBlock::anonymous(&info.name, info.used_length, page_size)?,
            };
            if block.name() != info.name || block.len() != info.used_length {
                return Err(Error::OtherMemory {
                    block: info.name.clone(),
                    len: info.used_length,
                });
            }
            this.ram.add(block)?;
        }
        Ok(this)
    }

    /// A receiver into it. It is all new: that it reads as zeros is asked of those who make it.
    #[cfg(feature = "residency")]
    pub(crate) fn receiver(
        &mut self,
        config: ReceiverConfig,
        huge_pages: bool,
    ) -> Result<Receiver, Error> {
        let residency = Residency::of_new(&self.ram)
            .huge_pages(huge_pages)
            .thread_start(config.common.thread_start.clone());
        self.writer = Box::new(residency.occasional_writer());
        let receiver = Receiver::new(residency.decorate(self.ram.clone()), config)?;
        self.residency = Some(residency);
        Ok(receiver)
    }

    /// A receiver into it.
    #[cfg(not(feature = "residency"))]
    pub(crate) fn receiver(&mut self, config: ReceiverConfig, _: bool) -> Result<Receiver, Error> {
        Ok(Receiver::new(self.ram.clone(), config)?)
    }

    pub(crate) fn ram(&self) -> &RamMap {
        &self.ram
    }

    /// The blocks, and the main channel's way to write to them.
    pub(crate) fn parts(&mut self) -> (&RamMap, &mut dyn RamWriter) {
        (&self.ram, self.writer.as_mut())
    }

    /// All has been received: others may write now.
    pub(crate) fn end(&self) {
        #[cfg(feature = "residency")]
        if let Some(residency) = &self.residency {
            residency.end();
        }
    }
}
