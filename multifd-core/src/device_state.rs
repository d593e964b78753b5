//! Input that is no guest pages: labelled buffers.

use bytes::Bytes;

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

/// Takes device state as it arrives; called from the channels' threads.
pub trait DeviceStateSink: Send + Sync {
    /// Takes one buffer.
    ///
    /// # Errors
    /// A sentence saying why the buffer can not be used; it ends the transfer.
    fn take(&self, buffers: Buffers) -> Result<(), String>;
}
