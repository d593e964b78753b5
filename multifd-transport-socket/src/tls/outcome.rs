//! What reading from a session comes to.

/// The outcome of reading from a session.
#[cfg_attr(not(feature = "tls"), allow(dead_code))]
pub(crate) enum Received {
    /// Bytes.
    Bytes(usize),
    /// The peer has ended the session properly.
    End,
    /// The connection has ended, and the session had not.
    Cut,
    /// Nothing yet: wait for the socket.
    Nothing,
}

/// What the end of a connection is whose session has not been ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The end, as the peer may do it so.
    IsEnd,
    /// An error: what was to come may have been cut off.
    IsError,
}
