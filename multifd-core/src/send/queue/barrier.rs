//! The end of a round: every channel sends what is queued, then its SYNC.

use crate::SyncScope;

/// Counts the channels that have not ended the latest round.
pub(super) struct Barrier {
    /// Rounds begun.
    round: u64,
    scope: SyncScope,
    /// Channels that have not ended it.
    left: usize,
}

impl Barrier {
    pub(super) fn new() -> Self {
        Self {
            round: 0,
            scope: SyncScope::Peer,
            left: 0,
        }
    }

    /// Begins the end of a round for `channels` channels.
    pub(super) fn begin(&mut self, scope: SyncScope, channels: usize) {
        self.round += 1;
        self.scope = scope;
        self.left = channels;
    }

    /// Whether a round is being ended.
    pub(super) fn is_ending(&self) -> bool {
        self.left > 0
    }

    /// How a channel that has ended `round` rounds is to end another; the count goes up with it.
    pub(super) fn take(&self, round: &mut u64) -> Option<SyncScope> {
        let due = *round < self.round;
        *round = self.round;
        due.then_some(self.scope)
    }

    /// A channel has ended the round; `true` if it was the last.
    pub(super) fn arrive(&mut self) -> bool {
        self.left = self.left.saturating_sub(1);
        self.left == 0
    }
}
