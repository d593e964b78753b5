//! How far a sync reaches.

/// How far a sync reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SyncScope {
    /// All that was queued is out of our hands.
    Local,
    /// And every channel has sent a SYNC packet, so that the peer can join the round.
    Peer,
}
