//! Device state as input, from any number of threads.

use super::queue::{Work, WorkQueue};
use crate::{CancelHandle, DeviceBuffer, Error, Placement};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// Queues buffers on a running [`Sender`](crate::Sender), from any thread; made by
/// [`Sender::buffers`](crate::Sender::buffers).
///
/// Every call waits while the channels are busy with a few buffers a channel: what is queued never
/// grows beyond that. What is queued while a round is being ended belongs to the next one.
#[derive(Clone)]
pub struct BufferQueue {
    pub(super) queue: Arc<WorkQueue>,
    pub(super) channels: usize,
    pub(super) max: u32,
    pub(super) placement: Placement,
    pub(super) cancel: CancelHandle,
}

impl std::fmt::Debug for BufferQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BufferQueue")
            .field("channels", &self.channels)
            .finish_non_exhaustive()
    }
}

impl BufferQueue {
    /// Queues a buffer for whichever channel is idle next: buffers of one label may arrive in any
    /// order, several at once.
    ///
    /// # Errors
    /// [`Error::Misconfigured`] for an empty buffer, or one over
    /// [`Common::max_device_state`](crate::Common::max_device_state); [`Error::Unsupported`] if the
    /// transport takes pages only; [`Error::Finished`]; else the transfer's first error.
    pub fn queue(&self, buffer: DeviceBuffer) -> Result<(), Error> {
        self.check(&buffer)?;
        let queued = self.queue.push(Work::Buffer(buffer));
        queued.map_err(|_| self.failure())
    }

    /// Queues a buffer that arrives after all that were queued so before it with the same label and
    /// instance: they go over one channel.
    ///
    /// # Errors
    /// As [`BufferQueue::queue`].
    pub fn queue_in_order(&self, buffer: DeviceBuffer) -> Result<(), Error> {
        self.check(&buffer)?;
        let mut hasher = DefaultHasher::new();
        (&buffer.label, buffer.instance).hash(&mut hasher);
        self.queue_on(hasher.finish() as usize % self.channels.max(1), buffer)
    }

    /// Queues a buffer for one channel.
    pub(super) fn queue_on(&self, channel: usize, buffer: DeviceBuffer) -> Result<(), Error> {
        let queued = self.queue.push_pinned(channel, buffer);
        queued.map_err(|_| self.failure())
    }

    fn check(&self, buffer: &DeviceBuffer) -> Result<(), Error> {
        if self.placement == Placement::Fixed {
            return Err(Error::Unsupported(format!(
                "device state {:?} cannot be sent: the transport puts pages at fixed places and takes nothing else",
                buffer.label
            )));
        }
        let (len, max) = (buffer.data.len(), self.max);
        if buffer.data.is_empty()
            || u32::try_from(len).is_ok_and(|len| len > max)
            || len > u32::MAX as usize
        {
            return Err(Error::Misconfigured(format!(
                "device state {:?} has {len} bytes; a packet carries 1 to {max}: send it in pieces",
                buffer.label,
            )));
        }
        Ok(())
    }

    fn failure(&self) -> Error {
        self.cancel.error().unwrap_or(Error::Finished)
    }
}
