//! In place of sessions, without the feature `tls`: there can be none.

use crate::tls::Received;
use multifd_core::{ChannelError, Iov};
use socket2::Socket;

/// Credentials that do not exist.
#[derive(Debug, Clone)]
pub(crate) enum TlsClient {}

/// A session that does not exist.
#[derive(Debug)]
pub(crate) enum Session {}

impl Session {
    pub(crate) fn client(client: &TlsClient) -> Result<Self, ChannelError> {
        match *client {}
    }

    pub(crate) fn is_handshaking(&self) -> bool {
        match *self {}
    }

    pub(crate) fn handshake(&self, _: &Socket) -> Result<bool, ChannelError> {
        match *self {}
    }

    pub(crate) fn send(&self, _: &Socket, _: &[Iov<'_>]) -> Result<(usize, bool), ChannelError> {
        match *self {}
    }

    pub(crate) fn flush(&self, _: &Socket) -> Result<bool, ChannelError> {
        match *self {}
    }

    pub(crate) fn recv(&self, _: &Socket, _: &mut [u8]) -> Result<Received, ChannelError> {
        match *self {}
    }

    pub(crate) fn drain(&self, _: &Socket) {
        match *self {}
    }

    pub(crate) fn end(&self) {
        match *self {}
    }
}
