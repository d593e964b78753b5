//! The 256-byte, NUL-terminated name fields.

use crate::{Field, PacketError};

/// Bytes of a name field on the wire, its terminating NUL included.
pub const NAME_LEN: usize = 256;

/// The name in a NUL-terminated field. What follows the first NUL is not looked at (QEMU leaves it
/// as it was).
pub(crate) fn parse(bytes: &[u8; NAME_LEN], field: Field) -> Result<&str, PacketError> {
    let end = bytes
        .iter()
        .position(|&b| b == 0)
        .ok_or(PacketError::BadName { field })?;
    if end == 0 {
        return Err(PacketError::BadName { field });
    }
    let name = bytes.get(..end).unwrap_or_default();
    core::str::from_utf8(name).map_err(|_| PacketError::BadName { field })
}

/// `name` as a NUL-terminated field.
pub(crate) fn encode(name: &str, field: Field) -> Result<[u8; NAME_LEN], PacketError> {
    let mut out = [0; NAME_LEN];
    if name.is_empty() || name.len() >= NAME_LEN || name.bytes().any(|b| b == 0) {
        return Err(PacketError::BadName { field });
    }
    for (to, from) in out.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    Ok(out)
}
