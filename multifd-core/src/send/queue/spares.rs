//! Batches and payloads that have been sent, to be used again: steady state allocates nothing.

use crate::{PageBatch, PayloadBuf, RamBlock};
use std::sync::Arc;

pub(super) struct Spares {
    batches: Vec<PageBatch>,
    payloads: Vec<PayloadBuf>,
    /// The most batches that can be in use at once.
    most: usize,
}

impl Spares {
    pub(super) fn new(batches: usize, payloads: usize) -> Self {
        Self {
            batches: Vec::with_capacity(batches),
            payloads: Vec::with_capacity(payloads),
            most: batches,
        }
    }

    /// Makes all batches that can be in use at once, so that none is made later.
    pub(super) fn stock(&mut self, block: &Arc<RamBlock>) {
        self.batches
            .resize_with(self.most, || PageBatch::new(Arc::clone(block)));
    }

    pub(super) fn batch(&mut self) -> Option<PageBatch> {
        self.batches.pop()
    }

    pub(super) fn payload(&mut self) -> PayloadBuf {
        self.payloads.pop().unwrap_or_default()
    }

    pub(super) fn recycle(&mut self, batch: PageBatch, payload: Option<PayloadBuf>) {
        self.batches.push(batch);
        self.payloads.extend(payload);
    }
}
