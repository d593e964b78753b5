#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

mod block;
mod copy;
mod error;
#[cfg(feature = "vm-memory")]
mod guest_memory;
mod iov;
mod map;
mod mapping;
mod paging;
mod region;
mod reuse;
mod run;
mod scan;
mod writer;

pub use block::RamBlock;
pub use error::BlockError;
pub use iov::Iov;
pub use map::RamMap;
pub use region::Region;
pub use reuse::{IovBuf, RegionBuf, Reusable, Reuse};
pub use run::{Run, runs};
pub use writer::{PlainWriter, RamWriter};

pub use memmap2;
pub use multifd_packet as packet;
#[cfg(feature = "vm-memory")]
pub use vm_memory;
