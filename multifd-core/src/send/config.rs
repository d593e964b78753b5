//! How a sender is configured, and what cannot work together.

use crate::{Capabilities, Checksums, Common, Error, Placement, WriteFlags, ZeroPages, checksum};
use multifd_packet::{Compression, Uuid};
use std::num::NonZeroUsize;

config! {
    /// The configuration of a [`Sender`](crate::Sender).
    #[derive(Debug, Clone)]
    pub struct SenderConfig {
        /// What both engines are configured with.
        common: Common = Common::default(),
        /// How many channels, and threads: 1 to 255. Default: 2.
        channels: u8 = 2,
        /// The VM's UUID, or zeros.
        uuid: Uuid = Uuid::NIL,
        /// How zero pages are found.
        zero_pages: ZeroPages = ZeroPages::Detect,
        /// How guest pages are written.
        flags: WriteFlags = WriteFlags::default(),
        /// What carries checksums; needs the feature `checksum`.
        checksums: Checksums = Checksums::Off,
        /// How many channels get work at once. `None`: what the transport says
        /// ([`Capabilities::useful_channels`]).
        busy_channels: Option<NonZeroUsize> = None,
        /// How many packets may wait for channels. `None`: 8 a channel, at most 32, at least 2 a
        /// channel; where each holds a copy of its pages, 2 a channel.
        queue_depth: Option<NonZeroUsize> = None,
    }
}
common_setters!(SenderConfig, common);

/// Refuses what cannot work together.
pub(super) fn check(
    kind: Compression,
    capabilities: Capabilities,
    config: &SenderConfig,
) -> Result<(), Error> {
    if config.channels == 0 {
        return Err(Error::Misconfigured(
            "a transfer needs at least one channel".into(),
        ));
    }
    if config.checksums != Checksums::Off && !checksum::AVAILABLE {
        return Err(checksum::missing());
    }
    if let (true, Err(why)) = (config.flags.zero_copy, capabilities.zero_copy) {
        return Err(Error::Unsupported(format!("{why}: switch zero copy off")));
    }
    if capabilities.placement == Placement::Fixed {
        if kind != Compression::None {
            return Err(Error::Unsupported(format!(
                "pages compressed with {kind} have no fixed place: use the method none with this transport"
            )));
        }
        if config.checksums != Checksums::Off {
            return Err(Error::Unsupported(
                "this transport stores pages only: switch the checksums of packets off".into(),
            ));
        }
    }
    Ok(())
}
