#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]
#![deny(missing_docs)]

mod atomic;
mod bitmap;
mod channel;
#[cfg(feature = "digest")]
mod compare;
mod destination;
#[cfg(feature = "digest")]
mod digest;
mod direct;
mod error;
mod extract;
mod leftovers;
mod load;
mod mapped;
#[cfg(feature = "digest")]
mod pair;
mod place;
mod places;
mod reader;
mod stored_pages;
mod write_back;
// All of this crate's unsafe code: raw IOVs handed to the kernel.
#[allow(unsafe_code)]
mod sys;

pub use atomic::{AtomicFile, check_target};
pub use channel::FileTransport;
#[cfg(feature = "digest")]
pub use compare::changed_pages;
pub use destination::{FileDestination, PageWriter};
#[cfg(feature = "digest")]
pub use digest::{BlockDigest, Digest, GuestRange, companion};
pub use direct::{DirectIo, can_be_direct};
pub use error::FileError;
pub use extract::extract;
pub use load::{Loaded, MakeWriter, load, load_raw};
pub use mapped::{MappedRam, data_in, map, map_all, map_raw};
pub use multifd_core::packet::PlacedBlock;
#[cfg(feature = "digest")]
pub use pair::FileWithCompanion;
pub use place::{descriptor_number, open_read, same_file};
pub use places::Written;
pub use reader::BlockReader;
pub use stored_pages::StoredPages;
pub use write_back::WriteBack;

pub use multifd_core;
