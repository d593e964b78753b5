//! Limits how many channels have work at once.

use std::num::NonZeroUsize;
use std::time::Duration;

/// How long work may wait with nobody taking any before one more channel is let in: those that are
/// busy are held up by something else than each other.
pub(super) const PATIENCE: Duration = Duration::from_millis(50);

/// Counts the channels that have work of the ring in hand: anyone's, not what is pinned to one.
#[derive(Debug)]
pub(super) struct Busy {
    now: usize,
    at_most: usize,
    channels: usize,
    /// Work begun so far.
    begun: u64,
    /// An idle channel looks after those that are busy.
    is_watched: bool,
}

impl Busy {
    /// None is busy yet, and all of `channels` may be.
    pub(super) fn new(channels: usize) -> Self {
        Self {
            now: 0,
            at_most: channels,
            channels,
            begun: 0,
            is_watched: false,
        }
    }

    /// Sees to it that no more than `most` are busy.
    pub(super) fn limit(&mut self, most: NonZeroUsize) {
        self.at_most = self.at_most.min(most.get());
    }

    pub(super) fn at_most(&self) -> usize {
        self.at_most
    }

    pub(super) fn has_room(&self) -> bool {
        self.now < self.at_most
    }

    pub(super) fn begin(&mut self) {
        self.now += 1;
        self.begun += 1;
    }

    pub(super) fn end(&mut self) {
        self.now -= 1;
    }

    /// Whether one of the channels that get no work should look after the others.
    pub(super) fn needs_watch(&self) -> bool {
        !self.is_watched && self.now > 0 && self.at_most < self.channels
    }

    /// Begins to look after the busy channels, if somebody should: returns what they have begun so
    /// far.
    pub(super) fn watch(&mut self) -> Option<u64> {
        let begin = self.needs_watch();
        self.is_watched |= begin;
        begin.then_some(self.begun)
    }

    /// Ends that; lets one more in if work waits, and none was begun in the meantime.
    pub(super) fn end_watch(&mut self, begun: u64, work_waits: bool) {
        self.is_watched = false;
        self.at_most += usize::from(work_waits && self.begun == begun);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_may_be_busy_without_a_limit() {
        let mut busy = Busy::new(2);
        busy.begin();
        assert!(busy.has_room());
        busy.begin();
        assert!(!busy.has_room());
        assert_eq!(busy.watch(), None, "there is nobody left to let in");
    }

    #[test]
    fn one_more_is_let_in_when_work_waits_and_none_is_begun() {
        let mut busy = Busy::new(3);
        busy.limit(NonZeroUsize::MIN);
        assert_eq!(busy.at_most(), 1);
        assert_eq!(busy.watch(), None, "nobody is busy");
        busy.begin();
        assert!(!busy.has_room());

        let begun = busy.watch().expect("one is busy, and others are not");
        assert_eq!(busy.watch(), None, "one looks after it already");
        busy.end_watch(begun, false);
        assert!(!busy.has_room(), "no work waits");

        let begun = busy.watch().expect("nobody looks after it any more");
        busy.end();
        busy.begin();
        busy.end_watch(begun, true);
        assert!(!busy.has_room(), "it has gone on");

        let begun = busy.watch().expect("nobody looks after it any more");
        busy.end_watch(begun, true);
        assert!(busy.has_room(), "it is stuck");
    }
}
