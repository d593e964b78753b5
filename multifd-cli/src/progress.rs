//! How far it is: a bar on a terminal, now and then a line elsewhere.

use crate::report;
use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use multifd_core::sync::lock;
use multifd_core::{Stats, StatsHandle};
use multifd_qemu::Started;
use multifd_qemu::qmp::SnapshotProgress;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Which round a transfer is in.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rounds {
    /// As QEMU counts them: from 1 on, once its memory is looked over the first time.
    told: Option<Arc<AtomicU64>>,
    /// By what channels have synced.
    counted: bool,
}

impl Rounds {
    /// Somebody asks QEMU, and tells with [`Rounds::set`].
    pub(crate) fn counted_by_qemu() -> Self {
        Self {
            told: Some(Arc::default()),
            counted: false,
        }
    }

    /// Each round ends in a SYNC on every channel.
    pub(crate) fn counted_by_channels() -> Self {
        Self {
            told: None,
            counted: true,
        }
    }

    pub(crate) fn set(&self, round: u64) {
        if let Some(told) = &self.told {
            told.store(round, Ordering::Relaxed);
        }
    }

    /// The round, if there is one to speak of.
    fn now(&self, stats: &Stats) -> Option<u64> {
        let round = match &self.told {
            Some(told) => told.load(Ordering::Relaxed),
            None if self.counted => stats
                .channels
                .iter()
                .map(|channel| channel.syncs)
                .max()
                .unwrap_or(0),
            None => 0,
        };
        (round > 0).then_some(round)
    }
}

/// The watch of a transfer that has not started yet; the watch ends when it is dropped.
#[derive(Clone, Default)]
pub(crate) struct Slot(Arc<Mutex<Option<Watch>>>);

impl Slot {
    /// Ends the watch, whoever else has the slot.
    pub(crate) fn end(&self) {
        lock(&self.0).take();
    }

    /// What starts the watch: to be called when the transfer knows its RAM blocks.
    pub(crate) fn on_start(
        &self,
        what: &str,
        quiet: bool,
        rounds: &Rounds,
    ) -> Box<dyn FnOnce(Started) + Send> {
        let (slot, what, rounds) = (Arc::clone(&self.0), what.to_owned(), rounds.clone());
        Box::new(move |start| {
            let watch = Watch::new(
                &what,
                start.stats.clone(),
                start.ram_bytes(),
                quiet,
                &rounds,
            );
            *lock(&slot) = Some(watch);
        })
    }
}

impl Slot {
    /// The same for a migration that is passed on: how large it is nobody says.
    pub(crate) fn on_passing(
        &self,
        what: &str,
        quiet: bool,
        rounds: &Rounds,
    ) -> Box<dyn FnOnce(StatsHandle, StatsHandle) + Send> {
        let (slot, what, rounds) = (Arc::clone(&self.0), what.to_owned(), rounds.clone());
        Box::new(move |incoming, _| {
            *lock(&slot) = Some(Watch::new(&what, incoming, 0, quiet, &rounds));
        })
    }
}

/// How far a QEMU is that copies its memory by itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct ByQemu {
    done: Arc<AtomicU64>,
    rounds: Arc<AtomicU64>,
}

impl ByQemu {
    /// QEMU has said how far it is.
    pub(crate) fn set(&self, progress: SnapshotProgress) {
        let done = progress.ram_bytes.saturating_sub(progress.remaining_bytes);
        self.done.store(done, Ordering::Relaxed);
        self.rounds.store(progress.rounds, Ordering::Relaxed);
    }

    /// Shows it in a slot, on the way to `total` bytes.
    pub(crate) fn show(&self, slot: &Slot, what: &str, total: u64, quiet: bool) {
        let seen = self.clone();
        let position = move || {
            let round = seen.rounds.load(Ordering::Relaxed);
            (
                seen.done.load(Ordering::Relaxed),
                (round > 0).then_some(round),
            )
        };
        *lock(&slot.0) = Some(Watch::of(what, position, total, quiet));
    }
}

/// Shows a transfer's progress on standard error until it is dropped.
pub(crate) struct Watch {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Watches `stats` on the way to `total` bytes; shows nothing if `quiet`.
    pub(crate) fn new(
        what: &str,
        stats: StatsHandle,
        total: u64,
        quiet: bool,
        rounds: &Rounds,
    ) -> Self {
        let rounds = rounds.clone();
        let position = move || {
            let stats = stats.read();
            let moved = stats.total();
            (moved.guest_bytes + moved.buffer_bytes, rounds.now(&stats))
        };
        Self::of(what, position, total, quiet)
    }

    /// Shows how far a counter of bytes is.
    pub(crate) fn counting(what: &str, done: Arc<AtomicU64>, total: u64, quiet: bool) -> Self {
        let position = move || (done.load(Ordering::Relaxed), None);
        Self::of(what, position, total, quiet)
    }

    /// Watches what `position` says: bytes done, and the round.
    pub(crate) fn of(
        what: &str,
        position: impl Fn() -> (u64, Option<u64>) + Send + 'static,
        total: u64,
        quiet: bool,
    ) -> Self {
        if quiet {
            return Self {
                stop: None,
                thread: None,
            };
        }
        let (stop, stopped) = channel::<()>();
        let terminal = std::io::stderr().is_terminal();
        let bar = bar(what, total, terminal);
        let tick = Duration::from_millis(if terminal { 100 } else { 2000 });
        let what = what.to_owned();
        let thread = std::thread::Builder::new()
            .name("multifd-progress".into())
            .spawn(move || {
                while stopped.recv_timeout(tick) == Err(RecvTimeoutError::Timeout) {
                    let (moved, round) = position();
                    let what = round
                        .map_or_else(|| what.clone(), |round| format!("{what}, round {round}"));
                    bar.set_prefix(what.clone());
                    // A running guest's pages are sent more than once.
                    bar.set_length(total.max(moved));
                    bar.set_position(moved);
                    if !terminal && moved > 0 {
                        line(&what, &bar, moved);
                    }
                }
                bar.finish_and_clear();
            });
        Self {
            stop: Some(stop),
            thread: thread.ok(),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic in there concerns nobody.
            let _ = thread.join();
        }
    }
}

fn bar(what: &str, total: u64, terminal: bool) -> ProgressBar {
    let bar = ProgressBar::new(total);
    bar.set_draw_target(if terminal {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    });
    let template = "{prefix} [{bar:30}] {percent:>3}% {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} ETA {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(what.to_owned());
    bar
}

fn line(what: &str, bar: &ProgressBar, moved: u64) {
    let total = bar.length().unwrap_or(moved).max(1);
    #[allow(clippy::cast_precision_loss, clippy::cast_sign_loss)] // A rate for people to read.
    let rate = HumanBytes((moved as f64 / bar.elapsed().as_secs_f64().max(0.001)) as u64);
    report::note(&format!(
        "{what}: {}% {} of {}, {rate}/s, ETA {}",
        moved * 100 / total,
        HumanBytes(moved),
        HumanBytes(total),
        HumanDuration(bar.eta())
    ));
}

#[cfg(test)]
mod tests {
    use super::*;
    use multifd_core::ChannelStats;

    #[test]
    fn the_round_is_qemus_or_that_of_the_channels() {
        let syncs = |syncs| ChannelStats {
            syncs,
            ..ChannelStats::default()
        };
        let stats = Stats {
            channels: vec![syncs(2), syncs(3)],
            ..Stats::default()
        };
        assert_eq!(Rounds::counted_by_channels().now(&stats), Some(3));
        assert_eq!(Rounds::default().now(&stats), None);
        let told = Rounds::counted_by_qemu();
        assert_eq!(told.now(&stats), None, "it has not said anything yet");
        told.clone().set(7);
        assert_eq!(told.now(&stats), Some(7));
    }
}
