//! Snapshots and the files they lie in.

use crate::failure::Failure;
use crate::options::{Direct, Image, Writing};
use crate::progress::{Rounds, Watch};
use crate::report;
use indicatif::HumanBytes;
use multifd_core::{CancelHandle, Plain, RamBlock, RamMap, Sender, SenderConfig, SyncScope};
use multifd_qemu::{
    CheckBlocks, Limits, MappedBlock, MappedFile, MappedWriter, PhysicalMap, PhysicalRange, Snapshot,
    find_migration,
};
use multifd_transport_file::{
    BlockDigest, Digest, DirectIo, FileError, FileTransport, FileWithCompanion, GuestRange, PlacedBlock,
    Written, companion, load, load_raw, open_read, same_file,
};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Refuses an output that is one of the inputs, by whatever name: it would be emptied before it is
/// read.
pub(crate) fn never_an_input(output: &Path, inputs: &[&Path]) -> Result<(), Failure> {
    let beside: Vec<PathBuf> = inputs.iter().map(|input| companion(input)).collect();
    let all = inputs.iter().copied().chain(beside.iter().map(PathBuf::as_path));
    for input in all {
        if same_file(input, output) {
            return Err(Failure::OutputIsInput {
                path: output.into(),
                input: input.into(),
            });
        }
    }
    Ok(())
}

/// Largest companion read: enough for 60 TiB of RAM.
const MAX_COMPANION: u64 = 256 << 20;

/// How many threads read or write a file: as many as there are processors, up to a point.
pub(crate) fn file_threads() -> u8 {
    let processors = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    u8::try_from(processors).unwrap_or(u8::MAX).min(8)
}

pub(crate) fn placed(block: &MappedBlock) -> PlacedBlock {
    PlacedBlock {
        name: block.name.clone(),
        layout: block.layout,
    }
}

/// A snapshot's file while there is nothing in it yet, and it can still be taken back.
pub(crate) struct Target {
    path: PathBuf,
    file: FileWithCompanion,
    writing: Writing,
}

/// A snapshot that has been written.
pub(crate) struct Kept {
    pub(crate) written: Written,
    /// Whether the companion says where memory lies.
    pub(crate) has_layout: bool,
    /// How long it took to write, sync and name it.
    pub(crate) took: Duration,
}

/// Says how a file's error is to be told: by the file's name.
fn in_file(path: &Path) -> impl Fn(Failure) -> Failure {
    move |error| match error {
        Failure::File(error @ (FileError::At { .. } | FileError::Short { .. })) => Failure::InFile {
            path: path.into(),
            reason: error.to_string(),
        },
        Failure::Migration(error @ multifd_qemu::Error::File { .. }) => Failure::InFile {
            path: path.into(),
            reason: error.to_string(),
        },
        Failure::Engine(error @ multifd_core::Error::Channel { .. }) => Failure::InFile {
            path: path.into(),
            reason: error.to_string(),
        },
        other => other,
    }
}

/// Refuses a guest whose RAM is larger than what is free on the file's disk.
fn check_space(path: &Path, file: &File, ram: u64) -> Result<(), String> {
    let Ok(status) = rustix::fs::fstatvfs(file) else {
        return Ok(());
    };
    let free = status.f_bavail.saturating_mul(status.f_frsize);
    if ram <= free {
        return Ok(());
    }
    Err(format!(
        "{}: No space left on device for all of the guest's RAM: {} are free, and it has {}. Zero pages take no space: \
         --no-space-check tries it",
        path.display(),
        HumanBytes(free),
        HumanBytes(ram),
    ))
}

impl Target {
    /// Makes sure that the file can be written, before anything is received for it.
    pub(crate) fn create(path: &Path, writing: Writing) -> Result<Self, Failure> {
        let file = FileWithCompanion::create(path, writing.force, !writing.no_digest)?;
        Ok(Self {
            path: path.into(),
            file,
            writing,
        })
    }

    /// Checks that there is space for a guest's RAM, in bytes.
    pub(crate) fn check_space(&self, ram: u64) -> Result<(), Failure> {
        if self.writing.no_space_check {
            return Ok(());
        }
        check_space(&self.path, self.file.file(), ram).map_err(Failure::Other)
    }

    /// The same, when the size is announced.
    pub(crate) fn space_check(&self) -> CheckBlocks {
        let (path, file) = (self.path.clone(), self.file.file().try_clone());
        let skip = self.writing.no_space_check;
        Box::new(move |blocks| match file {
            Ok(file) if !skip => check_space(&path, &file, blocks.iter().map(|b| b.used_length).sum()),
            _ => Ok(()),
        })
    }

    /// Writes a snapshot and gives the file its name. `layout` says where memory lies, if that is
    /// known.
    pub(crate) fn write(
        self,
        snapshot: &Snapshot,
        layout: Option<&PhysicalMap>,
        cancel: &CancelHandle,
        quiet: bool,
    ) -> Result<Kept, Failure> {
        let path = self.path.clone();
        self.write_all(snapshot, layout, cancel, quiet)
            .map_err(in_file(&path))
    }

    fn write_all(
        self,
        snapshot: &Snapshot,
        layout: Option<&PhysicalMap>,
        cancel: &CancelHandle,
        quiet: bool,
    ) -> Result<Kept, Failure> {
        let begun = Instant::now();
        let Self { path, file, writing } = self;
        let blocks = snapshot.blocks();
        let (writer, mapped) = MappedWriter::start(
            file.file(),
            0,
            &snapshot.configuration,
            snapshot.page_size(),
            snapshot.ram_section,
            &blocks,
        )?;
        let own = file.file().try_clone().map_err(|source| FileError::Path {
            path: path.clone(),
            doing: "opening it again",
            source,
        })?;
        let placed = mapped.iter().map(placed).collect();
        let transport = FileTransport::new(own, placed, writing.direct_io.into())?;
        if writing.preallocate {
            transport.preallocate()?;
        }
        let config = SenderConfig {
            channels: file_threads(),
            cancel: cancel.clone(),
            ..SenderConfig::default()
        };
        let mut sender = Sender::start(snapshot.ram.clone(), &Plain, &transport, &config)?;
        let total = snapshot.ram.total_len();
        let watch = Watch::new("writing", sender.stats_handle(), total, quiet, &Rounds::default());
        for (index, block) in snapshot.ram.blocks().iter().enumerate() {
            sender.queue_range(index, 0, block.len())?;
        }
        sender.sync(SyncScope::Local)?;
        sender.finish()?;
        drop(watch);
        let written = transport.finish()?;
        writer.finish(snapshot.switchover_start, &snapshot.tail)?;
        let mut digest = None;
        let mut has_layout = false;
        if file.has_companion() {
            let rest = [snapshot.tail.early(), snapshot.tail.bytes()];
            let digest = digest.insert(Digest::of(&snapshot.ram, snapshot.uuid, &rest)?);
            if let Some(map) = layout {
                digest.layout = guest_ranges(map, &digest.blocks);
                has_layout = true;
            }
        }
        file.commit(digest.as_ref())?;
        Ok(Kept {
            written,
            has_layout,
            took: begun.elapsed(),
        })
    }
}

/// A map of memory as it stands in a companion.
fn guest_ranges(map: &PhysicalMap, blocks: &[BlockDigest]) -> Vec<GuestRange> {
    let range = |range: &PhysicalRange| {
        let block = blocks.iter().position(|block| block.name == range.block)?;
        Some(GuestRange {
            address: range.address,
            len: range.len,
            block: u32::try_from(block).ok()?,
            offset: range.offset,
        })
    };
    map.ranges().iter().filter_map(range).collect()
}

/// A snapshot's file that has been opened, and what is in it, apart from the pages.
pub(crate) struct Opened {
    pub(crate) file: File,
    pub(crate) mapped: MappedFile,
}

/// Opens a mapped-ram file, or one within a larger file.
pub(crate) fn open(path: &Path, offset: Option<u64>) -> Result<Opened, Failure> {
    let not_a_snapshot = |source| Failure::NotASnapshot {
        path: path.into(),
        source,
    };
    let file = open_read(path)?;
    let base = match offset {
        Some(offset) => offset,
        None => find_migration(&file).map_err(not_a_snapshot)?,
    };
    let mapped = MappedFile::read(&file, base, &Limits::default(), false).map_err(not_a_snapshot)?;
    Ok(Opened { file, mapped })
}

/// Reads a snapshot's companion; `None` if it has none.
pub(crate) fn companion_of(path: &Path, mapped: &MappedFile) -> Result<Option<Digest>, FileError> {
    let blocks = mapped.blocks.iter();
    let largest = Digest::largest(blocks.map(|block| (block.name.len(), block.layout.used_length())));
    Digest::read(path, largest.min(MAX_COMPANION))
}

/// Reads a snapshot's companion, if it has one that is its own: a file may have been replaced and
/// its companion not.
pub(crate) fn own_companion(path: &Path, mapped: &MappedFile) -> Option<Digest> {
    let problem = match companion_of(path, mapped) {
        Ok(None) => return None,
        Ok(Some(digest)) => {
            let rest = Digest::of_rest(&[mapped.tail.early(), mapped.tail.bytes()]);
            let known = digest.blocks.iter().map(|block| (&block.name, block.used_length));
            let found = mapped
                .blocks
                .iter()
                .map(|block| (&block.name, block.layout.used_length()));
            if digest.rest == rest && known.eq(found) {
                return Some(digest);
            }
            "its companion is of another snapshot, and is not used".into()
        }
        // It is for checking; one that cannot be used does not stop a file from being read.
        Err(error) => error.to_string(),
    };
    report::note(&format!("{}: {problem}", path.display()));
    None
}

/// Reads a whole snapshot into memory.
pub(crate) fn read(image: &Image, direct: Direct) -> Result<Snapshot, Failure> {
    let path = &image.file;
    let Opened { file, mapped } = open(path, image.offset)?;
    let uuid = match mapped.configuration.uuid() {
        Some(uuid) => uuid,
        None => own_companion(path, &mapped)
            .map(|digest| digest.uuid)
            .unwrap_or_default(),
    };
    let mut ram = RamMap::new();
    for block in &mapped.blocks {
        let page_size = u32::try_from(block.layout.header().page_size).unwrap_or(u32::MAX);
        let block = RamBlock::anonymous(&block.name, block.layout.used_length(), page_size)?;
        ram.add(block.with_known_zeros())?;
    }
    let blocks: Vec<PlacedBlock> = mapped.blocks.iter().map(placed).collect();
    load(
        &file,
        &blocks,
        &ram,
        file_threads().into(),
        DirectIo::from(direct),
    )
    .map_err(|error| in_file(path)(error.into()))?;
    Ok(Snapshot {
        uuid,
        configuration: mapped.configuration.with_mapped_ram(false),
        ram,
        ram_section: mapped.ram_section,
        switchover_start: mapped.switchover_start,
        tail: mapped.tail,
    })
}

/// Reads a raw RAM image into memory, as the one block of a VM without devices.
pub(crate) fn read_raw(path: &Path, block: &str) -> Result<Snapshot, Failure> {
    const PAGE_SIZE: u32 = 4096;
    let file = open_read(path)?;
    let data = file.metadata().map_err(|source| Failure::Open {
        path: path.into(),
        source,
    })?;
    let len = data.len();
    if len == 0 || !len.is_multiple_of(PAGE_SIZE.into()) {
        return Err(Failure::RawLength {
            path: path.into(),
            len,
            page_size: PAGE_SIZE,
        });
    }
    let mut ram = RamMap::new();
    let index = ram.add(RamBlock::anonymous(block, len, PAGE_SIZE)?)?;
    if let Some(block) = ram.get(index) {
        load_raw(&file, block, file_threads().into())?;
    }
    Ok(Snapshot::of_ram(ram))
}
