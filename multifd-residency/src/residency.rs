//! New memory of a guest: who writes to it, and how it gets its pages.

use crate::shared::Shared;
use crate::writer::Writer;
use multifd_core::{RamMap, ThreadStart};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Memory that is new: all zero now, and written to only through this, up to [`Residency::end`].
///
/// Clones share it. Blocks that are not known to it are left alone.
#[derive(Debug, Clone)]
pub struct Residency {
    pub(crate) shared: Arc<Shared>,
}

impl Residency {
    /// The blocks of `ram`, all of which are new. They may get huge pages.
    pub fn of_new(ram: &RamMap) -> Self {
        Self::on(
            ram,
            std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        )
    }

    pub(crate) fn on(ram: &RamMap, processors: usize) -> Self {
        Self {
            shared: Arc::new(Shared::new(ram, processors)),
        }
    }

    /// Whether memory may get huge pages. Without them, zero pages between others take no memory;
    /// the system may still give some, where it is set to.
    ///
    /// With them, packets that write at least 256 KiB of new memory, and a sixteenth or more of all
    /// the 2 MiB stretches they touch, have these collapsed. Linux does that when asked, whatever a
    /// tmpfs was mounted with and `transparent_hugepage/enabled` says, though not if
    /// `transparent_hugepage/shmem_enabled` says `deny`. The block's address must be a multiple of
    /// 2 MiB.
    #[must_use]
    pub fn huge_pages(self, allow: bool) -> Self {
        self.shared.huge_pages.store(allow, Ordering::Relaxed);
        self
    }

    /// Calls `start` first on every thread that populates memory.
    #[must_use]
    pub fn thread_start(self, start: Option<ThreadStart>) -> Self {
        self.shared.pool.set_thread_start(start);
        self
    }

    /// A thread's way to prepare memory that it fills itself.
    pub fn writer(&self) -> Writer {
        Writer::new(Arc::clone(&self.shared), true)
    }

    /// As [`Residency::writer`], for a thread that writes now and then: it does not keep a helper
    /// from being started, and never shares its work with one.
    pub fn occasional_writer(&self) -> Writer {
        Writer::new(Arc::clone(&self.shared), false)
    }

    /// From now on others may write, as a guest does: no page is known to be zero any more, and no
    /// memory is populated.
    pub fn end(&self) {
        self.shared.over.store(true, Ordering::Relaxed);
    }
}
