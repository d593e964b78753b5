//! The method `Auto`: for each packet whatever finishes soonest, as far as link and processors have
//! shown.
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)] // Estimates of speeds.

use crate::packet_bytes::page_bytes;
use crate::pilot::{Measured, Pilot};
use crate::zstd::{FrameEncoder, Zstd};
use multifd_core::{
    IndependentPackets, Method, MethodError, Observer, PageBatch, PayloadBuf, Prepare, SentPacket,
    Unpack,
};
use rustix::time::{ClockId, clock_gettime};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Levels that are tried, from the quickest on.
const LEVELS: [i32; 8] = [1, 3, 5, 7, 9, 12, 16, 19];
/// The same where there must be zstd: the first two cost next to nothing, and gain little.
const LEVELS_FOR_QEMU: [i32; 10] = [-50, -5, 1, 3, 5, 7, 9, 12, 16, 19];

/// Chooses between no compression and zstd's levels while the transfer runs.
///
/// It measures how much the link takes, from how long sending waits for it, and how fast each level
/// is and what it gains, on packets of the transfer itself; from that it tells which choice moves
/// most guest memory a second. About 3 % of the computing goes into comparing.
///
/// One value is for one transfer; a clone is the same one.
#[derive(Debug, Clone)]
pub struct Auto {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// When the first packet was prepared.
    started: OnceLock<Instant>,
    processors: f64,
    pilot: Mutex<Pilot>,
    mixed: bool,
}

/// What a choice has come to in a transfer by [`Auto`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ChoiceReport {
    /// The zstd level, or `None` for no compression.
    pub level: Option<i32>,
    /// Packets that were sent so.
    pub packets: u64,
    /// Their normal pages, in bytes.
    pub guest_bytes: u64,
    /// Their payloads, in bytes.
    pub wire_bytes: u64,
    /// Guest bytes a second that were expected of it, at the end; `None` if it was never compared,
    /// infinite if nothing limits it.
    pub expected: Option<f64>,
}

/// What [`Auto`] has chosen, and why.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct AutoReport {
    /// The choice at the end: a zstd level, or `None` for no compression.
    pub level: Option<i32>,
    /// Bytes a second that the link takes; unknown if nothing ever waited for it.
    pub link: Option<f64>,
    /// Threads that compressed at the same time.
    pub threads: f64,
    /// All choices, those with the least compression first.
    pub choices: Vec<ChoiceReport>,
}

impl Auto {
    /// Chooses between no compression and zstd, packet by packet: for a peer of ours, as a QEMU
    /// takes one method only.
    pub fn mixed() -> Self {
        Self::new(&LEVELS, true)
    }

    /// Chooses zstd's level: QEMU takes that.
    pub fn zstd_level() -> Self {
        Self::new(&LEVELS_FOR_QEMU, false)
    }

    fn new(levels: &[i32], mixed: bool) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let shared = Shared {
            started: OnceLock::new(),
            processors: processors as f64,
            pilot: Mutex::new(Pilot::new(levels, mixed, 0.0)),
            mixed,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// What has been chosen so far, and what it was based on.
    pub fn report(&self) -> AutoReport {
        let pilot = self.shared.pilot();
        let choice = |(index, choice): (usize, &crate::pilot::Choice)| ChoiceReport {
            level: choice.level,
            packets: choice.packets,
            guest_bytes: choice.guest_bytes,
            wire_bytes: choice.wire_bytes,
            expected: pilot.expected(index),
        };
        AutoReport {
            level: pilot
                .choices
                .get(pilot.current)
                .and_then(|choice| choice.level),
            link: pilot.link,
            threads: pilot.parallel,
            choices: pilot.choices.iter().enumerate().map(choice).collect(),
        }
    }
}

impl Shared {
    /// Time since the first packet.
    fn now(&self) -> Duration {
        self.started.get_or_init(Instant::now).elapsed()
    }

    fn pilot(&self) -> MutexGuard<'_, Pilot> {
        self.pilot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Method for Auto {
    fn kind(&self) -> multifd_packet::Compression {
        multifd_packet::Compression::Zstd
    }

    fn preparer(&self) -> Result<Box<dyn Prepare>, MethodError> {
        self.shared.pilot().add_thread(self.shared.processors);
        Ok(Box::new(AutoPrepare {
            shared: Arc::clone(&self.shared),
            encoder: FrameEncoder::new()?,
            pages: Vec::new(),
            results: Vec::new(),
        }))
    }

    fn unpacker(&self) -> Result<Box<dyn Unpack>, MethodError> {
        Zstd::default().unpacker()
    }

    fn observer(&self) -> Option<Arc<dyn Observer>> {
        Some(Arc::clone(&self.shared) as Arc<dyn Observer>)
    }
}

impl IndependentPackets for Auto {}

impl Observer for Shared {
    fn sent(&self, packet: &SentPacket) {
        let now = self.now();
        self.pilot()
            .sent(now, packet.channel, packet.wire_bytes, packet.sending);
    }
}

struct AutoPrepare {
    shared: Arc<Shared>,
    encoder: FrameEncoder,
    pages: Vec<u8>,
    results: Vec<Measured>,
}

impl Prepare for AutoPrepare {
    fn prepare(&mut self, pages: &PageBatch, payload: &mut PayloadBuf) -> Result<(), MethodError> {
        let guest_bytes = pages.normal().len() * pages.block().page_size() as usize;
        let now = self.shared.now();
        let (mut choice, mut level, compare) = {
            let mut pilot = self.shared.pilot();
            let compare = pilot.begin_comparison(now);
            let level = pilot
                .choices
                .get(pilot.current)
                .and_then(|choice| choice.level);
            (pilot.current, level, compare)
        };
        if compare {
            self.compare(pages, payload, guest_bytes)?;
            let pilot = self.shared.pilot();
            choice = pilot.current;
            level = pilot.choices.get(choice).and_then(|choice| choice.level);
        }
        match level {
            Some(level) => {
                let input = page_bytes(pages, &mut self.pages).map_err(codec)?;
                self.encoder.encode(level, input, payload.staged())?;
            }
            None => {
                pages.normal_runs().for_each(|run| payload.push_run(run));
            }
        }
        if self.shared.mixed && level.is_none() {
            payload.set_compression(multifd_packet::Compression::None);
        }
        self.shared
            .pilot()
            .prepared(choice, guest_bytes, payload.len());
        Ok(())
    }
}

impl AutoPrepare {
    /// Compresses the packet at one level after another, as long as more thorough ones may be
    /// better.
    fn compare(
        &mut self,
        pages: &PageBatch,
        payload: &mut PayloadBuf,
        guest_bytes: usize,
    ) -> Result<(), MethodError> {
        self.results.clear();
        let candidates = self.shared.pilot().candidates();
        let input = page_bytes(pages, &mut self.pages).map_err(codec)?;
        for choice in candidates {
            let level = self
                .shared
                .pilot()
                .choices
                .get(choice)
                .and_then(|c| c.level);
            let Some(level) = level else { continue };
            let begun = thread_time();
            self.encoder.encode(level, input, payload.staged())?;
            let last = Measured {
                choice,
                computing: thread_time().saturating_sub(begun),
                wire_bytes: payload.len(),
            };
            payload.clear();
            self.results.push(last);
            if !self.shared.pilot().goes_on(guest_bytes, last) {
                break;
            }
        }
        let now = self.shared.now();
        self.shared
            .pilot()
            .compared(now, guest_bytes, &self.results);
        Ok(())
    }
}

fn codec(reason: String) -> MethodError {
    MethodError::Codec {
        method: multifd_packet::Compression::Zstd,
        reason,
    }
}

/// Processor time this thread has used: what others take away does not count.
fn thread_time() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime)
        .try_into()
        .unwrap_or_default()
}
