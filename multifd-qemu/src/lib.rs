#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod configuration;
mod error;
mod input;
mod limits;
mod mapped;
mod ram;
mod receive;
mod sections;
mod send;
mod snapshot;
mod tail;
mod vmdesc;

pub use configuration::{Configuration, Subsection};
pub use error::Error;
pub use limits::Limits;
pub use mapped::{MappedBlock, MappedFile, MappedWriter};
pub use ram::BlockInfo;
pub use receive::{MakeMemory, ReceiveOptions, Received, read_configuration, receive};
pub use send::{SendOptions, Sent, ZeroPageStyle, send};
pub use snapshot::{Snapshot, Started, SyncStyle};
pub use tail::Tail;
pub use vmdesc::DeviceSection;
