//! Guest memory: the only place of this crate that dereferences it.
//!
//! A running guest writes to its memory while we read it. No Rust reference is ever formed over it: bytes go through
//! volatile accesses or inline assembly here, or as raw address ranges to the kernel.

mod block;
mod copy;
mod iov;
mod mapping;
mod region;
mod scan;

pub use block::RamBlock;
pub use iov::Iov;
pub(crate) use iov::IovBuf;
#[cfg(test)]
pub(crate) use mapping::tests::memory_file;
pub(crate) use region::HUGE;
pub use region::{Region, RegionBuf};
