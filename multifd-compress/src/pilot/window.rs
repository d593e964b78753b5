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
/// And over once so many bytes have gone without waiting, which is more than a slow link's buffers
/// take by then, as the kernel has them.
const FIRST_BYTES: u64 = 2 << 20;

#[derive(Debug, Default)]
pub(super) struct Window {
    pub(super) start: Duration,
    packets: u64,
    pub(super) wire_bytes: u64,
    pub(super) guest_bytes: u64,
    sending: Duration,
    channels: Vec<bool>,
    /// The first one of a choice: buffers still empty, or full of what went before. It is not measured.
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

    /// Whether there is enough of it to go by; less is enough of the first one of a transfer, and of a choice.
    pub(super) fn is_over(&self, now: Duration, is_first: bool) -> bool {
        let (length, packets) = if is_first || self.is_settling {
            (FIRST_WINDOW, FIRST_PACKETS)
        } else {
            (WINDOW, WINDOW_PACKETS)
        };
        let flows = is_first && self.wire_bytes >= FIRST_BYTES && self.waiting(now) < WAITING;
        self.packets >= packets && (now.saturating_sub(self.start) >= length || flows)
    }

    /// The share of the channels' time that went into sending.
    pub(super) fn waiting(&self, now: Duration) -> f64 {
        let channels = self.channels.iter().filter(|seen| **seen).count().max(1) as f64;
        let lasted = now.saturating_sub(self.start).as_secs_f64().max(1e-6);
        self.sending.as_secs_f64() / (lasted * channels)
    }
}
