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
mod leftovers;
mod load;
mod pair;
mod place;
mod reader;
mod stored_pages;
// All of this crate's unsafe code: raw IOVs handed to the kernel.
#[allow(unsafe_code)]
mod sys;

pub use atomic::{AtomicFile, check_target};
pub use channel::{FileTransport, PlacedBlock, Written};
pub use compare::changed_pages;
pub use digest::{BlockDigest, Digest, GuestRange, companion};
pub use direct::DirectIo;
pub use error::FileError;
pub use extract::extract;
pub use load::{Loaded, load, load_raw, map};
pub use pair::FileWithCompanion;
pub use place::{descriptor_number, open_read, same_file};
pub use reader::BlockReader;
pub use stored_pages::StoredPages;
