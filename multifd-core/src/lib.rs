#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

mod block;
mod budget;
mod busy;
mod checksum;
mod device_state;
mod error;
#[cfg(feature = "vm-memory")]
mod guest_memory;
mod incoming;
mod iov;
mod known_zeros;
// Guest memory may change under us and is only touched there.
#[allow(unsafe_code)]
mod memory;
mod method;
mod new_pages;
mod packet_numbers;
mod pages;
mod plain;
mod pooled;
mod preallocate;
mod prefault;
mod prepare_pool;
mod progress;
mod receiver;
mod recv_worker;
mod relay;
mod rounds;
// Beside `memory`, two system calls.
#[allow(unsafe_code)]
mod schedule;
mod send_worker;
mod sender;
mod shutdown;
mod stats;
mod transport;
mod work_queue;

pub use block::RamMap;
pub use budget::{HeldMemory, MemoryBudget, OverBudget};
pub use checksum::Checksums;
pub use device_state::{BufferQueue, Buffers, DeviceHandlers, DeviceStateSink};
pub use error::{BlockError, ChannelError, Error, MethodError, UnpackError};
pub use incoming::IncomingPages;
pub use iov::Outgoing;
pub use memory::{Iov, RamBlock, Region, RegionBuf};
pub use method::{IndependentPackets, Method, Observer, PayloadBuf, Prepare, SentPacket, Unpack};
pub use pages::{PageBatch, Run, ZeroPages, runs};
pub use plain::Plain;
pub use pooled::{Pooled, PreparePool, Workers};
pub use prefault::{Prefault, PrefaultUser};
pub use progress::Progress;
pub use receiver::{Receiver, ReceiverConfig};
pub use relay::{RelayConfig, Relayed, relay};
pub use sender::{Sender, SenderConfig, SyncScope};
pub use shutdown::{CancelHandle, Unblock, UnblockGuard};
pub use stats::{ChannelStats, Stats, StatsHandle};
pub use transport::{Arrival, ChannelSource, RecvChannel, SendChannel, Transport, WriteFlags};
