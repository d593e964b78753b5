#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod configuration;
mod container;
mod core_file;
mod elements;
mod error;
mod follow;
mod input;
mod limits;
mod mapped;
mod physical;
mod ram;
mod receive;
mod sections;
mod send;
mod snapshot;
mod tail;
mod vmstate;

pub use configuration::{Configuration, Subsection};
pub use container::find_migration;
pub use core_file::{CoreFile, CoreSegment, Processor};
pub use error::Error;
pub use follow::{Followed, follow};
pub use limits::Limits;
pub use mapped::{MappedBlock, MappedFile, MappedWriter};
pub use physical::{LayoutError, MAX_RANGES, PhysicalMap, PhysicalRange};
pub use ram::BlockInfo;
pub use receive::{CheckBlocks, MakeMemory, ReceiveOptions, Received, read_configuration, receive};
pub use send::{SendOptions, Sent, ZeroPageStyle, send};
pub use snapshot::{Snapshot, Started, SyncStyle};
pub use tail::Tail;
pub use vmstate::{DeviceSection, DeviceState};
