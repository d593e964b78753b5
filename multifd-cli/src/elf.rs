//! Where a snapshot's memory lies, for an ELF core: by what that is known.

use crate::failure::Failure;
use multifd_qemu::file::SnapshotFile;
use multifd_qemu::{LayoutError, MappedFile, PhysicalMap, PhysicalRange};
use multifd_transport_file::{Digest, open_read};
use serde::Serialize;
use std::io::Read;
use std::path::Path;

/// Longest layout file read.
const MAX_TEXT: u64 = 64 << 20;

/// By what a layout is known.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case", tag = "layout", content = "why")]
pub(crate) enum Known {
    /// QEMU's monitor showed it when the snapshot was taken.
    Companion,
    /// The machine's own device state proves it.
    DeviceState,
    /// The user says it.
    Given,
    /// Nothing; and why.
    Unknown(String),
}

impl Known {
    /// For people.
    pub(crate) fn line(&self) -> String {
        match self {
            Self::Companion => {
                "where memory lies: as QEMU's monitor showed it (in the companion)".into()
            }
            Self::DeviceState => {
                "where memory lies: as the device state proves it; RAM and firmware only".into()
            }
            Self::Given => "where memory lies: as the layout file says it".into(),
            Self::Unknown(why) => format!("where memory lies is not known: {why}"),
        }
    }
}

fn blocks(mapped: &MappedFile) -> Vec<(&str, u64)> {
    let blocks = mapped.blocks.iter();
    blocks
        .map(|block| (block.name.as_str(), block.layout.used_length()))
        .collect()
}

/// The layout in a companion.
fn of_companion(digest: &Digest) -> Result<PhysicalMap, LayoutError> {
    let ranges = digest.layout.iter();
    let ranges = ranges.filter_map(|range| {
        Some(PhysicalRange {
            address: range.address,
            len: range.len,
            block: digest.blocks.get(range.block as usize)?.name.clone(),
            offset: range.offset,
        })
    });
    PhysicalMap::new(ranges.collect())
}

/// The best layout there is, and by what it is known.
fn find(mapped: &MappedFile, digest: Option<&Digest>) -> Result<(PhysicalMap, Known), LayoutError> {
    let machine = &mapped.configuration.machine;
    check_machine(machine).map_err(LayoutError::Unknown)?;
    let found = match digest.filter(|digest| !digest.layout.is_empty()) {
        Some(digest) => (of_companion(digest)?, Known::Companion),
        None => (
            PhysicalMap::of_pc(machine, &blocks(mapped), &mapped.tail)?,
            Known::DeviceState,
        ),
    };
    found.0.check(&blocks(mapped))?;
    Ok(found)
}

fn check_machine(machine: &str) -> Result<(), String> {
    if is_x86(machine) {
        return Ok(());
    }
    Err(format!(
        "cores are written of x86 machines (pc, q35, microvm, isapc), and this is {machine:?}"
    ))
}

/// Distributions' PCs have names of their own, but begin alike.
fn is_x86(machine: &str) -> bool {
    machine.starts_with("pc-") || ["pc", "q35", "microvm", "isapc", "x-remote"].contains(&machine)
}

/// By what the layout of a file is known.
pub(crate) fn known(mapped: &MappedFile, digest: Option<&Digest>) -> Known {
    find(mapped, digest).map_or_else(
        |error| Known::Unknown(error.to_string()),
        |(_, known)| known,
    )
}

/// The layout of a file: as the text of the monitor's `info mtree -f` says it, or the best there
/// is.
pub(crate) fn layout(
    opened: &SnapshotFile,
    digest: Option<&Digest>,
    given: Option<&Path>,
) -> Result<(PhysicalMap, Known), Failure> {
    check_machine(&opened.mapped().configuration.machine).map_err(Failure::Other)?;
    let Some(given) = given else {
        return find(opened.mapped(), digest).map_err(|error| {
            Failure::Other(format!(
                "{error}. Save what QEMU's monitor prints for `info mtree -f` into a file, and name it with --layout; or take the \
                 snapshot by `multifd snapshot`, which keeps it"
            ))
        });
    };
    let mut text = String::new();
    let read = open_read(given)?.take(MAX_TEXT).read_to_string(&mut text);
    read.map_err(|cause| Failure::Open {
        path: given.into(),
        cause,
    })?;
    let mapped = opened.mapped();
    PhysicalMap::from_flat_view(&text, &blocks(mapped), &mapped.tail)
        .map(|map| (map, Known::Given))
        .map_err(|error| Failure::Other(format!("{}: {error}", given.display())))
}
