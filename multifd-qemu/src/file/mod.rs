//! Snapshots in mapped-ram files (feature `file`): written, synced and named in the right order,
//! and read back.
//!
//! ```no_run
//! # fn main() -> Result<(), multifd_qemu::Error> {
//! # let snapshot = multifd_qemu::Snapshot::of_ram(multifd_core::RamMap::new());
//! use multifd_qemu::file::{LoadOptions, SaveOptions, SnapshotFile, Target};
//!
//! let target = Target::create("vm.mapped".as_ref(), &SaveOptions::default())?;
//! target.save(&snapshot, None, SaveOptions::default())?;
//! let again = SnapshotFile::open("vm.mapped".as_ref(), None)?.load(&LoadOptions::default())?;
//! # Ok(())
//! # }
//! ```

mod opened;
mod sink;
mod spooled;
mod target;
mod verify;

pub use opened::{LoadOptions, SnapshotFile, map_raw};
pub use spooled::Spooled;
pub use target::{SaveOptions, Saved, Target};
pub use verify::{Damage, Verification};

/// How many threads read or write a file by default: one for each processor, up to 8.
pub fn default_threads() -> u8 {
    let processors = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    u8::try_from(processors).unwrap_or(u8::MAX).min(8)
}
