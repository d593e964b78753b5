//! A channel that receives the bytes of a slice.

use multifd_core::{Arrival, ChannelError, RecvChannel, Unblock};

/// Unblocks nothing: for channels that never block.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoUnblock;

impl Unblock for NoUnblock {
    fn unblock(&self) {}
}

/// Receives these bytes, then the end.
#[derive(Debug, Clone, Copy)]
pub struct Bytes<'a>(pub &'a [u8]);

impl RecvChannel for Bytes<'_> {
    fn recv_start(&mut self, buffer: &mut [u8]) -> Result<Arrival, ChannelError> {
        if self.0.is_empty() && !buffer.is_empty() {
            return Ok(Arrival::End);
        }
        let Some((now, rest)) = self.0.split_at_checked(buffer.len()) else {
            return Err(ChannelError::Closed {
                received: self.0.len(),
                expected: buffer.len(),
            });
        };
        buffer.copy_from_slice(now);
        self.0 = rest;
        Ok(Arrival::Message)
    }

    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
        Ok(Box::new(NoUnblock))
    }
}
