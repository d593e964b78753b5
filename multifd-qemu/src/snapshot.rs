//! A whole VM at rest.

use crate::{BlockInfo, Configuration, Tail};
use multifd_core::packet::Uuid;
use multifd_core::{RamMap, StatsHandle, ZeroPages};

/// The RAM section's number where there is nothing to keep: that of the recordings from a machine
/// of the type `pc`.
const RAM_SECTION: u32 = 1;

/// A whole VM: which machine it is, its RAM, and the state of its devices.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The machine, and what the source had switched on.
    pub configuration: Configuration,
    /// The VM's UUID, or zeros. Channels say it, a mapped-ram file does not; a QEMU that was given
    /// one accepts no other.
    pub uuid: Uuid,
    /// Guest RAM.
    pub ram: RamMap,
    /// How its zero pages are found. If they are told, only the other pages mean anything in
    /// [`Snapshot::ram`].
    pub zero_pages: ZeroPages,
    /// The number of the RAM section: any that no device section has.
    pub ram_section: u32,
    /// Whether the source said that the guest is stopped (machine types from 10.0 on do), so that
    /// we say it too.
    pub switchover_start: bool,
    /// The device sections, byte for byte.
    pub tail: Tail,
}

impl Snapshot {
    /// RAM and nothing else, as a machine named `none`: what another `receive` takes, but no QEMU.
    pub fn of_ram(ram: RamMap) -> Self {
        let page_size = ram.blocks().first().map_or(4096, |block| block.page_size());
        Self {
            configuration: Configuration::new("none"),
            uuid: Uuid::NIL,
            ram,
            zero_pages: ZeroPages::Detect,
            ram_section: RAM_SECTION,
            switchover_start: false,
            tail: Tail::empty(page_size),
        }
    }

    /// Bytes of a guest page.
    pub fn page_size(&self) -> u32 {
        let first = self.ram.blocks().first();
        first.map_or(self.configuration.page_size(), |block| block.page_size())
    }

    /// The RAM blocks as the setup list names them.
    pub fn blocks(&self) -> Vec<BlockInfo> {
        let info = |block: &std::sync::Arc<multifd_core::RamBlock>| BlockInfo {
            name: block.name().into(),
            used_length: block.len(),
        };
        self.ram.blocks().iter().map(info).collect()
    }
}

/// When channels sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncStyle {
    /// Once a round, said by `MULTIFD_FLUSH` on the main channel: machine types from 8.1 on.
    EachRound,
    /// At the end of every section of the main channel, without a word: machine types up to 8.0.
    EachSection,
}

/// Passed to the progress callback once the RAM blocks are known.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Started {
    /// The engine's counts, to be read while it runs.
    pub stats: StatsHandle,
    /// The RAM blocks.
    pub blocks: Vec<BlockInfo>,
}

impl Started {
    /// Bytes of guest RAM over all blocks.
    pub fn ram_bytes(&self) -> u64 {
        self.blocks.iter().map(|block| block.used_length).sum()
    }
}
