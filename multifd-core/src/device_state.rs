//! Input that is no guest pages: labelled buffers, from any number of threads, to whoever takes that label.

use crate::shutdown::lock;
use crate::work_queue::{Work, WorkQueue};
use crate::{CancelHandle, Error};
use bytes::Bytes;
use std::any::Any;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};

/// A buffer the caller already holds, on its way to the peer's taker of that label.
#[derive(Debug, Clone)]
pub struct Buffers {
    /// Who takes it at the other end: 1 to 255 bytes without NUL.
    pub label: String,
    /// Which instance of it.
    pub instance: u32,
    /// The bytes, shared and not copied; never empty.
    pub data: Bytes,
}

/// Queues buffers on a running [`Sender`](crate::Sender), from any thread; made by
/// [`Sender::buffers`](crate::Sender::buffers).
///
/// Every call waits while the channels are busy with a few buffers a channel: what is queued never grows beyond that. What is
/// queued while a round is being ended belongs to the next one.
#[derive(Clone)]
pub struct BufferQueue {
    pub(crate) queue: Arc<WorkQueue>,
    pub(crate) channels: usize,
    pub(crate) max: u32,
    pub(crate) cancel: CancelHandle,
}

impl std::fmt::Debug for BufferQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BufferQueue")
            .field("channels", &self.channels)
            .finish_non_exhaustive()
    }
}

impl BufferQueue {
    /// Queues a buffer for whichever channel is idle next: buffers of one label may arrive in any order, several at once.
    ///
    /// # Errors
    /// [`Error::Config`] for an empty buffer, or one over
    /// [`SenderConfig::max_device_state`](crate::SenderConfig::max_device_state); [`Error::Finished`]; else the transfer's
    /// first error.
    pub fn queue(&self, buffers: Buffers) -> Result<(), Error> {
        self.check(&buffers)?;
        let queued = self.queue.push(Work::Buffers(buffers));
        queued.map_err(|_| self.failure())
    }

    /// Queues a buffer that arrives after all that were queued so before it with the same label and instance: they go over
    /// one channel.
    ///
    /// # Errors
    /// As [`BufferQueue::queue`].
    pub fn queue_in_order(&self, buffers: Buffers) -> Result<(), Error> {
        self.check(&buffers)?;
        let mut hasher = DefaultHasher::new();
        (&buffers.label, buffers.instance).hash(&mut hasher);
        self.queue_on(hasher.finish() as usize % self.channels.max(1), buffers)
    }

    /// Queues a buffer for one channel.
    pub(crate) fn queue_on(&self, channel: usize, buffers: Buffers) -> Result<(), Error> {
        let queued = self.queue.push_pinned(channel, buffers);
        queued.map_err(|_| self.failure())
    }

    fn check(&self, buffers: &Buffers) -> Result<(), Error> {
        let (len, max) = (buffers.data.len(), self.max);
        if buffers.data.is_empty() || u32::try_from(len).is_ok_and(|len| len > max) || len > u32::MAX as usize
        {
            return Err(Error::Config(format!(
                "device state {:?} has {len} bytes; a packet carries 1 to {max}: send it in pieces",
                buffers.label,
            )));
        }
        Ok(())
    }

    fn failure(&self) -> Error {
        self.cancel.error().unwrap_or(Error::Finished)
    }
}

/// Takes device state as it arrives; called from the channels' threads.
pub trait DeviceStateSink: Send + Sync {
    /// Takes one buffer.
    ///
    /// # Errors
    /// A sentence saying why the buffer can not be used; it ends the transfer. So does a panic.
    fn take(&self, buffers: Buffers) -> Result<(), String>;
}

/// Takes the buffers of one label.
type Handler = Box<dyn FnMut(Buffers) -> Result<(), String> + Send>;

/// Handlers of device state, by label.
///
/// A handler is called for one buffer at a time, from any channel's thread; different handlers run at once. Buffers of a label
/// that has none end the transfer. For buffers of one label several at a time, implement [`DeviceStateSink`].
///
/// ```
/// use multifd_core::{Buffers, DeviceHandlers, DeviceStateSink};
/// use std::sync::mpsc::channel;
///
/// let (chunks, taken) = channel();
/// let mut handlers = DeviceHandlers::new();
/// handlers.register("0000:00:03.0/vfio", move |buffers| chunks.send(buffers.data).map_err(|e| e.to_string()));
///
/// // What a receiver does, being given `Arc::new(handlers)` as its `device_state`:
/// let chunk = |label: &str| Buffers { label: label.into(), instance: 0, data: "state".into() };
/// assert_eq!(handlers.take(chunk("0000:00:03.0/vfio")), Ok(()));
/// assert_eq!(taken.recv(), Ok("state".into()));
/// assert!(handlers.take(chunk("another")).is_err());
/// ```
#[derive(Default)]
pub struct DeviceHandlers {
    handlers: HashMap<String, Mutex<Handler>>,
}

impl std::fmt::Debug for DeviceHandlers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.handlers.keys()).finish()
    }
}

impl DeviceHandlers {
    /// No handlers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Has `handler` take what comes for `label`, in place of whoever did before. What it returns as an error, a sentence,
    /// ends the transfer.
    pub fn register(
        &mut self,
        label: &str,
        handler: impl FnMut(Buffers) -> Result<(), String> + Send + 'static,
    ) {
        self.handlers.insert(label.into(), Mutex::new(Box::new(handler)));
    }
}

impl DeviceStateSink for DeviceHandlers {
    fn take(&self, buffers: Buffers) -> Result<(), String> {
        let handler = self
            .handlers
            .get(&buffers.label)
            .ok_or("nobody here takes this label")?;
        lock(handler)(buffers)
    }
}

/// What a panic said.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("its handler panicked: {}", text.unwrap_or("without a word"))
}
