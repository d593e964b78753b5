#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

mod block;
mod error;
// All of this crate's unsafe code: guest memory may change under us and is only touched there.
#[allow(unsafe_code)]
mod memory;
mod pages;

pub use block::RamMap;
pub use error::BlockError;
pub use memory::{Iov, RamBlock, Region, RegionBuf, plain_loop_is_zero};
pub use pages::{Run, runs};
