//! A running QEMU by its monitor (feature `qmp`): snapshots of it, and restores into it.
//!
//! Nothing is changed in a QEMU before it is known that what was asked for can work. Settings that
//! have to change are written to a journal first and restored afterwards: after success, failure
//! and interrupts by [`snapshot`] and [`restore`] themselves, after `kill -9` by the next of them
//! at the same QEMU.

mod arrival;
#[cfg(feature = "file")]
mod by_file;
mod changes;
mod client;
#[cfg(feature = "file")]
mod descriptors;
mod error;
mod hooks;
#[cfg(feature = "file")]
mod instant;
mod journal;
mod machine;
mod private_folder;
mod questions;
mod restore;
mod run_state;
mod settings;
mod snapshot;
mod stream;
mod watching;
mod way;

#[cfg(feature = "file")]
pub use by_file::{cannot_use_files, snapshot_to_file};
pub use client::Qmp;
pub use error::QmpError;
pub use hooks::{Hooks, Note};
#[cfg(feature = "file")]
pub use instant::{MappedRestore, check_mapped, restore_instantly};
pub use private_folder::{lock_file, state_folder};
#[cfg(feature = "file")]
pub use restore::restore_from_file;
pub use restore::{RestoreOptions, Restored, restore};
pub use run_state::{RunStateRule, run_state_rule};
/// Of which [`Qmp::execute`] takes and returns values.
pub use serde_json;
pub use snapshot::{
    CheckGuest, GuestReport, SnapshotOptions, SnapshotProgress, SnapshotTaken, snapshot,
};
pub use stream::QmpStream;
