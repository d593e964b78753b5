#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod configuration;
mod container;
mod core_file;
mod elements;
mod error;
#[cfg(feature = "file")]
pub mod file;
mod follow;
mod guest_ram;
mod input;
#[cfg(feature = "file")]
pub mod instant;
mod limits;
mod mapped;
mod migration;
mod output;
#[cfg(all(feature = "file", feature = "qmp"))]
mod partial;
mod physical;
#[cfg(feature = "qmp")]
pub mod qmp;
mod ram;
mod ram_sink;
mod receive;
mod receive_options;
mod reception;
mod relay;
mod sections;
mod send;
mod snapshot;
#[cfg(feature = "store")]
pub mod store;
mod tail;
mod vmstate;

pub use configuration::{Configuration, Subsection};
pub use container::find_migration;
pub use core_file::{CoreFile, CoreSegment, Processor};
pub use error::Error;
pub use follow::{Followed, follow};
pub use limits::Limits;
pub use mapped::{MappedFile, MappedWriter};
pub use migration::{IncomingMigration, OutgoingMigration};
pub use multifd_core::packet::PlacedBlock;
pub use physical::{LayoutError, MAX_RANGES, PhysicalMap, PhysicalRange};
pub use ram::BlockInfo;
pub use ram_sink::{Announced, RamSink};
pub use receive::{read_configuration, receive};
pub use receive_options::{CheckBlocks, MakeMemory, ReceiveOptions, Received};
pub use relay::{RelayOptions, Relayed, relay};
pub use send::{SendOptions, Sent, ZeroPageStyle, send};
pub use snapshot::{Snapshot, Started, SyncStyle};
pub use tail::Tail;
pub use vmstate::{DeviceSection, DeviceState};

pub use multifd_core;
#[cfg(feature = "file")]
pub use multifd_transport_file;
#[cfg(feature = "store")]
pub use multifd_transport_store;
