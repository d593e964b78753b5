//! Counts allocations, and what they hold.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, AtomicU64, Ordering};

/// The system's allocator, counted: make it the `#[global_allocator]` of a test.
#[derive(Debug)]
pub struct CountingAllocator {
    count: AtomicU64,
    in_use: AtomicIsize,
    most: AtomicIsize,
}

impl CountingAllocator {
    /// Nothing counted yet.
    #[allow(clippy::new_without_default)] // For statics.
    pub const fn new() -> Self {
        Self {
            count: AtomicU64::new(0),
            in_use: AtomicIsize::new(0),
            most: AtomicIsize::new(0),
        }
    }

    /// Allocations so far, of all threads.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    /// Bytes that are allocated now.
    pub fn in_use(&self) -> isize {
        self.in_use.load(Ordering::SeqCst)
    }

    /// Runs `work`, and returns what it returns with the most bytes that it had allocated at once.
    /// Other threads count, too.
    pub fn most_during<T>(&self, work: impl FnOnce() -> T) -> (T, isize) {
        let before = self.in_use();
        self.most.store(before, Ordering::SeqCst);
        let outcome = work();
        (outcome, self.most.load(Ordering::SeqCst) - before)
    }

    fn add(&self, bytes: isize) {
        let now = self.in_use.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.most.fetch_max(now, Ordering::Relaxed);
    }
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.add(layout.size().cast_signed());
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        self.add(-layout.size().cast_signed());
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}
