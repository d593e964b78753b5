#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

mod atomic;
mod bitmap;
mod channel;
mod compare;
mod digest;
mod direct;
mod error;
mod extract;
mod load;
mod place;
mod reader;
// All of this crate's unsafe code: raw IOVs handed to the kernel.
#[allow(unsafe_code)]
mod sys;

pub use atomic::AtomicFile;
pub use channel::{FileTransport, PlacedBlock, Written};
pub use compare::changed_pages;
pub use digest::{BlockDigest, Digest, checksum, companion};
pub use direct::DirectIo;
pub use error::FileError;
pub use extract::extract;
pub use load::{Loaded, load, load_raw, map};
pub use place::{descriptor_number, open_read};
pub use reader::{BlockReader, read_bitmap};
