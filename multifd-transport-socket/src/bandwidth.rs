//! How many bytes a second may leave, over all connections together.

use multifd_core::ChannelError;
use multifd_core::sync::{lock, wait_timeout};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// A limit that connections share fairly: each takes its turn, and a turn is worth about ten
/// milliseconds. It can be changed at any time, from any thread; whoever waits goes by the new one
/// at once.
///
/// Bytes are counted as they are handed to the kernel: headers, payload and the main connection's,
/// not those of TLS, TCP and IP.
///
/// ```
/// use multifd_transport_socket::{Bandwidth, SocketOptions, SocketTransport};
///
/// let bandwidth = Bandwidth::limited(100 << 20);
/// let transport = SocketTransport::new("tcp:127.0.0.1:4444".parse()?, SocketOptions::default())
///     .with_bandwidth(bandwidth.clone());
/// bandwidth.set(None); // from now on, as fast as it goes
/// # drop(transport);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Bandwidth {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    turns: Mutex<Turns>,
    changed: Condvar,
}

/// How long a turn is.
const TURN: Duration = Duration::from_millis(10);
/// How much a late sender may catch up.
const LATE: Duration = Duration::from_millis(20);

/// Turns, one after another. The time is given, so that it can be tried without waiting.
#[derive(Debug, Default)]
struct Turns {
    /// Bytes a second.
    rate: Option<NonZeroU64>,
    /// When the next turn begins: those before it are given away.
    next: Option<Instant>,
    /// Counts changes of the rate.
    changes: u64,
}

impl Turns {
    /// A turn for at most `wanted` bytes: how many, and when it begins.
    fn take(&mut self, rate: NonZeroU64, wanted: usize, now: Instant) -> (usize, Instant) {
        let rate = rate.get();
        // Ten milliseconds; small enough to be fair, large enough not to send crumbs.
        let most = (rate / 100).clamp(1 << 10, 256 << 10) as usize;
        let bytes = wanted.min(most);
        let earliest = now.checked_sub(LATE).unwrap_or(now);
        let begin = self.next.map_or(now, |next| next.max(earliest));
        let nanos = (bytes as u64).saturating_mul(1_000_000_000) / rate;
        self.next = begin.checked_add(Duration::from_nanos(nanos));
        (bytes, begin)
    }
}

impl Bandwidth {
    /// A limit of so many bytes a second; 0 is taken for 1.
    pub fn limited(bytes_per_second: u64) -> Self {
        let bandwidth = Self::default();
        bandwidth.set(Some(bytes_per_second));
        bandwidth
    }

    /// Changes the limit: bytes a second, or none at all.
    pub fn set(&self, bytes_per_second: Option<u64>) {
        let rate = bytes_per_second.map(|rate| NonZeroU64::new(rate).unwrap_or(NonZeroU64::MIN));
        let mut turns = self.turns();
        if turns.rate == rate {
            return;
        }
        turns.rate = rate;
        // Turns that were given away under the old limit are taken back, but for the one under way.
        let soon = Instant::now() + TURN;
        turns.next = turns.next.map(|next| next.min(soon));
        turns.changes += 1;
        self.shared.changed.notify_all();
    }

    /// The limit, in bytes a second.
    pub fn get(&self) -> Option<u64> {
        self.turns().rate.map(NonZeroU64::get)
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        lock(&self.shared.turns)
    }

    /// Waits for a turn to send at most `wanted` bytes; returns how many it may be, if there is a
    /// limit.
    pub(crate) fn wait_turn(
        &self,
        wanted: usize,
        stopped: &AtomicBool,
    ) -> Result<Option<usize>, ChannelError> {
        let mut turns = self.turns();
        'changed: loop {
            let Some(rate) = turns.rate else {
                return Ok(None);
            };
            let (bytes, begin) = turns.take(rate, wanted, Instant::now());
            let changes = turns.changes;
            loop {
                if stopped.load(Ordering::Acquire) {
                    return Err(ChannelError::Stopped);
                }
                if turns.changes != changes {
                    continue 'changed;
                }
                let left = begin.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(Some(bytes));
                }
                turns = wait_timeout(&self.shared.changed, turns, left).0;
            }
        }
    }

    /// Wakes whoever waits for a turn, so that those who have been stopped notice.
    pub(crate) fn wake(&self) {
        let _turns = self.turns();
        self.shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(bytes: u64) -> NonZeroU64 {
        NonZeroU64::new(bytes).unwrap()
    }

    /// Channels that take turns for a second, each always wanting `wanted` bytes, and each late by
    /// up to `late`.
    fn second(bytes: u64, channels: usize, wanted: usize, late: Duration) -> Vec<u64> {
        let start = Instant::now();
        let mut turns = Turns::default();
        let mut sent = vec![0; channels];
        let mut now = start;
        let mut left = vec![wanted; channels];
        for turn in 0.. {
            let channel = turn % channels;
            let (granted, begin) = turns.take(rate(bytes), left[channel], now);
            now = now.max(begin) + if turn % 3 == 0 { late } else { Duration::ZERO };
            if now - start >= Duration::from_secs(1) {
                break;
            }
            sent[channel] += granted as u64;
            left[channel] = match left[channel] - granted {
                0 => wanted,
                rest => rest,
            };
        }
        sent
    }

    #[test]
    fn a_second_is_right_within_five_percent_and_fair() {
        for bytes in [1_000_000, 12_500_000, 125_000_000, 5_000_000_000] {
            for channels in [1, 2, 8, 64] {
                for late in [Duration::ZERO, Duration::from_micros(10)] {
                    for wanted in [513 << 10, 100 << 10, 8000] {
                        let sent = second(bytes, channels, wanted, late);
                        let total: u64 = sent.iter().sum();
                        // A rate cannot be kept if each turn is shorter than the delay in taking it.
                        let possible = late.is_zero() || bytes <= 125_000_000;
                        assert!(total <= bytes + bytes / 20, "{bytes}/s: {total}");
                        assert!(
                            !possible || total >= bytes - bytes / 20,
                            "{bytes}/s: {total}"
                        );
                        let (least, most) =
                            (sent.iter().min().unwrap(), sent.iter().max().unwrap());
                        let turn = (bytes / 100).clamp(1 << 10, 256 << 10);
                        assert!(most - least <= 2 * turn, "{bytes}/s: {sent:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn nobody_saves_up_what_was_not_sent() {
        let start = Instant::now();
        let mut turns = Turns::default();
        turns.take(rate(1 << 20), 1000, start);
        let later = start + Duration::from_secs(3600);
        let mut sent = 0;
        loop {
            let (bytes, begin) = turns.take(rate(1 << 20), 1 << 20, later);
            if begin > later {
                break;
            }
            sent += bytes;
        }
        assert!(sent < (1 << 20) / 20, "{sent} bytes at once");
    }

    #[test]
    fn a_new_limit_counts_for_those_who_wait_and_a_stop_ends_it() {
        let bandwidth = Bandwidth::limited(1);
        let stopped = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                // The second turn comes after a quarter of an hour.
                [
                    bandwidth.wait_turn(1024, &stopped),
                    bandwidth.wait_turn(1024, &stopped),
                ]
            });
            bandwidth.set(None);
            for turn in waiting.join().unwrap() {
                assert!(turn.unwrap().is_none_or(|bytes| bytes == 1024));
            }
            bandwidth.set(Some(1));
            let waiting = scope.spawn(|| {
                let first = bandwidth.wait_turn(1024, &stopped);
                first.and_then(|_| bandwidth.wait_turn(1024, &stopped))
            });
            stopped.store(true, Ordering::Release);
            bandwidth.wake();
            assert!(matches!(
                waiting.join().unwrap(),
                Err(ChannelError::Stopped)
            ));
        });
    }
}
