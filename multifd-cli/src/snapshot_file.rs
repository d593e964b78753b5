//! Snapshot files as arguments of commands.

use crate::failure::Failure;
use crate::report;
use multifd_qemu::file::SnapshotFile;
use multifd_transport_file::{Digest, companion, same_file};
use std::path::{Path, PathBuf};

/// Refuses an output that is one of the inputs, by whatever name: it would be emptied before it is
/// read.
pub(crate) fn never_an_input(output: &Path, inputs: &[&Path]) -> Result<(), Failure> {
    let beside: Vec<PathBuf> = inputs.iter().map(|input| companion(input)).collect();
    let all = inputs
        .iter()
        .copied()
        .chain(beside.iter().map(PathBuf::as_path));
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

/// Reads a snapshot's companion, if it has one that is its own; says so if it has another.
pub(crate) fn own_companion(path: &Path, file: &SnapshotFile) -> Option<Digest> {
    let problem = match file.companion() {
        Ok(None) => return None,
        Ok(Some(digest)) if file.is_own(&digest) => return Some(digest),
        Ok(Some(_)) => "its companion is of another snapshot, and is not used".into(),
        // It is for checking; one that cannot be used does not stop a file from being read.
        Err(error) => error.to_string(),
    };
    report::note(&format!("{}: {problem}", path.display()));
    None
}
