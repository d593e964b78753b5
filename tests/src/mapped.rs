//! Whole snapshots into mapped-ram files and out of them, by the library.

use multifd_core::memory::PlainWriter;
use multifd_core::packet::Uuid;
use multifd_core::{Plain, RamBlock, RamMap, Sender, SenderConfig, SyncScope};
use multifd_qemu::{Limits, MappedFile, MappedWriter, PlacedBlock, Snapshot};
use multifd_transport_file::{DirectIo, FileTransport, Written};
use std::fs::File;
use std::path::Path;

/// Loads the snapshot that starts at `base`.
pub fn load(file: &File, base: u64) -> Snapshot {
    let mapped = MappedFile::read(file, base, &Limits::default(), true).unwrap();
    let mut ram = RamMap::new();
    for block in &mapped.blocks {
        let len = block.layout.used_length();
        ram.add(RamBlock::anonymous(&block.name, len, 4096).unwrap())
            .unwrap();
    }
    multifd_transport_file::load(file, &mapped.blocks, &ram, 2, DirectIo::Off, &|| {
        Box::new(PlainWriter)
    })
    .unwrap();
    Snapshot {
        uuid: Uuid::NIL,
        zero_pages: multifd_core::ZeroPages::Detect,
        ram_section: mapped.ram_section,
        configuration: mapped.configuration.with_mapped_ram(false),
        ram,
        switchover_start: mapped.switchover_start,
        tail: mapped.tail,
    }
}

/// Makes a file of a guest without devices whose RAM is `block`.
pub fn create(path: &Path, block: RamBlock) {
    let mut ram = RamMap::new();
    ram.add(block).unwrap();
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .unwrap();
    write(&file, 0, &Snapshot::of_ram(ram));
}

/// Writes a snapshot that starts at `base`; returns where its blocks went, and how much is stored.
pub fn write(file: &File, base: u64, snapshot: &Snapshot) -> (Vec<PlacedBlock>, Written) {
    let (configuration, section) = (&snapshot.configuration, snapshot.ram_section);
    let (writer, blocks) = MappedWriter::start(
        file,
        base,
        configuration,
        snapshot.page_size(),
        section,
        &snapshot.blocks(),
    )
    .unwrap();
    let transport =
        FileTransport::new(file.try_clone().unwrap(), blocks.clone(), DirectIo::Off).unwrap();
    let mut sender = Sender::start(
        snapshot.ram.clone(),
        &Plain,
        &transport,
        &SenderConfig::default(),
    )
    .unwrap();
    for (index, block) in snapshot.ram.blocks().iter().enumerate() {
        sender.queue_range(index, 0, block.len()).unwrap();
    }
    sender.sync(SyncScope::Local).unwrap();
    sender.finish().unwrap();
    let written = transport.finish().unwrap();
    writer
        .finish(snapshot.switchover_start, &snapshot.tail)
        .unwrap();
    (blocks, written)
}
