//! A running QEMU by its monitor (feature `qmp`): snapshots of it, and restores into it.
//!
//! Nothing is changed in a QEMU before it is known that what was asked for can work. Settings that
//! have to change are written to a journal first and restored afterwards: after success, failure
//! and interrupts by [`snapshot`] and [`restore`] themselves, after `kill -9` by the next of them
//! at the same QEMU.

mod changes;
mod client;
mod error;
mod hooks;
mod journal;
mod machine;
mod private_folder;
mod restore;
mod run_state;
mod settings;
mod snapshot;

pub use client::{Qmp, QmpStream};
pub use error::QmpError;
pub use hooks::{Hooks, Note};
pub use private_folder::lock_file;
pub use restore::{RestoreOptions, Restored, restore};
pub use run_state::{RunStateRule, run_state_rule};
/// Of which [`Qmp::execute`] takes and returns values.
pub use serde_json;
pub use snapshot::{CheckGuest, GuestReport, SnapshotOptions, SnapshotTaken, snapshot};
