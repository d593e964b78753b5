//! One account of the memory that peers and files make a process hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How many bytes may be held for what a peer or a file asks for, over everything that shares this
/// budget: windows of decoders, device state, lists. Guest RAM is not counted; it has a limit of
/// its own.
///
/// ```
/// use multifd_core::MemoryBudget;
///
/// let budget = MemoryBudget::new(1 << 20);
/// let held = budget.take("a window", 1 << 19)?;
/// assert!(budget.take("another", 1 << 20).is_err());
/// drop(held);
/// assert!(budget.take("another", 1 << 20).is_ok());
/// # Ok::<(), multifd_core::OverBudget>(())
/// ```
#[derive(Debug, Clone)]
pub struct MemoryBudget {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limit: u64,
    used: AtomicU64,
}

impl Default for MemoryBudget {
    /// 256 MiB.
    fn default() -> Self {
        Self::new(256 << 20)
    }
}

impl MemoryBudget {
    /// A budget of `limit` bytes. Clones share it.
    pub fn new(limit: u64) -> Self {
        Self {
            shared: Arc::new(Shared {
                limit,
                used: AtomicU64::new(0),
            }),
        }
    }

    /// Takes `bytes` for `what`, until the result is dropped.
    ///
    /// # Errors
    /// [`OverBudget`] if they are not left; nothing is taken then.
    pub fn take(&self, what: &'static str, bytes: u64) -> Result<HeldMemory, OverBudget> {
        let mut held = HeldMemory {
            budget: self.clone(),
            bytes: 0,
        };
        held.grow_to(what, bytes)?;
        Ok(held)
    }

    /// Bytes taken at the moment.
    pub fn used(&self) -> u64 {
        self.shared.used.load(Ordering::Relaxed)
    }
}

/// Memory taken from a [`MemoryBudget`]; dropping it gives the memory back.
#[derive(Debug)]
pub struct HeldMemory {
    budget: MemoryBudget,
    bytes: u64,
}

impl HeldMemory {
    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes more, up to `bytes` in all; less is no change.
    ///
    /// # Errors
    /// [`OverBudget`] if they are not left; what was held stays held.
    pub fn grow_to(&mut self, what: &'static str, bytes: u64) -> Result<(), OverBudget> {
        let more = bytes.saturating_sub(self.bytes);
        let Shared { limit, used } = &*self.budget.shared;
        let fits = |used: u64| used.checked_add(more).filter(|total| total <= limit);
        used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
            .map_err(|used| OverBudget {
                what,
                wanted: more,
                used,
                limit: *limit,
            })?;
        self.bytes += more;
        Ok(())
    }
}

impl Drop for HeldMemory {
    fn drop(&mut self) {
        self.budget
            .shared
            .used
            .fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A [`MemoryBudget`] does not have as much left as was asked for.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "{what}: {wanted} bytes more are needed, and {used} of the {limit} bytes for what a peer makes us hold are in use"
)]
#[non_exhaustive]
pub struct OverBudget {
    /// What the memory was for.
    pub what: &'static str,
    /// Bytes asked for.
    pub wanted: u64,
    /// Bytes in use.
    pub used: u64,
    /// The budget in bytes.
    pub limit: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growing_counts_the_difference_and_dropping_gives_back() {
        let budget = MemoryBudget::new(100);
        let mut one = budget.take("one", 40).unwrap();
        one.grow_to("one", 60).unwrap();
        one.grow_to("one", 10).unwrap();
        assert_eq!(budget.used(), 60);
        let error = budget.clone().take("two", 41).unwrap_err();
        assert_eq!((error.wanted, error.used, error.limit), (41, 60, 100));
        assert!(one.grow_to("one", u64::MAX).is_err());
        assert_eq!(budget.used(), 60);
        drop(one);
        assert_eq!(budget.used(), 0);
    }
}
