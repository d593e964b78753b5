//! Files that QEMU writes and reads by itself.

use super::client::Qmp;
use super::descriptors::{Access, DescriptorSet};
use super::settings::knows;
use super::snapshot::{SnapshotOptions, SnapshotTaken, Vm, take};
use super::watching::watch;
use super::way::Way;
use crate::qmp::QmpError;
use crate::{Limits, MappedFile, Tail};
use multifd_core::CancelHandle;
use std::fs::File;
use std::time::Instant;

/// Takes a snapshot of the QEMU at `qmp`: has it write `file`, which is empty, by itself. Only
/// whether all is there is left to us. The monitor must be at a Unix socket: the file is passed as a
/// descriptor. QEMU 9.0 and later can do it.
///
/// Otherwise as [`snapshot`](crate::qmp::snapshot()), with two differences. A process that is killed
/// meanwhile leaves the migration behind: it ends with the guest stopped, which the next snapshot or
/// restore at this QEMU lets run again. And QEMU 10.0 may crash, with its guest, if such a migration
/// fails or is cancelled: it is never cancelled, but a disk that fills up or breaks is such a failure.
///
/// # Errors
/// As [`snapshot`](crate::qmp::snapshot()).
pub fn snapshot_to_file(
    qmp: &mut Qmp,
    file: &File,
    options: SnapshotOptions,
) -> Result<SnapshotTaken<MappedFile>, QmpError> {
    if let Some(why) = cannot_use_files(qmp)? {
        return Err(QmpError::Refused(why.into()));
    }
    let way = Way::File(options.channels, options.direct);
    let mut passed = None;
    let taken = take(qmp, options, way, |qmp, options, (changed, guest)| {
        let begun = Instant::now();
        let set = DescriptorSet::pass(qmp, file, Access::Write, options.direct)?;
        let uri = passed.insert(set).uri(0);
        let never = CancelHandle::default();
        watch(options, (qmp, &uri), &never, (changed, guest))?;
        let took = begun.elapsed();
        let limits = Limits::default();
        let need_vmdesc = options.receive.need_vmdesc;
        Ok((MappedFile::read(file, 0, &limits, need_vmdesc)?, took))
    });
    // The guest does not wait for this.
    if let Some(set) = passed {
        set.remove(qmp);
    }
    taken
}

/// Why a QEMU cannot read and write files that we pass it, if it cannot.
///
/// # Errors
/// [`QmpError`], if it does not say.
pub fn cannot_use_files(qmp: &mut Qmp) -> Result<Option<&'static str>, QmpError> {
    Ok(if !qmp.passes_descriptors() {
        Some("QEMU can be passed a file only over a monitor at a Unix socket")
    } else if knows(qmp, "mapped-ram")? {
        None
    } else {
        Some("this QEMU is too old to read or write a mapped-ram file: 9.0 was the first")
    })
}

impl Vm for MappedFile {
    fn tail(&self) -> &Tail {
        &self.tail
    }

    fn blocks(&self) -> Vec<(&str, u64)> {
        let blocks = self.blocks.iter();
        blocks
            .map(|block| (block.name.as_str(), block.layout.used_length()))
            .collect()
    }
}
