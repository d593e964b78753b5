//! Whole packets as input: pages that another engine has received.

use super::pool::PoolRun;
use super::queue::{Work, WorkQueue};
use crate::{CancelHandle, Error, PageBatch};
use std::sync::Arc;

/// Queues packets of pages that do not lie in the sender's RAM map, from any thread; made by
/// [`Sender::packets`](crate::Sender::packets).
///
/// Take a batch from [`PacketQueue::spare`], or make one with [`PageBatch::staged`], and fill it
/// ([`PageBatch::restage`]). Queueing waits while the channels have enough to do.
#[derive(Clone)]
pub struct PacketQueue {
    pub(super) queue: Arc<WorkQueue>,
    pub(super) pool: Option<Arc<PoolRun>>,
    pub(super) cancel: CancelHandle,
}

impl std::fmt::Debug for PacketQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PacketQueue").finish_non_exhaustive()
    }
}

impl PacketQueue {
    /// A batch that has been sent, to be used again; `None` while there are few.
    pub fn spare(&self) -> Option<PageBatch> {
        self.queue.any_spare()
    }

    /// Queues a packet.
    ///
    /// # Errors
    /// [`Error::Finished`]; else the transfer's first error.
    pub fn queue(&self, batch: PageBatch) -> Result<(), Error> {
        match &self.pool {
            // Without contents there is nothing to prepare.
            Some(pool) if !batch.normal().is_empty() => {
                self.queue.push_raw(batch).map(|()| pool.kick())
            }
            _ => self.queue.push(Work::Pages(batch)),
        }
        .map_err(|_| self.cancel.error().unwrap_or(Error::Finished))
    }
}
