//! A stretch of time over which it is measured what the link takes.

use std::time::Duration;

/// Below this share of their time spent sending, the channels do not wait for the link.
pub(super) const WAITING: f64 = 0.25;
/// How long a window is, and how many packets it has, at least.
pub(super) const WINDOW: Duration = Duration::from_millis(100);
pub(super) const WINDOW_PACKETS: u64 = 16;
/// The first one is shorter: it costs the most if the first choice is a bad one.
const FIRST_WINDOW: Duration = Duration::from_millis(20);
const FIRST_PACKETS: u64 = 4;
/// And over once each channel has sent so many bytes, on average, without waiting: more than a slow
/// link's buffers take by then, as the kernel has them.
const FIRST_BYTES: u64 = 1 << 20;

#[derive(Debug, Default)]
pub(super) struct Window {
    pub(super) start: Duration,
    packets: u64,
    pub(super) wire_bytes: u64,
    pub(super) guest_bytes: u64,
    sending: Duration,
    channels: Vec<bool>,
    /// The first one of a choice: buffers still empty, or full of what went before. It is not
    /// measured.
    pub(super) is_settling: bool,
    /// Packets were compared in it: it is slower than its choice.
    pub(super) has_comparison: bool,
}

impl Window {
    pub(super) fn new(start: Duration) -> Self {
        Self {
            start,
            ..Self::default()
        }
    }

    pub(super) fn settling(start: Duration) -> Self {
        Self {
            is_settling: true,
            ..Self::new(start)
        }
    }

    /// Forgets what has been sent.
    pub(super) fn restart(&mut self, now: Duration) {
        *self = Self {
            is_settling: self.is_settling,
            has_comparison: self.has_comparison,
            ..Self::new(now)
        };
    }

    /// A packet has been sent by a channel, which took it `sending`.
    pub(super) fn sent(&mut self, channel: u8, wire_bytes: u64, sending: Duration) {
        self.packets += 1;
        self.wire_bytes += wire_bytes;
        self.sending += sending;
        let channel = usize::from(channel);
        if self.channels.len() <= channel {
            self.channels.resize(channel + 1, false);
        }
        if let Some(seen) = self.channels.get_mut(channel) {
            *seen = true;
        }
    }

    /// Whether there is enough of it to go by; less is enough of the first one of a transfer, and
    /// of a choice. `ends_early`: and still less if no link seems to be in the way.
    pub(super) fn is_over(&self, now: Duration, is_first: bool, ends_early: bool) -> bool {
        let (length, packets) = if is_first || self.is_settling {
            (FIRST_WINDOW, FIRST_PACKETS)
        } else {
            (WINDOW, WINDOW_PACKETS)
        };
        // One below the highest that has not sent yet may be stuck.
        let much = FIRST_BYTES * self.channels.len().max(1) as u64;
        let flows =
            is_first && ends_early && self.wire_bytes >= much && self.waiting(now) < WAITING;
        // Zero pages say nothing of the link.
        let has_data = !is_first || self.guest_bytes > 0;
        has_data && self.packets >= packets && (now.saturating_sub(self.start) >= length || flows)
    }

    /// The share of the channels' time that went into sending.
    pub(super) fn waiting(&self, now: Duration) -> f64 {
        let channels = self.channels.iter().filter(|seen| **seen).count().max(1) as f64;
        let lasted = now.saturating_sub(self.start).as_secs_f64().max(1e-6);
        self.sending.as_secs_f64() / (lasted * channels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn sent(channels: u8, packets: u32, sending: Duration) -> Window {
        let mut window = Window::new(Duration::ZERO);
        window.guest_bytes = 1;
        for _ in 0..packets {
            (0..channels).for_each(|channel| window.sent(channel, 256 << 10, sending));
        }
        window
    }

    #[test]
    fn a_first_one_is_over_early_when_much_has_gone_without_waiting() {
        assert!(sent(2, 4, MS / 10).is_over(5 * MS, true, true));
        assert!(
            !sent(2, 4, MS).is_over(5 * MS, true, true),
            "channels have waited"
        );
        assert!(
            !sent(2, 3, MS / 10).is_over(5 * MS, true, true),
            "not much yet"
        );
        assert!(
            !sent(8, 1, MS / 10).is_over(5 * MS, true, true),
            "each channel's buffer takes as much"
        );
        assert!(
            !sent(2, 4, MS / 10).is_over(5 * MS, false, true),
            "not the first"
        );
        assert!(
            !sent(2, 4, MS / 10).is_over(5 * MS, true, false),
            "nothing would come of it"
        );
        assert!(
            sent(2, 4, MS).is_over(20 * MS, true, false),
            "as long as a first one lasts"
        );
        let zeros = Window {
            guest_bytes: 0,
            ..sent(2, 4, MS)
        };
        assert!(!zeros.is_over(20 * MS, true, true), "zero pages alone");
    }
}
