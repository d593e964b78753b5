//! Which packets have come, by the numbers that a sender counts over all its channels.
//!
//! QEMU before 9.0 gives a packet with pages that is still waiting when a round ends the number of
//! that end, and sends it as the SYNC: its own number is never sent. An empty packet with the same
//! number may follow on the channel. Seen from a 7.2.

use crate::sync::lock;
use std::collections::VecDeque;
use std::sync::Mutex;

/// How many numbers beyond the first missing one a packet may have: 32 TiB of guest memory in
/// packets of 512 KiB. Remembering them takes 8 MiB at most.
const MAX_AHEAD: u64 = 1 << 26;

/// The numbers seen so far. They must turn out to be exactly 0..n, each once, in any order.
#[derive(Debug, Default)]
pub(super) struct PacketNumbers(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    /// Every number below `64 * complete` has come.
    complete: u64,
    /// A bit for each number from there on.
    words: VecDeque<u64>,
    /// How many have come, and how many are known to be no packet's.
    found: u64,
    /// One more than the highest that has come.
    end: u64,
}

/// Why a packet's number cannot be right.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    /// It came before.
    Again,
    /// It is further from the first missing one than any sender gets.
    TooFar { missing: u64 },
}

impl PacketNumbers {
    /// Takes note of a packet. Allocates only while the span between the slowest and the fastest
    /// channel grows.
    pub(super) fn insert(&self, number: u64) -> Result<(), Wrong> {
        let mut seen = lock(&self.0);
        let (word, bit) = (number / 64, 1u64 << (number % 64));
        let Some(ahead) = word.checked_sub(seen.complete) else {
            return Err(Wrong::Again);
        };
        if ahead > MAX_AHEAD / 64 {
            return Err(Wrong::TooFar {
                missing: seen.first_missing(),
            });
        }
        let at = usize::try_from(ahead).unwrap_or(usize::MAX);
        while seen.words.len() <= at {
            seen.words.push_back(0);
        }
        if let Some(word) = seen.words.get_mut(at) {
            if *word & bit != 0 {
                return Err(Wrong::Again);
            }
            *word |= bit;
        }
        while seen.words.front() == Some(&u64::MAX) {
            seen.words.pop_front();
            seen.complete += 1;
        }
        seen.found += 1;
        seen.end = seen.end.max(number.saturating_add(1));
        Ok(())
    }

    /// A SYNC that carries pages has come, and its number: the one that the pages had is nobody's.
    pub(super) fn one_is_nobodys(&self) {
        lock(&self.0).found += 1;
    }

    /// How many packets have come, and how many there were by their numbers: more if any is
    /// missing.
    pub(super) fn counts(&self) -> (u64, u64) {
        let seen = lock(&self.0);
        (seen.found, seen.end)
    }
}

impl Seen {
    fn first_missing(&self) -> u64 {
        let first = self.words.front().map_or(0, |word| word.trailing_ones());
        self.complete * 64 + u64::from(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_gap_and_a_copy_are_noticed() {
        let numbers = PacketNumbers::default();
        for number in [2, 0, 3] {
            numbers.insert(number).unwrap();
        }
        assert_eq!(numbers.counts(), (3, 4));
        assert_eq!(numbers.insert(2), Err(Wrong::Again));
        numbers.insert(1).unwrap();
        assert_eq!(numbers.counts(), (4, 4));
        for number in 4..200 {
            numbers.insert(number).unwrap();
        }
        assert_eq!(numbers.counts(), (200, 200));
        assert_eq!(numbers.insert(0), Err(Wrong::Again));
        assert_eq!(
            numbers.insert(u64::MAX),
            Err(Wrong::TooFar { missing: 200 })
        );
        assert!(numbers.0.lock().unwrap().words.capacity() < 64);
    }

    #[test]
    fn a_number_that_is_nobodys_is_not_missed() {
        let numbers = PacketNumbers::default();
        for number in [0, 2, 3] {
            numbers.insert(number).unwrap();
        }
        assert_eq!(numbers.counts(), (3, 4));
        numbers.one_is_nobodys();
        assert_eq!(numbers.counts(), (4, 4));
    }

    proptest! {
        #[test]
        fn any_order_is_complete_and_any_loss_is_not(order in Just((0..300u64).collect::<Vec<_>>()).prop_shuffle(), lost in 0..299usize) {
            let (all, some) = (PacketNumbers::default(), PacketNumbers::default());
            for (at, &number) in order.iter().enumerate() {
                all.insert(number).unwrap();
                if at != lost {
                    some.insert(number).unwrap();
                }
            }
            prop_assert_eq!(all.counts(), (300, 300));
            let (found, end) = some.counts();
            // The highest number of all may be the one that is lost: only its sender knows of it.
            prop_assert!(found < end || order[lost] == 299);
            prop_assert_eq!(all.insert(order[lost]), Err(Wrong::Again));
        }
    }
}
