//! The channels of a migration, relayed: decoded, encoded anew, and sent on, round by round.

use super::options::{ChannelsRelayed, RelayOptions};
use super::pass_on::PassOn;
use multifd_core::packet::Geometry;
use multifd_core::{
    BlockError, ChannelSource, DeviceSink, Encode, Error, Gathering, Receiver, Sender, StatsHandle,
    SyncScope, Transport, ZeroPages,
};
use std::sync::Arc;

/// Called once, when both sides are open, with what reads the counts of each.
pub(super) type OnOpen<'a> = Box<dyn FnOnce(StatsHandle, StatsHandle) + 'a>;

/// Takes the channels of one transfer from `source`, sends what comes over them on channels of
/// `transport`, and returns when all of them have ended. A page has `page_size` bytes.
///
/// Guest RAM is not held: memory is a few packets a channel, whatever the size of the guest. Which
/// pages there may be is for the far end to check: it knows the RAM blocks.
///
/// # Errors
/// The first thing that went wrong, on either side. All threads are gone then.
pub(super) fn relay_channels<'a>(
    source: &mut dyn ChannelSource,
    transport: &dyn Transport,
    encode: impl Into<Encode<'a>>,
    options: &RelayOptions,
    page_size: u32,
    on_open: OnOpen<'_>,
) -> Result<ChannelsRelayed, Error> {
    let cancel = &options.receiver.common.cancel;
    let geometry = Geometry::new(page_size).map_err(BlockError::from)?;
    let pass_on = PassOn::new(geometry, cancel.clone());
    let _gate_guard = cancel.also_unblock(pass_on.unblock_handle());
    let sink: Arc<dyn DeviceSink> = Arc::new(pass_on.clone());
    let config = options.receiver.clone();
    let most = options.incoming.map_or(config.max_channels, usize::from);
    let config = config.max_channels(most).device_state(Some(sink));
    let mut receiver = Receiver::new(pass_on.clone(), config)?;
    let expected = options.incoming.map(usize::from);
    receiver.attach_all(source, expected, Gathering::Awaited)?;
    let channels = u8::try_from(receiver.channels()).unwrap_or(u8::MAX);
    let config = options
        .sender
        .clone()
        .common(options.receiver.common.clone())
        .channels(options.outgoing.unwrap_or(channels))
        .uuid(receiver.uuid().unwrap_or_default())
        // The source has looked for them.
        .zero_pages(ZeroPages::Off);
    let mut sender = Sender::start_for_packets(geometry, encode, transport, &config)?;
    on_open(receiver.stats_handle(), sender.stats_handle());
    pass_on.open(&sender);
    let mut rounds = 0;
    while receiver.hold_round()? {
        if options.incoming.is_none() {
            // Every channel has reached the round's end: a missing number is on a channel nobody
            // knows of, and the far end must not learn that the round is complete.
            receiver.check_numbers()?;
        }
        // Nothing of the next round is sent before every channel has ended this one.
        sender.sync(SyncScope::Peer)?;
        receiver.release_round();
        rounds += 1;
    }
    if rounds == 0 {
        // A source ends a round on every channel, however little it has to send.
        return Err(Error::EndedEarly { channel: 0 });
    }
    let methods = receiver.methods();
    let incoming = receiver.finish()?;
    Ok(ChannelsRelayed {
        incoming,
        outgoing: sender.finish()?,
        methods,
        rounds,
    })
}
