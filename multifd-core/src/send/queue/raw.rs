//! Batches that wait for the pool which prepares them, and the jobs that do.

use crate::PageBatch;
use std::collections::VecDeque;

pub(super) struct RawQueue {
    waiting: VecDeque<PageBatch>,
    depth: usize,
    /// Batches that jobs have in hand.
    preparing: usize,
    /// Jobs that run.
    jobs: usize,
}

impl RawQueue {
    pub(super) fn new(depth: usize) -> Self {
        Self {
            waiting: VecDeque::with_capacity(depth),
            depth,
            preparing: 0,
            jobs: 0,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= self.depth
    }

    /// Whether so little waits that the client should be woken.
    pub(super) fn is_low(&self) -> bool {
        self.waiting.len() <= self.depth / 2
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn preparing(&self) -> usize {
        self.preparing
    }

    /// Whether nothing waits and nothing is being prepared.
    pub(super) fn is_drained(&self) -> bool {
        self.waiting.is_empty() && self.preparing == 0
    }

    pub(super) fn push(&mut self, batch: PageBatch) {
        self.waiting.push_back(batch);
    }

    /// Counts another job, if there is work for one and fewer than `most` run.
    pub(super) fn begin_job(&mut self, most: usize) -> bool {
        let begin = !self.waiting.is_empty() && self.jobs < most;
        self.jobs += usize::from(begin);
        begin
    }

    pub(super) fn end_job(&mut self) {
        self.jobs -= 1;
    }

    pub(super) fn has_jobs(&self) -> bool {
        self.jobs > 0
    }

    /// Gives a job its next batch.
    pub(super) fn take(&mut self) -> Option<PageBatch> {
        let batch = self.waiting.pop_front()?;
        self.preparing += 1;
        Some(batch)
    }

    /// A job has prepared its batch.
    pub(super) fn prepared(&mut self) {
        self.preparing -= 1;
    }
}
