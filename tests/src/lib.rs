//! What the end-to-end tests share: recorded streams and how to replay them, and a real QEMU and
//! how to drive it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Test code: a panic is a failed test.
#![allow(clippy::missing_panics_doc)]

pub mod core_files;
pub mod golden;
pub mod guest;
pub mod linux_guest;
pub mod mapped;
pub mod netns;
#[cfg(feature = "object-server")]
pub mod object_server;
pub mod other_qemus;
pub mod pair;
pub mod program;
pub mod proxy;
pub mod qemu;
pub mod stores;
