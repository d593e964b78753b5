#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod address;
mod backend;
mod clock;
mod copy;
mod diff;
mod error;
pub mod format;
mod gc;
mod lease;
#[cfg(feature = "mount")]
pub mod mount;
mod name;
mod pack_index;
mod read;
mod seal;
mod store;
mod threads;
mod usage;
mod write;

pub use address::{SnapshotAddress, StoreAddress};
pub use diff::{BlockDifference, Differences, differences};
pub use error::StoreError;
pub use format::manifest::{FileEntry, Head, Manifest, Object, ObjectKind, Part, Sizes};
pub use gc::{GcOptions, GcReport, gc};
pub use name::{ChunkName, PackName};
pub use read::{ChunkCache, ChunkPlace, Protection, Recorder, Snapshot, SnapshotFiles};
pub use seal::{OpenKeys, StoreKey};
pub use store::{Listed, Listing, Store, StoreOptions};
pub use usage::{SnapshotUsage, StoreUsage, Usage};
pub use write::{Bytes, ChunkSource, WriteOptions, Writer};

/// Told what goes wrong without anybody else noticing.
pub type Log = std::sync::Arc<dyn Fn(&str) + Send + Sync>;

pub use multifd_core;
pub use object_store;
