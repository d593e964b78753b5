//! Is the peer still there? One clock for all of a transfer's connections.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// When anything last arrived, on any channel. A channel may be idle for long while others work; a
/// transfer may not.
#[derive(Debug)]
pub struct Progress {
    deadline: Duration,
    started: Instant,
    last_ms: AtomicU64,
}

impl Progress {
    /// A clock that calls the transfer stalled when nothing has arrived for `deadline`.
    pub fn new(deadline: Duration) -> Self {
        Self {
            deadline,
            started: Instant::now(),
            last_ms: AtomicU64::new(0),
        }
    }

    /// Something arrived.
    pub fn touch(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.fetch_max(now, Ordering::Relaxed);
    }

    /// How long nothing has arrived.
    pub fn quiet(&self) -> Duration {
        let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(last)
    }

    /// Whether nothing has arrived for the deadline.
    pub fn is_stalled(&self) -> bool {
        self.quiet() >= self.deadline
    }

    /// The deadline.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }
}
