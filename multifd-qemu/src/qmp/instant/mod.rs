//! A QEMU whose RAM is a private mapping of a snapshot's file: it loads the rest, and goes on.

mod backends;
mod process;
mod stale;

use super::client::Qmp;
use super::machine;
use super::restore::{RestoreOptions, Restored, check_waits, give};
use super::settings::recover;
use super::way::Way;
use crate::file::SnapshotFile;
use crate::partial::send_partial;
use crate::qmp::QmpError;
use crate::{Error, OutgoingMigration};
use multifd_core::{CancelHandle, MainTransport, event};
use multifd_transport_file::BlockReader;
use process::Process;
use std::ops::Range;

/// How much of a snapshot had to be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MappedRestore {
    /// RAM blocks that are mapped.
    pub mapped_blocks: usize,
    /// Bytes of guest RAM that are mapped.
    pub mapped_bytes: u64,
    /// Pages of mapped blocks that were loaded all the same: QEMU had written to them, or they are
    /// zero and something else stands in their place in the file.
    pub reloaded_pages: u64,
    /// Bytes that were sent to QEMU.
    pub sent_bytes: u64,
}

/// Checks that the QEMU at `qmp`, which waits for a migration, maps a snapshot's RAM from its file.
/// Nothing is changed.
///
/// # Errors
/// [`QmpError::Refused`], saying which option is missing or wrong, or what does not go together with
/// a private mapping.
pub fn check_mapped(qmp: &mut Qmp, file: &SnapshotFile) -> Result<(), QmpError> {
    plan(qmp, file).map(drop)
}

/// What has to be loaded.
struct Plan {
    /// For each block the ranges of bytes.
    ranges: Vec<Vec<Range<u64>>>,
    instant: MappedRestore,
}

fn plan(qmp: &mut Qmp, file: &SnapshotFile) -> Result<Plan, QmpError> {
    let vm = file.mapped();
    backends::check_devices(qmp)?;
    machine::check_fits(qmp, &vm.configuration, &machine::placed(vm))?;
    let mapped = backends::check(qmp, file)?;
    let process = Process::of(qmp)?;
    process.check_locked()?;
    let mut plan = Plan {
        ranges: Vec::with_capacity(vm.blocks.len()),
        instant: MappedRestore {
            mapped_blocks: mapped.len(),
            mapped_bytes: 0,
            reloaded_pages: 0,
            sent_bytes: 0,
        },
    };
    for (number, block) in vm.blocks.iter().enumerate() {
        let layout = &block.layout;
        if !mapped.contains(&number) {
            let whole = 0..layout.used_length();
            plan.ranges.push(vec![whole]);
            continue;
        }
        let reader = BlockReader::new(file.file(), block).map_err(Error::from)?;
        let stale = stale::stale_pages(file.file(), &reader)?;
        let written = process.written_pages(file.file(), block)?;
        let ranges = stale::union(stale, written);
        let bytes: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        plan.instant.reloaded_pages += bytes / layout.header().page_size;
        plan.instant.mapped_bytes += layout.used_length();
        plan.ranges.push(ranges);
    }
    Ok(plan)
}

/// Has the QEMU at `qmp`, which waits for a migration (`-incoming defer`) and maps the RAM of a
/// snapshot privately from its file (see [`QemuOptions`](crate::instant::QemuOptions)), load the
/// rest of the snapshot from `transport`, where it is told to listen at `uri`.
///
/// The file is never written to, and stays in use as long as that QEMU runs: pages come from it when
/// the guest touches them. Replacing it by a new file of its name does no harm; writing into it or
/// making it shorter destroys the guest.
///
/// # Errors
/// As [`check_mapped`], before anything is changed; [`QmpError`] otherwise, and the QEMU takes no
/// other migration then.
pub fn restore_instantly(
    qmp: &mut Qmp,
    file: &SnapshotFile,
    (transport, uri): (&dyn MainTransport, &str),
    cancel: &CancelHandle,
    options: &RestoreOptions,
) -> Result<Restored<MappedRestore>, QmpError> {
    recover(qmp, &options.hooks)?;
    machine::ask_ahead(qmp)?;
    check_waits(qmp)?;
    let Plan {
        ranges,
        mut instant,
    } = plan(qmp, file)?;
    event!(
        reloaded_pages = instant.reloaded_pages,
        "most of the snapshot is mapped"
    );
    let vm = file.mapped();
    let readers = vm.blocks.iter();
    let readers: Result<Vec<_>, _> = readers
        .map(|block| BlockReader::new(file.file(), block))
        .collect();
    let readers = readers.map_err(Error::from)?;
    let machine = &vm.configuration;
    let at = |_: &mut Qmp| Ok(uri.to_owned());
    give(qmp, Way::Main, at, machine, options, |_| {
        let mut migration = OutgoingMigration::connect(transport, cancel)?;
        let mut read = |name: &str, offset: u64, page: &mut [u8]| -> Result<bool, Error> {
            let reader = readers.iter().find(|reader| reader.block().name == name);
            let Some(reader) = reader.filter(|reader| reader.is_stored(offset, page.len() as u64))
            else {
                return Ok(true);
            };
            reader.read(offset, page)?;
            Ok(false)
        };
        let page = vm.page_size() as usize;
        let pages = ranges.into_iter().enumerate().flat_map(|(number, ranges)| {
            let offsets = ranges
                .into_iter()
                .flat_map(move |range| range.step_by(page));
            offsets.map(move |offset| (number, offset))
        });
        let sent = send_partial(vm, pages, &mut read, migration.main());
        instant.sent_bytes = sent?;
        migration.finish(options.timeout)?;
        Ok(instant)
    })
}
