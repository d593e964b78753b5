//! What a snapshot or a restore changes in a QEMU.

use serde_json::Value;

/// A setting: its name, its value before, and ours.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Setting {
    pub(super) name: String,
    pub(super) before: Value,
    pub(super) ours: Value,
}

/// What has been changed in a QEMU, and what becomes of its guest.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(clippy::struct_excessive_bools)] // Each is a fact of its own.
pub(super) struct Changes {
    pub(super) capabilities: Vec<Setting>,
    pub(super) parameters: Vec<Setting>,
    /// The guest ran, and is to run on.
    pub(super) resume: bool,
    /// The migration goes on if we are killed.
    pub(super) outlives_us: bool,
    /// Our migration has been started: the guest may stand still because of that.
    pub(super) migrated: bool,
    /// We have stopped the guest.
    pub(super) stopped: bool,
}

/// What is done after the settings have been changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Start the migration.
    Migrate,
    /// Stop the guest.
    Stop,
}

impl Step {
    pub(super) fn line(self) -> &'static str {
        match self {
            Self::Migrate => "migrate",
            Self::Stop => "stop",
        }
    }
}
