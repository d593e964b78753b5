//! How to receive a VM, and what has been received.

use crate::{BlockInfo, Limits, RamSink, Snapshot, Started, SyncStyle};
use multifd_core::packet::Compression;
use multifd_core::{BlockError, BoxError, RamBlock, ReceiverConfig, Stats, common_setters, config};

/// Makes the memory of a RAM block, given its page size in bytes.
pub type MakeMemory = Box<dyn FnMut(&BlockInfo, u32) -> Result<RamBlock, BlockError> + Send>;

/// Returns an error to refuse a VM with these RAM blocks.
pub type CheckBlocks = Box<dyn FnOnce(&[BlockInfo]) -> Result<(), BoxError> + Send>;

config! {
    /// How to receive a VM.
    pub struct ReceiveOptions {
        /// Methods, checksums, device state, memory budget, and the handle that ends the migration
        /// from elsewhere. Without a UUID, that of the main channel is the only one accepted, or
        /// else one that all channels agree on. The number of channels is
        /// [`ReceiveOptions::channels`].
        engine: ReceiverConfig = ReceiverConfig::default(),
        /// How many channels there must be. `None`: those that have connected when the first round
        /// ends.
        channels: Option<u8> = None,
        /// How much the source may ask for.
        limits: Limits = Limits::default(),
        /// Whether QEMU's description at the end must be there (see
        /// [`Tail::new`](crate::Tail::new)).
        need_vmdesc: bool = true,
        /// Where RAM goes, such as a file (feature `file`). `None`: memory.
        sink: Option<Box<dyn RamSink>> = None,
        /// Makes the memory of each RAM block: a VMM's own. It must read as zeros, and nobody else
        /// may write to it before all has been received. `None`: private anonymous memory.
        memory: Option<MakeMemory> = None,
        /// Whether new memory may get huge pages (feature `residency`).
        huge_pages: bool = true,
        /// Called once, when the RAM blocks are known and nothing has been received. Its error
        /// refuses them.
        check: Option<CheckBlocks> = None,
        /// Called once, when the RAM blocks are known.
        on_start: Option<Box<dyn FnOnce(Started) + Send>> = None,
    }
}
common_setters!(ReceiveOptions, engine.common);

impl std::fmt::Debug for ReceiveOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReceiveOptions")
            .field("channels", &self.channels)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// A migration that has arrived whole.
#[derive(Debug)]
#[non_exhaustive]
pub struct Received {
    /// The VM.
    pub snapshot: Snapshot,
    /// What came over the channels, each and all.
    pub stats: Stats,
    /// Bytes of the main channel.
    pub main_bytes: u64,
    /// Rounds joined.
    pub rounds: u64,
    /// How the source syncs.
    pub sync: SyncStyle,
    /// The compression methods of the packets with contents; empty if every page was zero.
    pub methods: Vec<Compression>,
    /// Whether the source had no channels: all pages came over the main connection.
    pub over_main: bool,
}
