#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod helpers;
mod known_zeros;
mod new_pages;
mod populate;
mod preallocate;
mod residency;
mod resident;
mod shared;
#[cfg(test)]
mod testing;
mod writer;

pub use preallocate::preallocate;
pub use residency::Residency;
pub use resident::Resident;
pub use writer::Writer;

pub use multifd_core;
