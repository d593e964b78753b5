//! Our ends that write and read mapped-ram files, each in a process of its own.

use crate::ours::{Meter, Outcome, guest, say};
use clap::Args;
use multifd_core::{Plain, RamBlock, RamMap, Sender, SenderConfig, SyncScope};
use multifd_qemu::{Limits, MappedBlock, MappedFile, MappedWriter, Snapshot};
use multifd_transport_file::{DirectIo, FileTransport, PlacedBlock, load};
use std::fs::File;
use std::path::{Path, PathBuf};

fn place(block: &MappedBlock) -> PlacedBlock {
    PlacedBlock {
        name: block.name.clone(),
        layout: block.layout,
    }
}

/// RAM with the blocks of a mapped-ram file, `memory` being the guest's.
fn ram_of(mapped: &MappedFile, memory: RamBlock) -> Outcome<RamMap> {
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
pub(crate) fn beside(path: &Path, memory: RamBlock) -> Outcome<Snapshot> {
    let file = File::open(path)?;
    let mapped = MappedFile::read(&file, 0, &Limits::default(), false)?;
    let ram = ram_of(&mapped, memory)?;
    let others = mapped.blocks.iter().filter(|block| block.name != "pc.ram");
    let placed: Vec<_> = others.map(place).collect();
    load(&file, &placed, &ram, 1, DirectIo::Off)?;
    Ok(Snapshot {
        uuid: mapped.configuration.uuid().unwrap_or_default(),
        configuration: mapped.configuration.with_mapped_ram(false),
        ram,
        ram_section: mapped.ram_section,
        switchover_start: mapped.switchover_start,
        tail: mapped.tail,
    })
}

/// A snapshot into a file, or out of one.
#[derive(Debug, Args)]
pub(crate) struct FileRole {
    /// The file that is the guest's RAM
    #[arg(long)]
    pub(crate) memory: PathBuf,
    /// The mapped-ram file
    #[arg(long)]
    pub(crate) file: PathBuf,
    #[arg(long)]
    pub(crate) channels: u8,
    /// Past the page cache
    #[arg(long)]
    pub(crate) direct: bool,
}

impl FileRole {
    fn direct(&self) -> DirectIo {
        if self.direct { DirectIo::On } else { DirectIo::Off }
    }
}

pub(crate) fn run_save(role: &FileRole) -> Outcome<()> {
    let mut ram = RamMap::new();
    ram.add(guest(&role.memory, None)?)?;
    let snapshot = Snapshot::of_ram(ram);
    let meter = Meter::when_told()?;
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&role.file)?;
    let (writer, mapped) = MappedWriter::start(
        &file,
        0,
        &snapshot.configuration,
        snapshot.page_size(),
        snapshot.ram_section,
        &snapshot.blocks(),
    )?;
    let transport = FileTransport::new(
        file.try_clone()?,
        mapped.iter().map(place).collect(),
        role.direct(),
    )?;
    let config = SenderConfig {
        channels: role.channels,
        ..SenderConfig::default()
    };
    let mut sender = Sender::start(snapshot.ram.clone(), &Plain, &transport, &config)?;
    for (index, block) in snapshot.ram.blocks().iter().enumerate() {
        sender.queue_range(index, 0, block.len())?;
    }
    sender.sync(SyncScope::Local)?;
    sender.finish()?;
    let written = transport.finish()?;
    writer.finish(snapshot.switchover_start, &snapshot.tail)?;
    say(&meter.told(written.bytes))
}

pub(crate) fn run_load(role: &FileRole) -> Outcome<()> {
    let len = std::fs::metadata(&role.memory)?.len();
    let memory = guest(&role.memory, Some(len))?;
    let meter = Meter::when_told()?;
    let file = File::open(&role.file)?;
    let mapped = MappedFile::read(&file, 0, &Limits::default(), false)?;
    let ram = ram_of(&mapped, memory.with_known_zeros())?;
    let placed: Vec<_> = mapped.blocks.iter().map(place).collect();
    let loaded = load(&file, &placed, &ram, role.channels.into(), role.direct())?;
    say(&meter.told(loaded.pages * 4096))
}
