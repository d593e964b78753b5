//! The sending engine's side of a pool that prepares packets: jobs that live while there is
//! something to prepare.

use super::prepare::prepare_batch;
use super::queue::WorkQueue;
use crate::event;
use crate::sync::lock;
use crate::{CancelHandle, Error, PageBatch, PayloadBuf, Prepare, Workers, ZeroPages};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

pub(super) struct PoolRun {
    pub(super) queue: Arc<WorkQueue>,
    pub(super) workers: Arc<dyn Workers>,
    /// How many jobs run at once.
    pub(super) threads: usize,
    /// One for each job that may run.
    pub(super) preparers: Mutex<Vec<Box<dyn Prepare>>>,
    pub(super) zero_pages: ZeroPages,
    pub(super) cancel: CancelHandle,
}

impl PoolRun {
    /// Starts jobs, if there is work for more than are running. Called whenever there is more work,
    /// or more room.
    pub(super) fn kick(self: &Arc<Self>) {
        while self.queue.begin_job(self.threads) {
            event!("job of the pool started");
            let job = Job {
                run: Arc::clone(self),
                ended: false,
            };
            self.workers.spawn(Box::new(move || job.work()));
        }
    }

    fn prepare(&self, batch: &mut PageBatch, payload: &mut PayloadBuf) -> Result<(), Error> {
        // There is one for each job; only a panic takes one away.
        let mut preparer = lock(&self.preparers).pop().ok_or(Error::PoolPanicked)?;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            prepare_batch(preparer.as_mut(), &self.zero_pages, batch, payload)
        }));
        outcome.unwrap_or(Err(Error::PoolPanicked))?;
        lock(&self.preparers).push(preparer);
        Ok(())
    }
}

/// A job of the pool. However it ends, even without having been run, the engine knows of it.
struct Job {
    run: Arc<PoolRun>,
    /// The queue has noted the end.
    ended: bool,
}

impl Job {
    fn work(mut self) {
        while let Some((mut batch, mut payload)) = self.run.queue.pull_raw() {
            if let Err(error) = self.run.prepare(&mut batch, &mut payload) {
                self.run.cancel.trip(error);
                return;
            }
            self.run.queue.push_prepared(batch, payload);
        }
        self.ended = true;
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.ended {
            // Tripped already, unless the pool never ran it.
            self.run.cancel.trip(Error::PoolPanicked);
            self.run.queue.abandon_job();
        }
    }
}
