//! Snapshots that become a QEMU's RAM as a private mapping of the file (feature `file`): only device
//! state and small blocks are loaded.
//!
//! [`QemuOptions`] says what a QEMU has to be started with for that;
//! [`restore_instantly`](crate::qmp::restore_instantly) (feature `qmp`) checks that it was, and has
//! it go on.

mod arguments;
mod options;

#[cfg(feature = "qmp")]
pub(crate) use options::is_backend;
pub use options::{Backend, QemuOptions};
