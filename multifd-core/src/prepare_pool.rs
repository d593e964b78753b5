//! The sending engine's side of a pool that prepares packets: jobs that live while there is something to prepare.

use crate::send_worker::prepare_batch;
use crate::shutdown::lock;
use crate::work_queue::WorkQueue;
use crate::{CancelHandle, Error, Prepare, Workers, ZeroPages};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

pub(crate) struct PoolRun {
    pub(crate) queue: Arc<WorkQueue>,
    pub(crate) workers: Arc<dyn Workers>,
    /// One for each job that may run.
    pub(crate) preparers: Mutex<Vec<Box<dyn Prepare>>>,
    pub(crate) zero_pages: ZeroPages,
    pub(crate) cancel: CancelHandle,
}

impl PoolRun {
    /// Starts jobs, if there is work for more than are running. Called whenever there is more work, or more room.
    pub(crate) fn kick(self: &Arc<Self>) {
        while self.queue.begin_job(self.workers.threads()) {
            let run = Arc::clone(self);
            self.workers.spawn(Box::new(move || run.job()));
        }
    }

    fn job(&self) {
        while let Some((mut batch, mut payload)) = self.queue.pull_raw() {
            let Some(mut preparer) = lock(&self.preparers).pop() else {
                // Only a panic takes one away.
                return self.queue.abandon_job();
            };
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                prepare_batch(preparer.as_mut(), self.zero_pages, &mut batch, &mut payload)
            }));
            match outcome.unwrap_or(Err(Error::PoolPanicked)) {
                Ok(()) => {
                    lock(&self.preparers).push(preparer);
                    self.queue.push_prepared(batch, payload);
                }
                Err(error) => {
                    self.cancel.trip(error);
                    return self.queue.abandon_job();
                }
            }
        }
    }
}
