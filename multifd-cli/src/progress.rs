//! How far it is: a bar on a terminal, now and then a line elsewhere.

use crate::report;
use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use multifd_core::StatsHandle;
use multifd_qemu::Started;
use std::io::IsTerminal;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Room for the watch of a transfer that has not started yet; the watch ends when it is dropped.
#[derive(Default)]
pub(crate) struct Slot(Arc<Mutex<Option<Watch>>>);

impl Slot {
    /// What starts the watch: to be called when the transfer knows its RAM blocks.
    pub(crate) fn on_start(&self, what: &str, quiet: bool) -> Box<dyn FnOnce(Started) + Send> {
        let (slot, what) = (Arc::clone(&self.0), what.to_owned());
        Box::new(move |start| {
            let watch = Watch::new(&what, start.stats.clone(), start.ram_bytes(), quiet);
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(watch);
        })
    }
}

/// Shows a transfer's progress on standard error until it is dropped.
pub(crate) struct Watch {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Watches `stats` on the way to `total` bytes; shows nothing if `quiet`.
    pub(crate) fn new(what: &str, stats: StatsHandle, total: u64, quiet: bool) -> Self {
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
                    let moved = stats.read().total();
                    let moved = moved.guest_bytes + moved.buffer_bytes;
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
