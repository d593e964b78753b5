//! Input that is not guest pages.

use bytes::Bytes;

/// A buffer of device state: bytes the caller already holds, and who takes them.
#[derive(Debug, Clone)]
pub struct DeviceBuffer {
    /// Who takes it at the other end: 1 to 255 bytes without NUL.
    pub label: String,
    /// Which instance of it.
    pub instance: u32,
    /// The bytes, shared and not copied; never empty.
    pub data: Bytes,
}
