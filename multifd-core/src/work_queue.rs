//! The hand-off between the client and the channel threads: a bounded queue that idle channels pull from.
//!
//! Only pointers to batches move under its lock; no I/O and no guest memory is touched while it is held.

use crate::busy::{Busy, PATIENCE};
use crate::shutdown::lock;
use crate::{Buffers, PageBatch, PayloadBuf, RamBlock, SyncScope, Unblock};
use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// One thing for a channel to do.
pub(crate) enum Work {
    /// Prepare and send these pages.
    Pages(PageBatch),
    /// Send these pages, which have been prepared.
    Prepared(PageBatch, PayloadBuf),
    /// Send this buffer.
    Buffers(Buffers),
    /// End the round on this channel.
    Sync(SyncScope),
}

/// Nothing more is taken: the transfer has failed, was cancelled, or has been finished.
pub(crate) struct Stopped;

struct State {
    ring: VecDeque<Work>,
    /// Buffers that must go over one channel, by channel.
    pinned: Vec<VecDeque<Buffers>>,
    /// Pages for the pool that prepares them, how many batches it has in hand, and how many of its jobs run.
    raw: VecDeque<PageBatch>,
    preparing: usize,
    jobs: usize,
    spare: Vec<PageBatch>,
    spare_payloads: Vec<PayloadBuf>,
    /// Rounds begun, and channels that have not ended the latest.
    round: u64,
    scope: SyncScope,
    to_sync: usize,
    closed: bool,
    stopped: bool,
    /// Channels that wait for work, and others that wait for room: nobody is woken where nobody sleeps.
    idle: usize,
    waiting: usize,
    /// Channels with work of the ring in hand.
    busy: Busy,
}

/// A channel's place at the queue.
pub(crate) struct Seat {
    channel: usize,
    /// Rounds it has ended.
    round: u64,
    /// Whether it has work of the ring in hand.
    is_busy: bool,
}

impl Seat {
    pub(crate) fn of(channel: u8) -> Self {
        Self {
            channel: channel.into(),
            round: 0,
            is_busy: false,
        }
    }
}

impl State {
    /// Whether everything has been given to a channel, apart from what is pinned to others than `channel`.
    fn is_drained(&self, channel: usize) -> bool {
        self.ring.is_empty()
            && self.raw.is_empty()
            && self.preparing == 0
            && self.pinned.get(channel).is_none_or(VecDeque::is_empty)
    }

    fn is_done(&self) -> bool {
        self.closed || self.stopped
    }
}

pub(crate) struct WorkQueue {
    state: Mutex<State>,
    /// There is work, or an end to it: waits of the channels.
    work: Condvar,
    /// There is room, a round has ended, or a job of the pool has: waits of the client.
    room: Condvar,
    channels: usize,
    depth: usize,
    /// How much may wait for the pool.
    raw_depth: usize,
    /// The most that can be in use at once.
    batches: usize,
}

/// Buffers pinned to a channel that may wait for it.
const PINNED_DEPTH: usize = 4;

fn wait<'a>(on: &Condvar, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
    on.wait(state).unwrap_or_else(PoisonError::into_inner)
}

/// How many batches may wait for channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Of guest memory that is there in any case: so many that the client is not woken for each.
    References,
    /// With a packet's memory in each: no more than keep the channels busy.
    Copies,
}

impl Depth {
    fn batches(self, channels: usize) -> usize {
        let busy = 2 * channels;
        match self {
            // 32 in all are enough for the client, however many channels there are.
            Self::References => busy.max((8 * channels).min(32)),
            Self::Copies => busy,
        }
    }
}

impl WorkQueue {
    /// A queue for `channels` channels, fed by `pool` threads if there are any; two prepared batches each keep all of them
    /// busy while the client fills more.
    pub(crate) fn new(channels: usize, pool: usize, depth: Depth) -> Self {
        let (depth, raw_depth) = if pool > 0 {
            let busy = channels.max(pool);
            (Depth::Copies.batches(busy), depth.batches(busy))
        } else {
            (depth.batches(channels), 0)
        };
        // Those that wait for the pool, those that wait for a channel; what each is busy with; the one that is filled.
        let batches = raw_depth + depth + pool + channels + 1;
        let state = State {
            ring: VecDeque::with_capacity(depth + pool),
            pinned: (0..channels).map(|_| VecDeque::new()).collect(),
            raw: VecDeque::with_capacity(raw_depth),
            preparing: 0,
            jobs: 0,
            spare: Vec::with_capacity(batches),
            spare_payloads: Vec::with_capacity(depth + channels + pool),
            round: 0,
            scope: SyncScope::Peer,
            to_sync: 0,
            closed: false,
            stopped: false,
            idle: 0,
            waiting: 0,
            busy: Busy::new(channels),
        };
        Self {
            state: Mutex::new(state),
            work: Condvar::new(),
            room: Condvar::new(),
            channels,
            depth,
            raw_depth,
            batches,
        }
    }

    /// Gives work to no more than `most` channels at once while those take what there is.
    pub(crate) fn limit_busy(&self, most: NonZeroUsize) {
        lock(&self.state).busy.limit(most);
    }

    /// Makes all batches that can be in use at once, so that none is made later; `block` is any of those to send.
    pub(crate) fn stock(&self, block: &Arc<RamBlock>) {
        let mut state = lock(&self.state);
        state
            .spare
            .resize_with(self.batches, || PageBatch::new(Arc::clone(block)));
    }

    /// Hands work to whichever channel is idle next, waiting for room. While a round is being ended, that includes its end:
    /// what comes meanwhile belongs to the next one.
    pub(crate) fn push(&self, work: Work) -> Result<(), Stopped> {
        let mut state = lock(&self.state);
        while !state.is_done() && (state.ring.len() >= self.depth || state.to_sync > 0) {
            state = self.wait_room(state);
        }
        if state.is_done() {
            return Err(Stopped);
        }
        state.ring.push_back(work);
        self.wake_one(state);
        Ok(())
    }

    /// Whether the channels, or the pool, have enough to do without the batch being made now.
    pub(crate) fn is_ahead(&self) -> bool {
        let state = lock(&self.state);
        let nobody_asks = state.idle == 0 || !state.busy.has_room();
        nobody_asks && state.ring.len() + state.raw.len() >= state.busy.at_most()
    }

    /// Hands a buffer to one channel, waiting for room.
    pub(crate) fn push_pinned(&self, channel: usize, buffers: Buffers) -> Result<(), Stopped> {
        let mut state = lock(&self.state);
        loop {
            if state.is_done() {
                return Err(Stopped);
            }
            let free = state.to_sync == 0;
            match state.pinned.get_mut(channel) {
                Some(own) if free && own.len() < PINNED_DEPTH => {
                    own.push_back(buffers);
                    break;
                }
                Some(_) => {}
                None => return Err(Stopped),
            }
            state = self.wait_room(state);
        }
        drop(state);
        // Only that one channel has a use for it.
        self.work.notify_all();
        Ok(())
    }

    /// Hands pages to the pool, waiting for room.
    pub(crate) fn push_raw(&self, batch: PageBatch) -> Result<(), Stopped> {
        let mut state = lock(&self.state);
        while !state.is_done() && (state.raw.len() >= self.raw_depth || state.to_sync > 0) {
            state = self.wait_room(state);
        }
        if state.is_done() {
            return Err(Stopped);
        }
        state.raw.push_back(batch);
        Ok(())
    }

    /// Whether the pool is to start another job, given that it runs `most` at once; the job is counted.
    pub(crate) fn begin_job(&self, most: usize) -> bool {
        let mut state = lock(&self.state);
        let begin = !state.stopped
            && !state.raw.is_empty()
            && state.jobs < most
            && state.ring.len() + state.preparing < self.depth;
        state.jobs += usize::from(begin);
        begin
    }

    /// What a job is to prepare next; `None`, and the job is over, if there is nothing, or no room for it.
    pub(crate) fn pull_raw(&self) -> Option<(PageBatch, PayloadBuf)> {
        let mut state = lock(&self.state);
        if !state.stopped
            && state.ring.len() + state.preparing < self.depth
            && let Some(batch) = state.raw.pop_front()
        {
            state.preparing += 1;
            let payload = state.spare_payloads.pop().unwrap_or_default();
            // As when channels pull.
            if state.raw.len() <= self.raw_depth / 2 {
                self.made_room(state);
            }
            return Some((batch, payload));
        }
        state.jobs -= 1;
        self.made_room(state);
        None
    }

    /// Takes what a job has prepared.
    pub(crate) fn push_prepared(&self, batch: PageBatch, payload: PayloadBuf) {
        let mut state = lock(&self.state);
        state.preparing -= 1;
        state.ring.push_back(Work::Prepared(batch, payload));
        self.wake_one(state);
    }

    /// Ends a job that could not do its work; the transfer has been stopped.
    pub(crate) fn abandon_job(&self) {
        let mut state = lock(&self.state);
        state.jobs -= 1;
        self.made_room(state);
    }

    /// Waits until no job of the pool runs.
    pub(crate) fn wait_jobs(&self) {
        let mut state = lock(&self.state);
        while state.jobs > 0 {
            state = self.wait_room(state);
        }
    }

    /// The next work for the channel of a seat, which is done with what it had; `None` when there will be no more.
    ///
    /// A channel gets [`Work::Sync`] only when there is nothing else for it, once a round.
    pub(crate) fn pull(&self, seat: &mut Seat) -> Option<Work> {
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
                // What this channel leaves to do is another's now: work there is room for, and to look after the busy ones.
                let has_room = state.busy.has_room() && !state.ring.is_empty();
                if state.idle > 0 && (has_room || state.busy.needs_watch()) {
                    self.work.notify_one();
                }
                self.made_room(state);
                return Some(Work::Buffers(own));
            }
            if state.busy.has_room()
                && let Some(work) = state.ring.pop_front()
            {
                seat.is_busy = true;
                state.busy.begin();
                if state.idle > 0 && state.is_drained(channel) && (state.to_sync > 0 || state.closed) {
                    // It was the last: those that wait for the round's end may go on.
                    self.work.notify_all();
                } else if state.idle > 0 && state.busy.needs_watch() {
                    self.work.notify_one();
                }
                // Not before there is room for several: who fills the queue is not to be woken for each.
                if state.ring.len() <= self.depth / 2 {
                    self.made_room(state);
                }
                return Some(work);
            }
            if state.is_drained(channel) {
                if seat.round < state.round {
                    seat.round = state.round;
                    return Some(Work::Sync(state.scope));
                }
                if state.closed {
                    return None;
                }
            }
            state = self.wait_work(state);
        }
    }

    /// Waits until there may be work, or until there has been some for a while that nobody took.
    fn wait_work<'a>(&self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.idle += 1;
        if let Some(begun) = state.busy.watch() {
            let waited = self.work.wait_timeout(state, PATIENCE);
            let (guard, waited) = waited.unwrap_or_else(PoisonError::into_inner);
            state = guard;
            let is_stuck = waited.timed_out() && !state.ring.is_empty();
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

    /// Wakes all that wait for room, or for an end of work: each may have a use for it.
    fn made_room(&self, state: MutexGuard<'_, State>) {
        let waiting = state.waiting > 0;
        drop(state);
        if waiting {
            self.room.notify_all();
        }
    }

    /// Waits until [`WorkQueue::made_room`] says that there may be room.
    fn wait_room<'a>(&self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.waiting += 1;
        state = wait(&self.room, state);
        state.waiting -= 1;
        state
    }

    /// Says that a channel has sent what ends its round.
    pub(crate) fn synced(&self) {
        let mut state = lock(&self.state);
        state.to_sync = state.to_sync.saturating_sub(1);
        if state.to_sync == 0 {
            self.made_room(state);
        }
    }

    /// Ends a round: returns when every channel has sent all that was queued, and what ends the round.
    pub(crate) fn sync(&self, scope: SyncScope) -> Result<(), Stopped> {
        let mut state = lock(&self.state);
        state.round += 1;
        state.scope = scope;
        state.to_sync = self.channels;
        self.work.notify_all();
        while !state.stopped && state.to_sync > 0 {
            state = self.wait_room(state);
        }
        if state.stopped { Err(Stopped) } else { Ok(()) }
    }

    /// No more work is taken; what is queued is still done.
    pub(crate) fn close(&self) {
        lock(&self.state).closed = true;
        self.work.notify_all();
        self.room.notify_all();
    }

    /// Whether the transfer has failed or was cancelled.
    pub(crate) fn is_stopped(&self) -> bool {
        lock(&self.state).stopped
    }

    /// A batch to fill: one that has been sent, or a new one while there are few.
    pub(crate) fn spare(&self, block: &Arc<RamBlock>) -> PageBatch {
        let spare = lock(&self.state).spare.pop();
        match spare {
            Some(mut batch) => {
                batch.restart(block);
                batch
            }
            None => PageBatch::new(Arc::clone(block)),
        }
    }

    /// A batch that has been sent, of whatever block.
    pub(crate) fn any_spare(&self) -> Option<PageBatch> {
        lock(&self.state).spare.pop()
    }

    /// Gives a sent batch back, and the room of its payload.
    pub(crate) fn recycle(&self, batch: PageBatch, payload: Option<PayloadBuf>) {
        let mut state = lock(&self.state);
        state.spare.push(batch);
        state.spare_payloads.extend(payload);
    }
}

impl Unblock for Arc<WorkQueue> {
    fn unblock(&self) {
        lock(&self.state).stopped = true;
        self.work.notify_all();
        self.room.notify_all();
    }
}
