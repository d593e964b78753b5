//! What has been moved so far, counted a channel.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Counts of one channel, or of all together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ChannelStats {
    /// Bytes on the wire: headers and payloads.
    pub wire_bytes: u64,
    /// Guest bytes of the pages named, zero pages included.
    pub guest_bytes: u64,
    /// Pages whose contents were sent.
    pub normal_pages: u64,
    /// Pages that were only named.
    pub zero_pages: u64,
    /// Bytes of buffers that are no guest pages.
    pub buffer_bytes: u64,
    /// Packets, SYNC ones included.
    pub packets: u64,
    /// SYNC packets.
    pub syncs: u64,
}

impl ChannelStats {
    fn add(&mut self, other: &Self) {
        self.wire_bytes += other.wire_bytes;
        self.guest_bytes += other.guest_bytes;
        self.normal_pages += other.normal_pages;
        self.zero_pages += other.zero_pages;
        self.buffer_bytes += other.buffer_bytes;
        self.packets += other.packets;
        self.syncs += other.syncs;
    }
}

/// A transfer's counts at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stats {
    /// Time since the engine started.
    pub elapsed: Duration,
    /// Each channel's counts, by channel number.
    pub channels: Vec<ChannelStats>,
    /// Pages that went over another connection, such as QEMU's main channel. Its bytes are not
    /// counted here.
    pub main: ChannelStats,
}

impl Stats {
    /// All channels together, and the pages of the main channel.
    pub fn total(&self) -> ChannelStats {
        let mut total = self.main;
        self.channels.iter().for_each(|channel| total.add(channel));
        total
    }

    /// Guest and buffer bytes a second since the start.
    #[allow(clippy::cast_precision_loss)] // A rate for people to read.
    pub fn rate(&self) -> f64 {
        let total = self.total();
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 {
            (total.guest_bytes + total.buffer_bytes) as f64 / seconds
        } else {
            0.0
        }
    }
}

/// Reads a transfer's counts while it runs, from any thread; made by
/// [`Sender::stats_handle`](crate::Sender::stats_handle) and
/// [`Receiver::stats_handle`](crate::Receiver::stats_handle).
#[derive(Debug, Clone)]
pub struct StatsHandle {
    pub(crate) started: Instant,
    pub(crate) counters: Arc<Vec<Counters>>,
    main: Arc<Counters>,
}

impl StatsHandle {
    pub(crate) fn new(channels: usize) -> Self {
        Self {
            started: Instant::now(),
            counters: Arc::new((0..channels).map(|_| Counters::default()).collect()),
            main: Arc::default(),
        }
    }

    /// The counts at this moment, of the first `channels` channels at most.
    pub(crate) fn read_first(&self, channels: usize) -> Stats {
        Stats {
            elapsed: self.started.elapsed(),
            channels: self
                .counters
                .iter()
                .take(channels)
                .map(Counters::read)
                .collect(),
            main: self.main.read(),
        }
    }

    /// The counts at this moment.
    pub fn read(&self) -> Stats {
        let mut stats = self.read_first(self.counters.len());
        // A receiver has room for every channel there may be.
        while stats.channels.last() == Some(&ChannelStats::default()) {
            stats.channels.pop();
        }
        stats
    }

    /// Counts pages of `page_size` bytes that went over another connection than a channel.
    pub fn count_main(&self, normal_pages: u64, zero_pages: u64, page_size: u32) {
        self.main.add(&ChannelStats {
            guest_bytes: (normal_pages + zero_pages) * u64::from(page_size),
            normal_pages,
            zero_pages,
            ..ChannelStats::default()
        });
    }

    pub(crate) fn add(&self, channel: u8, delta: &ChannelStats) {
        if let Some(counters) = self.counters.get(usize::from(channel)) {
            counters.add(delta);
        }
    }

    pub(crate) fn packets(&self, channel: u8) -> u64 {
        self.counters
            .get(usize::from(channel))
            .map_or(0, |counters| counters.read().packets)
    }
}

/// One channel's counters, written by its thread and read by anyone.
#[derive(Debug, Default)]
pub(crate) struct Counters([AtomicU64; 7]);

impl Counters {
    pub(crate) fn add(&self, delta: &ChannelStats) {
        let values = [
            delta.wire_bytes,
            delta.guest_bytes,
            delta.normal_pages,
            delta.zero_pages,
            delta.buffer_bytes,
            delta.packets,
            delta.syncs,
        ];
        for (counter, value) in self.0.iter().zip(values) {
            counter.fetch_add(value, Ordering::Relaxed);
        }
    }

    pub(crate) fn read(&self) -> ChannelStats {
        let [
            wire_bytes,
            guest_bytes,
            normal_pages,
            zero_pages,
            buffer_bytes,
            packets,
            syncs,
        ] = self
            .0
            .each_ref()
            .map(|counter| counter.load(Ordering::Relaxed));
        ChannelStats {
            wire_bytes,
            guest_bytes,
            normal_pages,
            zero_pages,
            buffer_bytes,
            packets,
            syncs,
        }
    }
}
