//! The time that has passed, also while the machine slept.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// Says how much time has passed since some moment.
#[derive(Clone)]
pub(crate) struct Clock(Arc<dyn Fn() -> Duration + Send + Sync>);

impl Clock {
    pub(crate) fn new(now: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    pub(crate) fn now(&self) -> Duration {
        (self.0)()
    }
}

impl Default for Clock {
    /// The larger of what two clocks say: one stands still while the machine sleeps, the other can
    /// be set back.
    fn default() -> Self {
        let (start, date) = (Instant::now(), SystemTime::now());
        Self::new(move || start.elapsed().max(date.elapsed().unwrap_or_default()))
    }
}
