//! Files that QEMU reads or writes by itself, passed to it as descriptors.

use super::client::Qmp;
use crate::qmp::QmpError;
use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};

/// What QEMU does with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

/// A set of descriptors in QEMU (`add-fd`), which stand for one file.
#[derive(Debug)]
pub(super) struct DescriptorSet(u64);

impl DescriptorSet {
    /// Passes QEMU a file. With `direct` there is a second descriptor, past the page cache.
    pub(super) fn pass(
        qmp: &mut Qmp,
        file: &File,
        access: Access,
        direct: bool,
    ) -> Result<Self, QmpError> {
        let flags = match access {
            Access::Read => OFlags::RDONLY,
            Access::Write => OFlags::WRONLY,
        };
        let mut set = None;
        let direct = direct.then_some(OFlags::DIRECT);
        for more in [Some(OFlags::empty()), direct].into_iter().flatten() {
            // QEMU takes the descriptor whose access is exactly what it opens a file for.
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            let opened = rustix::fs::open(path, flags | more | OFlags::CLOEXEC, Mode::empty());
            let opened = opened.map_err(|cause| {
                QmpError::Refused(format!("the file cannot be opened once more: {cause}"))
            })?;
            let arguments = match set {
                None => json!({ "opaque": "multifd" }),
                Some(id) => json!({ "opaque": "multifd", "fdset-id": id }),
            };
            let answer = qmp.execute_with("add-fd", &arguments, Some(opened.as_fd()));
            let answer = answer.map_err(|error| match error {
                QmpError::Monitor { why, .. } => QmpError::NotPassed(why),
                other => other,
            })?;
            set = answer.get("fdset-id").and_then(Value::as_u64);
        }
        match set {
            Some(id) => Ok(Self(id)),
            None => Err(QmpError::Failed(
                "QEMU does not say where it has put a descriptor".into(),
            )),
        }
    }

    /// Where QEMU finds the migration that begins at `offset` (bytes) of the file.
    pub(super) fn uri(&self, offset: u64) -> String {
        format!("file:/dev/fdset/{},offset={offset}", self.0)
    }

    /// Takes the descriptors away again. QEMU does so by itself when this monitor is closed.
    pub(super) fn remove(self, qmp: &mut Qmp) {
        // It has ended, or has removed them already.
        let _ = qmp.execute("remove-fd", &json!({ "fdset-id": self.0 }));
    }
}
