//! What a process has used: processor time, and memory that is its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Processor seconds of a process so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) cpu: f64,
}

impl Usage {
    /// Of a process that lives.
    pub(crate) fn of(pid: u32) -> Self {
        let ticks = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // The name may hold anything; what follows it does not.
            let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
            let field = |n: usize| fields.get(n)?.parse::<u64>().ok();
            Some(field(11)? + field(12)?)
        };
        let per_second = rustix::param::clock_ticks_per_second();
        #[allow(clippy::cast_precision_loss)] // Seconds for people.
        let cpu = ticks().unwrap_or(0) as f64 / per_second as f64;
        Self { cpu }
    }
}

/// Anonymous memory of a process that is resident, in bytes: guest RAM in a file is not.
pub(crate) fn anonymous(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// Watches how much anonymous memory a process takes.
pub(crate) struct MemoryWatch {
    before: u64,
    most: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl MemoryWatch {
    pub(crate) fn start(pid: u32) -> Self {
        let before = anonymous(pid);
        let (most, stop) = (Arc::new(AtomicU64::new(before)), Arc::new(AtomicBool::new(false)));
        let (seen, ended) = (Arc::clone(&most), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                seen.fetch_max(anonymous(pid), Ordering::Relaxed);
                // How often it is looked at.
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self {
            before,
            most,
            stop,
            thread: Some(thread),
        }
    }

    /// The most it took beyond what it had, in bytes.
    pub(crate) fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.most.load(Ordering::Relaxed).saturating_sub(self.before)
    }
}
