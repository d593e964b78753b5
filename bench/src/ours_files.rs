//! Our ends that write and read mapped-ram files, each in a process of its own.

use crate::mapped::ram_of;
use crate::ours::{Meter, Outcome, guest, say};
use clap::Args;
use multifd_core::{Plain, RamMap, Sender, SenderConfig, SyncScope};
use multifd_qemu::{Limits, MappedFile, MappedWriter, Snapshot};
use multifd_residency::Residency;
use multifd_transport_file::{DirectIo, FileTransport, load};
use std::fs::File;
use std::path::PathBuf;

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
        if self.direct {
            DirectIo::On
        } else {
            DirectIo::Off
        }
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
    let (writer, placed) = MappedWriter::start(
        &file,
        0,
        &snapshot.configuration,
        snapshot.page_size(),
        snapshot.ram_section,
        &snapshot.blocks(),
    )?;
    let transport = FileTransport::new(file.try_clone()?, placed, role.direct())?;
    let config = SenderConfig::default().channels(role.channels);
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
    let ram = ram_of(&mapped, memory)?;
    let residency = Residency::of_new(&ram);
    let writer = || Box::new(residency.writer()) as _;
    let threads = role.channels.into();
    let loaded = load(&file, &mapped.blocks, &ram, threads, role.direct(), &writer)?;
    say(&meter.told(loaded.pages * 4096))
}
