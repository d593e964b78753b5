#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

mod atomic;
mod bitmap;
mod channel;
mod error;
mod extract;
mod load;
// All of this crate's unsafe code: raw IOVs handed to the kernel.
#[allow(unsafe_code)]
mod sys;

pub use atomic::AtomicFile;
pub use channel::{FileTransport, PlacedBlock, Written};
pub use error::FileError;
pub use extract::extract;
pub use load::{Loaded, load, load_raw, read_bitmap};
