//! In place of shared secrets, without the feature `secret`: there can be none.

use multifd_core::ChannelError;

/// A secret that does not exist.
#[derive(Debug, Clone)]
pub(crate) enum Secret {}

/// The first bytes of a connection that shows a secret.
pub(crate) const HELLO: [u8; 4] = *b"MFDK";

impl Secret {
    pub(crate) fn introduce(&self, _: &mut dyn Wire) -> Result<(), ChannelError> {
        match *self {}
    }
}

/// A connection both ways, as far as a secret needs it.
#[allow(dead_code)] // Called by secrets only.
pub(crate) trait Wire {
    fn put(&mut self, bytes: &[u8]) -> Result<(), ChannelError>;
    fn get(&mut self, bytes: &mut [u8]) -> Result<(), ChannelError>;
}
