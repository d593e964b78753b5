//! How sockets are set up.

use std::time::Duration;

/// Deadlines of connections, and how they are set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketOptions {
    /// For a connection to be made, on either side.
    pub connect: Duration,
    /// For anything to move on a connection that someone waits for.
    pub stall: Duration,
    /// Whether a send that should go without a copy may be copied when no more memory can be locked; otherwise that is an
    /// error that says what to raise.
    pub zero_copy_fallback: bool,
}

impl Default for SocketOptions {
    /// Ten seconds to connect, thirty without a byte moving.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            zero_copy_fallback: false,
        }
    }
}
