#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod budget;
mod cancel;
mod checksum;
// Documentation that macros of this crate write has links by this name, wherever they are used.
extern crate self as multifd_core;

#[macro_use]
mod config;
mod error;
mod progress;
mod recv;
mod send;
mod stats;
pub mod sync;
mod tables;
mod trace;

pub use budget::{HeldMemory, MemoryBudget, OverBudget};
pub use cancel::{CancelHandle, Unblock, UnblockGuard};
pub use checksum::Checksums;
pub use config::{Common, ThreadRole, ThreadStart};
pub use error::{BoxError, ChannelError, Error, MethodError, UnpackError};
pub use progress::Progress;
pub use recv::{DeviceHandlers, DeviceSink, Gathering, Receiver, ReceiverConfig};
pub use send::{BufferQueue, PacketQueue, Sender, SenderConfig, SyncScope};
pub use stats::{ChannelStats, Stats, StatsHandle};
pub use tables::destination::{Destination, Fill, Place};
pub use tables::device_buffer::DeviceBuffer;
pub use tables::encode::{Encode, Workers};
pub use tables::incoming::IncomingPages;
pub use tables::main::{Incoming, MainConnection, MainListener, MainTransport, Outgoing};
pub use tables::message::Message;
pub use tables::method::{
    IndependentPackets, Method, Observer, PayloadBuf, Prepare, SentPacket, Unpack,
};
pub use tables::pages::{PageBatch, ZeroPages, ZeroTest};
pub use tables::plain::Plain;
pub use tables::transport::{
    Arrival, Capabilities, ChannelSource, Placement, RecvChannel, SendChannel, Transport,
    WriteFlags,
};
#[cfg(feature = "tracing")]
#[doc(hidden)]
pub use tracing as __tracing;

pub use bytes;
pub use multifd_memory as memory;
pub use multifd_memory::{
    BlockError, Iov, RamBlock, RamMap, RamWriter, Region, RegionBuf, Run, runs,
};
pub use multifd_packet as packet;
