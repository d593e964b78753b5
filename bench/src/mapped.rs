//! Guests out of mapped-ram files.

use multifd_core::memory::PlainWriter;
use multifd_core::{BlockError, RamBlock, RamMap};
use multifd_qemu::{Limits, MappedFile, Snapshot};
use multifd_transport_file::{DirectIo, load};
use std::error::Error;
use std::fs::File;
use std::path::Path;

/// RAM with the blocks of a mapped-ram file, `memory` being the guest's.
pub(crate) fn ram_of(mapped: &MappedFile, memory: RamBlock) -> Result<RamMap, BlockError> {
    let mut memory = Some(memory);
    let mut ram = RamMap::new();
    for block in &mapped.blocks {
        ram.add(match memory.take_if(|_| block.name == "pc.ram") {
            Some(memory) => memory,
            None => RamBlock::anonymous(&block.name, block.layout.used_length(), 4096)?,
        })?;
    }
    Ok(ram)
}

/// What a QEMU has beside its RAM, out of a file it has saved, with `memory` as the RAM.
pub(crate) fn beside(path: &Path, memory: RamBlock) -> Result<Snapshot, Box<dyn Error>> {
    let file = File::open(path)?;
    let mapped = MappedFile::read(&file, 0, &Limits::default(), false)?;
    let ram = ram_of(&mapped, memory)?;
    let others = mapped.blocks.iter().filter(|block| block.name != "pc.ram");
    let placed: Vec<_> = others.cloned().collect();
    load(&file, &placed, &ram, 1, DirectIo::Off, &|| {
        Box::new(PlainWriter)
    })?;
    Ok(Snapshot {
        uuid: mapped.configuration.uuid().unwrap_or_default(),
        configuration: mapped.configuration.with_mapped_ram(false),
        ram,
        zero_pages: multifd_core::ZeroPages::Detect,
        ram_section: mapped.ram_section,
        switchover_start: mapped.switchover_start,
        tail: mapped.tail,
    })
}
