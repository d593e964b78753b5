//! Who takes device state: one sink, or a handler for each label.

use crate::sync::lock;
use crate::{BoxError, DeviceBuffer};
use std::any::Any;
use std::collections::HashMap;
use std::sync::Mutex;

/// Takes device state when it arrives; called from the channels' threads.
pub trait DeviceSink: Send + Sync {
    /// Takes one buffer.
    ///
    /// # Errors
    /// Why the buffer cannot be used; it ends the transfer. So does a panic.
    fn take(&self, buffer: DeviceBuffer) -> Result<(), BoxError>;
}

/// Takes the buffers of one label.
type Handler = Box<dyn FnMut(DeviceBuffer) -> Result<(), BoxError> + Send>;

/// Handlers of device state, by label.
///
/// A handler is called for one buffer at a time, from any channel's thread; different handlers run
/// at once. Buffers of a label that has none end the transfer. For several buffers of one label at
/// a time, implement [`DeviceSink`].
///
/// ```
/// use multifd_core::{DeviceBuffer, DeviceHandlers, DeviceSink};
/// use std::sync::mpsc::channel;
///
/// let (chunks, taken) = channel();
/// let mut handlers = DeviceHandlers::new();
/// handlers.register("0000:00:03.0/vfio", move |buffer| Ok(chunks.send(buffer.data)?));
///
/// // The part of a receiver that is given `Arc::new(handlers)` as its `device_state`:
/// let chunk = |label: &str| DeviceBuffer { label: label.into(), instance: 0, data: "state".into() };
/// handlers.take(chunk("0000:00:03.0/vfio"))?;
/// assert_eq!(taken.recv()?, "state");
/// assert!(handlers.take(chunk("another")).is_err());
/// # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
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

    /// Has `handler` take the buffers of `label`, in place of the handler before. An error that it
    /// returns ends the transfer.
    pub fn register(
        &mut self,
        label: &str,
        handler: impl FnMut(DeviceBuffer) -> Result<(), BoxError> + Send + 'static,
    ) {
        self.handlers
            .insert(label.into(), Mutex::new(Box::new(handler)));
    }
}

impl DeviceSink for DeviceHandlers {
    fn take(&self, buffer: DeviceBuffer) -> Result<(), BoxError> {
        let handler = self
            .handlers
            .get(&buffer.label)
            .ok_or("nobody here takes this label")?;
        lock(handler)(buffer)
    }
}

/// The message of a panic.
pub(super) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!(
        "its handler panicked: {}",
        text.unwrap_or("without a message")
    )
}
