//! The transport layer: what dumps IOVs into channels, and what takes bytes out of them.

use crate::{ChannelError, Outgoing, Progress, Region, Unblock};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

/// How one `send` is to be done. Zero copy is a flag of a write, not another method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WriteFlags {
    /// The payload is guest memory that stays mapped: the kernel may send from it without copying.
    pub zero_copy: bool,
}

/// Opens the sending ends of a transfer's channels.
pub trait Transport {
    /// Opens channel `id`, from 0.
    ///
    /// # Errors
    /// [`ChannelError`] if the peer can not be reached within the transport's deadline.
    fn open(&self, id: u8) -> Result<Box<dyn SendChannel>, ChannelError>;
}

/// The sending end of a channel, used by one thread.
pub trait SendChannel: Send {
    /// Writes all of a message: header and payload, in order, whole.
    ///
    /// A transport to fixed offsets looks at [`Outgoing::pages`] instead and ignores the header.
    ///
    /// # Errors
    /// [`ChannelError`]; the channel is of no use afterwards.
    fn send(&mut self, message: &Outgoing<'_>, flags: WriteFlags) -> Result<(), ChannelError>;

    /// Returns when everything sent is out of our hands: called at every sync and at the end.
    ///
    /// # Errors
    /// [`ChannelError`] if something sent before turns out not to have gone.
    fn flush(&mut self) -> Result<(), ChannelError> {
        Ok(())
    }

    /// Ends the channel in an orderly way: the peer sees the end of the stream.
    ///
    /// # Errors
    /// [`ChannelError`] if the end can not be told to the peer.
    fn close(&mut self) -> Result<(), ChannelError> {
        Ok(())
    }

    /// How many channels of this kind are worth having busy at once: more would only get into each other's way. `None`, as
    /// provided, is all of them.
    ///
    /// The engine gives its work to that many while they come back for more; whenever none of them has for 50 ms though work waits, it
    /// lets one more in, for good. Where channels say different numbers the largest holds; where any says `None` there is no limit. Syncs, and
    /// buffers that want order, reach every channel.
    fn busy_at_once(&self) -> Option<NonZeroUsize> {
        None
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
    /// The peer ended the channel, before the first byte.
    End,
    /// Nothing came for a while; the caller decides whether that is a stall.
    Idle {
        /// How long.
        waited: Duration,
    },
}

/// The receiving end of a channel, used by one thread.
pub trait RecvChannel: Send {
    /// Fills `buffer` with the start of the next message, or says that there is none.
    ///
    /// # Errors
    /// [`ChannelError`]; an end or a stall after the first byte is one.
    fn recv_start(&mut self, buffer: &mut [u8]) -> Result<Arrival, ChannelError>;

    /// Tells the channel of the transfer's clock: it is to be touched whenever bytes arrive, so that a message that takes
    /// long is not taken for a stall. Without this, only whole messages count.
    fn set_progress(&mut self, progress: Arc<Progress>) {
        let _ = progress;
    }

    /// Fills `buffer` whole.
    ///
    /// # Errors
    /// [`ChannelError`]; an end or a stall is one.
    fn recv(&mut self, buffer: &mut [u8]) -> Result<(), ChannelError> {
        match self.recv_start(buffer)? {
            Arrival::Message => Ok(()),
            Arrival::End => Err(ChannelError::Closed {
                received: 0,
                expected: buffer.len(),
            }),
            Arrival::Idle { waited } => Err(ChannelError::Stalled { deadline: waited }),
        }
    }

    /// Fills regions of guest memory whole, in order. The provided method copies; a transport that can hand the
    /// regions to the kernel does better.
    ///
    /// # Errors
    /// [`ChannelError`]; an end or a stall is one.
    fn recv_regions(&mut self, regions: &[Region<'_>]) -> Result<(), ChannelError> {
        let mut staging = [0; 4096];
        for region in regions {
            let mut left = *region;
            while !left.is_empty() {
                let n = left.len().min(staging.len());
                let Some(piece) = staging.get_mut(..n) else { break };
                self.recv(piece)?;
                left.copy_from(piece);
                left = left.advanced(n);
            }
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
    /// The next channel: one that is there already, or, with `wait`, one that comes within the source's deadline.
    /// `None` if there is none.
    ///
    /// # Errors
    /// [`ChannelError`] if a connection can not be taken or is none of ours.
    fn next_channel(&mut self, wait: bool) -> Result<Option<Box<dyn RecvChannel>>, ChannelError>;

    /// A channel that should be there already: a source has opened all of them. One that is on its
    /// way is waited for a moment.
    ///
    /// # Errors
    /// As [`ChannelSource::next_channel`].
    fn due_channel(&mut self) -> Result<Option<Box<dyn RecvChannel>>, ChannelError> {
        self.next_channel(true)
    }

    /// A channel that came when no more were expected, if there is one by now. Nobody is waited for.
    ///
    /// # Errors
    /// As [`ChannelSource::next_channel`].
    fn late_channel(&mut self) -> Result<Option<Box<dyn RecvChannel>>, ChannelError> {
        self.next_channel(false)
    }
}
