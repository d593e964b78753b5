//! The transport layer: dumps IOVs into channels, and takes bytes out of them.

use super::message::Message;
use crate::{ChannelError, Progress, Region, Unblock};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

/// How one `send` is to be done. Zero copy is a flag of a write, not another method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WriteFlags {
    /// The payload is guest memory that stays mapped: the kernel may send from it without copying.
    pub zero_copy: bool,
}

/// Where a transport puts what it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Placement {
    /// Into a stream, in the order of the calls: headers and payloads, of any method.
    #[default]
    Stream,
    /// Each page at its fixed place, and nothing else: pages that are not compressed, without
    /// headers, checksums or device state.
    Fixed,
}

/// A transport's capabilities, and how many of its channels are worth using at once.
///
/// ```
/// use multifd_core::{Capabilities, Placement};
/// use std::num::NonZeroUsize;
///
/// let file = Capabilities::default()
///     .placement(Placement::Fixed)
///     .useful_channels(NonZeroUsize::new(1));
/// assert!(file.zero_copy.is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// Where it puts what it is given.
    pub placement: Placement,
    /// How many channels are worth having busy at once; more would get in each other's way. `None`:
    /// all of them.
    ///
    /// The engine gives its work to that many while they come back for more. Whenever none of them
    /// has for 50 ms although work waits, it lets one more in, until the end of the transfer. Syncs
    /// reach every channel, and so do buffers that want order.
    pub useful_channels: Option<NonZeroUsize>,
    /// Whether [`WriteFlags::zero_copy`] may be asked for; if not, why not: a sentence that begins
    /// with a small letter and has no full stop. Default: not.
    pub zero_copy: Result<(), &'static str>,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self {
            placement: Placement::Stream,
            useful_channels: None,
            zero_copy: Err("this transport cannot send pages without a copy"),
        }
    }
}

impl Capabilities {
    /// Sets [`Capabilities::placement`].
    #[must_use]
    pub fn placement(mut self, placement: Placement) -> Self {
        self.placement = placement;
        self
    }

    /// Sets [`Capabilities::useful_channels`].
    #[must_use]
    pub fn useful_channels(mut self, channels: Option<NonZeroUsize>) -> Self {
        self.useful_channels = channels;
        self
    }

    /// Sets [`Capabilities::zero_copy`].
    #[must_use]
    pub fn zero_copy(mut self, zero_copy: Result<(), &'static str>) -> Self {
        self.zero_copy = zero_copy;
        self
    }
}

/// Opens the sending ends of a transfer's channels.
pub trait Transport {
    /// Opens channel `id`, from 0.
    ///
    /// # Errors
    /// [`ChannelError`] if the peer cannot be reached within the transport's deadline.
    fn open(&self, id: u8) -> Result<Box<dyn SendChannel>, ChannelError>;

    /// What this transport can do. Asked before the channels are opened, to refuse what cannot
    /// work, and after: a transport may know more about its connections then.
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }
}

/// The sending end of a channel, used by one thread.
///
/// One that is dropped without [`SendChannel::close`] must look like a failure to the peer, as far
/// as the transport can tell it anything: a round's end is not the transfer's.
pub trait SendChannel: Send {
    /// Writes all of a message: header and payload, in order, whole.
    ///
    /// A transport to fixed offsets looks at [`Message::pages`] instead and ignores the header.
    ///
    /// # Errors
    /// [`ChannelError`]; the channel is of no use afterwards.
    fn send(&mut self, message: &Message<'_>, flags: WriteFlags) -> Result<(), ChannelError>;

    /// Returns when the memory of everything sent may be used again: called at every sync and at
    /// the end.
    ///
    /// # Errors
    /// [`ChannelError`] if something sent before turns out not to have gone.
    fn flush(&mut self) -> Result<(), ChannelError> {
        Ok(())
    }

    /// Ends the channel in order: the peer sees the end of the stream. That everything was sent
    /// does not say that it has arrived.
    ///
    /// # Errors
    /// [`ChannelError`] if the peer cannot be told.
    fn close(&mut self) -> Result<(), ChannelError> {
        Ok(())
    }

    /// A handle that makes a blocked call on this channel return, from another thread.
    ///
    /// # Errors
    /// [`ChannelError`] if there are no more descriptors.
    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError>;
}

/// What a receiving channel found where a message may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// The buffer is full.
    Message,
    /// The peer ended the channel in order, before the first byte.
    End,
    /// Nothing came for a while; the caller decides whether that is a stall.
    Idle {
        /// How long.
        waited: Duration,
    },
}

/// How long [`RecvChannel::recv`] waits for a byte on a channel without a clock.
const PATIENCE: Duration = Duration::from_secs(30);

/// The receiving end of a channel, used by one thread.
pub trait RecvChannel: Send {
    /// Fills `buffer` with the start of the next message, or says that there is none.
    ///
    /// It must not wait longer than the deadline of the transfer's clock ([`Progress::deadline`])
    /// before it says [`Arrival::Idle`]. It may say so at any time before the first byte, also in
    /// the middle of a message, and is then called again. Once a byte has come it waits for all,
    /// and silence is a stall.
    ///
    /// # Errors
    /// [`ChannelError`]; an end or a stall after the first byte is one.
    fn recv_start(&mut self, buffer: &mut [u8]) -> Result<Arrival, ChannelError>;

    /// Gives the channel the transfer's clock: to be touched whenever bytes arrive, so that a
    /// message that takes long is not taken for a stall. Without this, only whole messages count.
    fn set_progress(&mut self, progress: Arc<Progress>) {
        let _ = progress;
    }

    /// The clock the channel was given, if it keeps it.
    fn progress(&self) -> Option<&Progress> {
        None
    }

    /// Fills `buffer` whole, in the middle of a message. [`Arrival::Idle`] is waited out until the
    /// transfer's clock calls it a stall; without a clock, for 30 s.
    ///
    /// # Errors
    /// [`ChannelError`]; an end or a stall is one.
    fn recv(&mut self, buffer: &mut [u8]) -> Result<(), ChannelError> {
        let mut idle = Duration::ZERO;
        loop {
            match self.recv_start(buffer)? {
                Arrival::Message => return Ok(()),
                Arrival::End => {
                    return Err(ChannelError::Closed {
                        received: 0,
                        expected: buffer.len(),
                    });
                }
                Arrival::Idle { waited } => {
                    idle += waited;
                    let (stalled, deadline) = match self.progress() {
                        Some(clock) => (clock.is_stalled(), clock.deadline()),
                        None => (idle >= PATIENCE, PATIENCE),
                    };
                    if stalled {
                        return Err(ChannelError::Stalled { deadline });
                    }
                }
            }
        }
    }

    /// Fills regions of guest memory whole, in order. The provided method copies; a transport that
    /// can hand the regions to the kernel does better.
    ///
    /// # Errors
    /// [`ChannelError`]; an end or a stall is one.
    fn recv_regions(&mut self, regions: &[Region<'_>]) -> Result<(), ChannelError> {
        let mut staging = [0; 4096];
        for region in regions {
            region.fill_by(&mut staging, |piece| self.recv(piece))?;
        }
        Ok(())
    }

    /// A handle that makes a blocked call on this channel return, from another thread.
    ///
    /// # Errors
    /// [`ChannelError`] if there are no more descriptors.
    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError>;
}

/// Where a receiver's channels come from: connections that have said they are multifd channels.
pub trait ChannelSource {
    /// The next channel: one that is there already, or, with `wait`, one that comes within the
    /// source's deadline. `None` if there is none.
    ///
    /// # Errors
    /// [`ChannelError`] if a connection cannot be taken or is not one of ours.
    fn next_channel(&mut self, wait: bool) -> Result<Option<Box<dyn RecvChannel>>, ChannelError>;

    /// A channel that should be there already: a source has opened all of them. One that is on its
    /// way is waited for a moment.
    ///
    /// # Errors
    /// As [`ChannelSource::next_channel`].
    fn due_channel(&mut self) -> Result<Option<Box<dyn RecvChannel>>, ChannelError> {
        self.next_channel(true)
    }

    /// A channel that came when no more were expected, if there is one by now. This does not wait.
    ///
    /// # Errors
    /// As [`ChannelSource::next_channel`].
    fn late_channel(&mut self) -> Result<Option<Box<dyn RecvChannel>>, ChannelError> {
        self.next_channel(false)
    }
}
