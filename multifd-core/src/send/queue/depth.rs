//! How much may wait in the queue.

use std::num::NonZeroUsize;

/// How many batches may wait for channels.
///
/// | input | batches that wait |
/// | --- | --- |
/// | references to guest memory | 8 a channel, at most 32, at least 2 a channel |
/// | memory of a packet's size in each | 2 a channel |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::send) enum Depth {
    /// Of guest memory, which is there anyway: enough that the client is not woken for each.
    References,
    /// With a packet's memory in each: just enough to keep the channels busy.
    Copies,
    /// As many as the caller says.
    Fixed(NonZeroUsize),
}

impl Depth {
    pub(in crate::send) fn batches(self, channels: usize) -> usize {
        let busy = 2 * channels;
        match self {
            Self::References => busy.max((8 * channels).min(32)),
            Self::Copies => busy,
            Self::Fixed(batches) => batches.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depths_are_those_of_the_table() {
        let depths = |depth: Depth| [1, 2, 4, 16, 64].map(|channels| depth.batches(channels));
        assert_eq!(depths(Depth::References), [8, 16, 32, 32, 128]);
        assert_eq!(depths(Depth::Copies), [2, 4, 8, 32, 128]);
        assert_eq!(depths(Depth::Fixed(NonZeroUsize::MIN)), [1; 5]);
    }
}
