//! Snapshots in stores (feature `store`): a mapped-ram file goes in, and comes out again, byte for
//! byte but for pages that it does not store.
//!
//! ```no_run
//! # fn main() -> Result<(), multifd_qemu::Error> {
//! use multifd_qemu::file::SnapshotFile;
//! use multifd_qemu::store::put;
//! use multifd_transport_store::{Store, StoreOptions, WriteOptions, Writer};
//!
//! let store = Store::open_or_create(&"/var/lib/snapshots".parse()?, &StoreOptions::default())?;
//! let mut writer = Writer::start(&store, "vm-1", WriteOptions::default())?;
//! put(&mut writer, &SnapshotFile::open("vm.mapped".as_ref(), None)?, None)?;
//! writer.finish()?;
//! # Ok(())
//! # }
//! ```

use crate::Error;
use crate::file::SnapshotFile;
use multifd_core::ZeroPages;
use multifd_transport_file::{companion, map_all};
use multifd_transport_store::{
    ChunkSource, FileEntry, Object, ObjectKind, Part, StoreError, Writer,
};
use serde_json::json;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The mapped-ram file among a snapshot's files.
pub const MAPPED: &str = "vm.mapped";
/// The file of the device sections after the RAM, among a snapshot's files.
pub const DEVICE_STATE: &str = "device-state";
/// The object that holds what is in a mapped-ram file beside the pages.
const REST: &str = "vm.mapped without pages";

/// Whether an object that [`put`] writes says where pages lie in the file, and what their checksums
/// are: it says nothing of the guest that its RAM blocks do not.
pub fn is_layout(object: &str) -> bool {
    object == REST || Path::new(object) == companion(MAPPED.as_ref())
}

/// The parts of a file between RAM blocks, one after another.
struct Gaps<'f> {
    file: &'f File,
    path: &'f Path,
    ranges: Vec<Range<u64>>,
}

impl ChunkSource for Gaps<'_> {
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<bool, StoreError> {
        let mut filled = 0;
        let mut start = 0;
        for range in &self.ranges {
            let len = range.end - range.start;
            let at = offset + filled as u64;
            if at < start + len {
                let from = range.start + (at - start);
                let len = usize::try_from(range.end - from).unwrap_or(usize::MAX);
                let len = len.min(out.len() - filled);
                let read = self
                    .file
                    .read_exact_at(&mut out[filled..filled + len], from);
                read.map_err(|cause| StoreError::Path {
                    path: self.path.into(),
                    doing: "reading",
                    cause,
                })?;
                filled += len;
                if filled == out.len() {
                    break;
                }
            }
            start += len;
        }
        Ok(true)
    }
}

/// Puts a mapped-ram file into a snapshot that is being written: its RAM blocks, the file as
/// `vm.mapped`, its companion, and its device state. Without `companion`, the one beside the file is
/// used, if there is one that is its own.
///
/// # Errors
/// [`Error`].
pub fn put(
    writer: &mut Writer,
    file: &SnapshotFile,
    companion_bytes: Option<&[u8]>,
) -> Result<(), Error> {
    let mapped = file.mapped();
    let len = file
        .file()
        .metadata()
        .map_err(|cause| Error::File { offset: 0, cause })?
        .len();
    let memory = map_all(file.file(), &mapped.blocks)?;
    let zeros = ZeroPages::Told(memory.zeros);
    let mut parts = Vec::new();
    let mut gaps = Vec::new();
    let mut end = 0;
    for (block, placed) in memory.ram.blocks().iter().zip(&mapped.blocks) {
        let object = writer.block(block, &zeros)?;
        let at = placed.layout.header().pages_offset;
        if at < end {
            return Err(Error::Store(StoreError::Damaged {
                object: file.path().display().to_string(),
                why: format!("RAM block {:?} lies within another one", block.name()),
            }));
        }
        gaps.push(end..at);
        parts.push(Part {
            at,
            len: block.len(),
            object,
            offset: 0,
        });
        end = at + block.len();
    }
    gaps.push(end..len.max(end));
    let source = Gaps {
        file: file.file(),
        path: file.path(),
        ranges: gaps.clone(),
    };
    let object = writer.object(
        Object {
            kind: ObjectKind::Stream,
            name: REST.into(),
            len: gaps.iter().map(|gap| gap.end - gap.start).sum(),
            page_size: 0,
        },
        &source,
    )?;
    let mut offset = 0;
    for gap in gaps {
        let len = gap.end - gap.start;
        parts.push(Part {
            at: gap.start,
            len,
            object,
            offset,
        });
        offset += len;
    }
    parts.retain(|part| part.len > 0);
    parts.sort_by_key(|part| part.at);
    writer.file(FileEntry {
        path: MAPPED.into(),
        len: len.max(end),
        parts,
    });
    writer.whole_file(DEVICE_STATE, mapped.tail.bytes())?;
    let beside = || {
        let found = file.companion().ok().flatten()?;
        file.is_own(&found).then(|| found.encode())
    };
    if let Some(bytes) = companion_bytes.map(<[u8]>::to_vec).or_else(beside) {
        let name = companion(MAPPED.as_ref()).display().to_string();
        writer.whole_file(&name, &bytes)?;
    }
    writer.about("kind", json!("qemu"));
    writer.about("machine", json!(mapped.configuration.machine));
    writer.about("uuid", json!(file.uuid().to_string()));
    if let Some(state) = mapped.tail.run_state() {
        writer.about("run_state", json!(state));
    }
    Ok(())
}
