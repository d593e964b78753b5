//! The hand-off between the client and the channels' threads: a bounded queue that idle channels
//! pull from.
//!
//! ```text
//!   client --push--> ring ----------------------> pull --> channels
//!   client --push_pinned--> pinned (a channel) --> pull
//!   client --push_raw--> raw --pull_raw--> pool --push_prepared--> ring
//! ```
//!
//! One lock guards all of it. Only pointers to batches move under the lock; no I/O is done and no
//! guest memory touched while it is held.

mod barrier;
mod busy;
mod depth;
mod raw;
mod spares;

pub(super) use depth::Depth;

use crate::sync::{lock, wait, wait_timeout};
use crate::{DeviceBuffer, PageBatch, PayloadBuf, RamBlock, SyncScope, Unblock};
use barrier::Barrier;
use busy::{Busy, PATIENCE};
use raw::RawQueue;
use spares::Spares;
use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// One thing for a channel to do.
pub(super) enum Work {
    /// Prepare and send these pages.
    Pages(PageBatch),
    /// Send these pages, which have been prepared.
    Prepared(PageBatch, PayloadBuf),
    /// Send this buffer.
    Buffer(DeviceBuffer),
    /// End the round on this channel.
    Sync(SyncScope),
}

/// Nothing more is taken: the transfer has failed, was cancelled, or has been finished.
pub(super) struct Stopped;

struct State {
    ring: VecDeque<Work>,
    /// Buffers that must go over one channel, by channel.
    pinned: Vec<VecDeque<DeviceBuffer>>,
    raw: RawQueue,
    spares: Spares,
    barrier: Barrier,
    /// Channels with work of the ring in hand.
    busy: Busy,
    /// Channels that wait for work, and others that wait for space: only these are woken.
    idle: usize,
    waiting: usize,
    closed: bool,
    stopped: bool,
}

/// A channel's position at the queue.
pub(super) struct Seat {
    channel: usize,
    /// Rounds it has ended.
    round: u64,
    /// Whether it has work of the ring in hand.
    is_busy: bool,
}

impl Seat {
    pub(super) fn of(channel: u8) -> Self {
        Self {
            channel: channel.into(),
            round: 0,
            is_busy: false,
        }
    }
}

impl State {
    /// Whether everything has been given to a channel, apart from what is pinned to others than
    /// `channel`.
    fn is_drained(&self, channel: usize) -> bool {
        self.ring.is_empty()
            && self.raw.is_drained()
            && self.pinned.get(channel).is_none_or(VecDeque::is_empty)
    }

    fn is_done(&self) -> bool {
        self.closed || self.stopped
    }
}

pub(super) struct WorkQueue {
    state: Mutex<State>,
    /// There is work, or an end to it: the channels wait for this.
    work: Condvar,
    /// There is space, or a round or a job of the pool has ended: the client waits for this.
    space: Condvar,
    channels: usize,
    depth: usize,
}

/// Buffers pinned to a channel that may wait for it.
const PINNED_DEPTH: usize = 4;

impl WorkQueue {
    /// A queue for `channels` channels, fed by `pool` threads if there are any.
    pub(super) fn new(channels: usize, pool: usize, depth: Depth) -> Self {
        let (depth, raw_depth) = if pool > 0 {
            let busy = channels.max(pool);
            (Depth::Copies.batches(busy), depth.batches(busy))
        } else {
            (depth.batches(channels), 0)
        };
        // Those that wait for the pool and for a channel, those in hand, and the one being filled.
        let batches = raw_depth + depth + pool + channels + 1;
        let state = State {
            ring: VecDeque::with_capacity(depth + pool),
            pinned: (0..channels).map(|_| VecDeque::new()).collect(),
            raw: RawQueue::new(raw_depth),
            spares: Spares::new(batches, depth + channels + pool),
            barrier: Barrier::new(),
            busy: Busy::new(channels),
            idle: 0,
            waiting: 0,
            closed: false,
            stopped: false,
        };
        Self {
            state: Mutex::new(state),
            work: Condvar::new(),
            space: Condvar::new(),
            channels,
            depth,
        }
    }

    /// Gives work to at most `most` channels at once while those take it.
    pub(super) fn limit_busy(&self, most: NonZeroUsize) {
        lock(&self.state).busy.limit(most);
    }

    /// Makes all batches that can be in use at once; `block` is any of those to send.
    pub(super) fn stock(&self, block: &Arc<RamBlock>) {
        lock(&self.state).spares.stock(block);
    }

    /// Hands work to whichever channel is idle next, waiting for space. While a round is being
    /// ended it waits for that, too: this work belongs to the next one.
    pub(super) fn push(&self, work: Work) -> Result<(), Stopped> {
        let mut state = lock(&self.state);
        while !state.is_done() && (state.ring.len() >= self.depth || state.barrier.is_ending()) {
            state = self.wait_space(state);
        }
        if state.is_done() {
            return Err(Stopped);
        }
        state.ring.push_back(work);
        self.wake_one(state);
        Ok(())
    }

    /// Whether the channels, or the pool, have enough to do without the batch being made now.
    pub(super) fn is_ahead(&self) -> bool {
        let state = lock(&self.state);
        let nobody_asks = state.idle == 0 || !state.busy.has_room();
        nobody_asks && state.ring.len() + state.raw.waiting() >= state.busy.at_most()
    }

    /// Hands a buffer to one channel, waiting for space.
    pub(super) fn push_pinned(&self, channel: usize, buffer: DeviceBuffer) -> Result<(), Stopped> {
        let mut state = lock(&self.state);
        loop {
            if state.is_done() {
                return Err(Stopped);
            }
            let free = !state.barrier.is_ending();
            match state.pinned.get_mut(channel) {
                Some(own) if free && own.len() < PINNED_DEPTH => {
                    own.push_back(buffer);
                    break;
                }
                Some(_) => {}
                None => return Err(Stopped),
            }
            state = self.wait_space(state);
        }
        drop(state);
        // Only that one channel can take it.
        self.work.notify_all();
        Ok(())
    }

    /// Hands pages to the pool, waiting for space.
    pub(super) fn push_raw(&self, batch: PageBatch) -> Result<(), Stopped> {
        let mut state = lock(&self.state);
        while !state.is_done() && (state.raw.is_full() || state.barrier.is_ending()) {
            state = self.wait_space(state);
        }
        if state.is_done() {
            return Err(Stopped);
        }
        state.raw.push(batch);
        Ok(())
    }

    /// Whether the pool should start another job, given that it runs `most` at once; the job is
    /// counted.
    pub(super) fn begin_job(&self, most: usize) -> bool {
        let mut state = lock(&self.state);
        !state.stopped
            && state.ring.len() + state.raw.preparing() < self.depth
            && state.raw.begin_job(most)
    }

    /// A job's next batch. `None`, and the job has ended, if nothing waits or there is no space for
    /// the result.
    pub(super) fn pull_raw(&self) -> Option<(PageBatch, PayloadBuf)> {
        let mut state = lock(&self.state);
        if !state.stopped
            && state.ring.len() + state.raw.preparing() < self.depth
            && let Some(batch) = state.raw.take()
        {
            let payload = state.spares.payload();
            // As when channels pull.
            if state.raw.is_low() {
                self.made_space(state);
            }
            return Some((batch, payload));
        }
        state.raw.end_job();
        self.made_space(state);
        None
    }

    /// Takes what a job has prepared.
    pub(super) fn push_prepared(&self, batch: PageBatch, payload: PayloadBuf) {
        let mut state = lock(&self.state);
        state.raw.prepared();
        state.ring.push_back(Work::Prepared(batch, payload));
        self.wake_one(state);
    }

    /// Ends a job that could not do its work; the transfer has been stopped.
    pub(super) fn abandon_job(&self) {
        let mut state = lock(&self.state);
        state.raw.end_job();
        self.made_space(state);
    }

    /// Waits until no job of the pool runs.
    pub(super) fn wait_jobs(&self) {
        let mut state = lock(&self.state);
        while state.raw.has_jobs() {
            state = self.wait_space(state);
        }
    }

    /// The next work for the channel of a seat, which is done with its last; `None` when there will
    /// be no more.
    ///
    /// A channel gets [`Work::Sync`] only when there is nothing else for it, once a round.
    pub(super) fn pull(&self, seat: &mut Seat) -> Option<Work> {
        let channel = seat.channel;
        let mut state = lock(&self.state);
        if std::mem::take(&mut seat.is_busy) {
            state.busy.end();
        }
        loop {
            if state.stopped {
                return None;
            }
            if let Some(own) = state.pinned.get_mut(channel).and_then(VecDeque::pop_front) {
                // Another channel takes over: work of the ring, and watching the busy ones.
                let has_room = state.busy.has_room() && !state.ring.is_empty();
                if state.idle > 0 && (has_room || state.busy.needs_watch()) {
                    self.work.notify_one();
                }
                self.made_space(state);
                return Some(Work::Buffer(own));
            }
            if state.busy.has_room()
                && let Some(work) = state.ring.pop_front()
            {
                seat.is_busy = true;
                state.busy.begin();
                let ending = state.barrier.is_ending() || state.closed;
                if state.idle > 0 && ending && state.is_drained(channel) {
                    // It was the last: those that wait for the round's end may go on.
                    self.work.notify_all();
                } else if state.idle > 0 && state.busy.needs_watch() {
                    self.work.notify_one();
                }
                // Not before there is space for several: waking the client for each costs more.
                if state.ring.len() <= self.depth / 2 {
                    self.made_space(state);
                }
                return Some(work);
            }
            if state.is_drained(channel) {
                if let Some(scope) = state.barrier.take(&mut seat.round) {
                    return Some(Work::Sync(scope));
                }
                if state.closed {
                    return None;
                }
            }
            state = self.wait_work(state);
        }
    }

    /// Waits until there may be work, or until some has waited for a while and nobody took it.
    fn wait_work<'a>(&self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.idle += 1;
        if let Some(begun) = state.busy.watch() {
            let timed_out;
            (state, timed_out) = wait_timeout(&self.work, state, PATIENCE);
            let is_stuck = timed_out && !state.ring.is_empty();
            state.busy.end_watch(begun, is_stuck);
        } else {
            state = wait(&self.work, state);
        }
        state.idle -= 1;
        state
    }

    /// Wakes one channel, if any is idle and may be busy.
    fn wake_one(&self, state: MutexGuard<'_, State>) {
        let wake = state.idle > 0 && state.busy.has_room();
        drop(state);
        if wake {
            self.work.notify_one();
        }
    }

    /// Wakes all that wait for space, or for an end of work: each may have a use for it.
    fn made_space(&self, state: MutexGuard<'_, State>) {
        let waiting = state.waiting > 0;
        drop(state);
        if waiting {
            self.space.notify_all();
        }
    }

    /// Waits until [`WorkQueue::made_space`] says that there may be some.
    fn wait_space<'a>(&self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.waiting += 1;
        state = wait(&self.space, state);
        state.waiting -= 1;
        state
    }

    /// Says that a channel has ended its round.
    pub(super) fn synced(&self) {
        let mut state = lock(&self.state);
        if state.barrier.arrive() {
            self.made_space(state);
        }
    }

    /// Ends a round: returns when every channel has sent all that was queued, and its SYNC.
    pub(super) fn sync(&self, scope: SyncScope) -> Result<(), Stopped> {
        let mut state = lock(&self.state);
        state.barrier.begin(scope, self.channels);
        self.work.notify_all();
        while !state.stopped && state.barrier.is_ending() {
            state = self.wait_space(state);
        }
        if state.stopped { Err(Stopped) } else { Ok(()) }
    }

    /// No more work is taken; queued work is still done.
    pub(super) fn close(&self) {
        lock(&self.state).closed = true;
        self.work.notify_all();
        self.space.notify_all();
    }

    /// Whether the transfer has failed or was cancelled.
    pub(super) fn is_stopped(&self) -> bool {
        lock(&self.state).stopped
    }

    /// A batch to fill: one that has been sent, or a new one while there are few.
    pub(super) fn spare(&self, block: &Arc<RamBlock>) -> PageBatch {
        let spare = self.any_spare();
        match spare {
            Some(mut batch) => {
                batch.restart(block);
                batch
            }
            None => PageBatch::new(Arc::clone(block)),
        }
    }

    /// A batch that has been sent, of any block.
    pub(super) fn any_spare(&self) -> Option<PageBatch> {
        lock(&self.state).spares.batch()
    }

    /// Gives a sent batch back, and the memory of its payload.
    pub(super) fn recycle(&self, batch: PageBatch, payload: Option<PayloadBuf>) {
        lock(&self.state).spares.recycle(batch, payload);
    }
}

impl Unblock for Arc<WorkQueue> {
    fn unblock(&self) {
        lock(&self.state).stopped = true;
        self.work.notify_all();
        self.space.notify_all();
    }
}
