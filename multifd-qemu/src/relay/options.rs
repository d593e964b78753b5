//! How to relay, and what came of the channels.

use crate::Limits;
use multifd_core::packet::Compression;
use multifd_core::{ReceiverConfig, SenderConfig, Stats, StatsHandle, common_setters, config};
use std::time::Duration;

config! {
    /// How to relay a migration.
    pub struct RelayOptions {
        /// How the incoming side receives. Its clock, handle and thread hook are those of all
        /// connections: a slow way out is not a stall. Its budget also counts the main connection's
        /// block list. Device state is passed on.
        receiver: ReceiverConfig = ReceiverConfig::default(),
        /// How the outgoing side sends. The number of its channels is
        /// [`RelayOptions::outgoing`]; UUID and zero pages are the source's.
        /// [`Checksums::AtRest`](multifd_core::Checksums::AtRest) holds here: nobody changes pages
        /// that pass through.
        sender: SenderConfig = SenderConfig::default(),
        /// How many channels come in. `None`: those that have connected when the first packet comes
        /// on one of them.
        incoming: Option<u8> = None,
        /// How many channels go out. `None`: as many as come in.
        outgoing: Option<u8> = None,
        /// How much the source may ask for on the main connection.
        limits: Limits = Limits::default(),
        /// How long the destination may take when all has been sent. Default: 600 s.
        finish: Duration = Duration::from_secs(600),
        /// Called once, when both sides are open, with what reads the counts of the incoming and of
        /// the outgoing side.
        on_start: Option<Box<dyn FnOnce(StatsHandle, StatsHandle) + Send>> = None,
    }
}
common_setters!(RelayOptions, receiver.common);

impl std::fmt::Debug for RelayOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RelayOptions")
            .field("incoming", &self.incoming)
            .field("outgoing", &self.outgoing)
            .finish_non_exhaustive()
    }
}

/// Channels that have been relayed.
#[derive(Debug)]
pub(crate) struct ChannelsRelayed {
    pub(crate) incoming: Stats,
    pub(crate) outgoing: Stats,
    pub(crate) methods: Vec<Compression>,
    pub(crate) rounds: u64,
}
