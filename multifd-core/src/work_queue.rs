//! The hand-off between the client and the channel threads: a bounded queue that idle channels pull from.
//!
//! Only pointers to batches move under its lock; no I/O and no guest memory is touched while it is held.

use crate::shutdown::lock;
use crate::{Buffers, PageBatch, RamBlock, SyncScope, Unblock};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// One thing for a channel to do.
pub(crate) enum Work {
    /// Send these pages.
    Pages(PageBatch),
    /// Send this buffer.
    Buffers(Buffers),
    /// End the round on this channel.
    Sync(SyncScope),
}

/// The queue was stopped: the transfer has failed or was cancelled.
pub(crate) struct Stopped;

struct State {
    ring: VecDeque<Work>,
    spare: Vec<PageBatch>,
    /// Rounds begun, and channels that have not ended the latest.
    round: u64,
    scope: SyncScope,
    to_sync: usize,
    closed: bool,
    stopped: bool,
}

pub(crate) struct WorkQueue {
    state: Mutex<State>,
    /// There is work, or an end to it: waits of the channels.
    work: Condvar,
    /// There is room, or a round has ended: waits of the client.
    room: Condvar,
    channels: usize,
    depth: usize,
}

fn wait<'a>(on: &Condvar, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
    on.wait(state).unwrap_or_else(PoisonError::into_inner)
}

impl WorkQueue {
    /// A queue for `channels` channels; two batches a channel keep each of them busy while the client fills more.
    pub(crate) fn new(channels: usize) -> Self {
        let depth = 2 * channels;
        let state = State {
            ring: VecDeque::with_capacity(depth),
            spare: Vec::with_capacity(depth + channels + 1),
            round: 0,
            scope: SyncScope::Peer,
            to_sync: 0,
            closed: false,
            stopped: false,
        };
        Self {
            state: Mutex::new(state),
            work: Condvar::new(),
            room: Condvar::new(),
            channels,
            depth,
        }
    }

    /// Hands work to whichever channel is idle next, waiting for room.
    pub(crate) fn push(&self, work: Work) -> Result<(), Stopped> {
        let mut state = lock(&self.state);
        while !state.stopped && state.ring.len() >= self.depth {
            state = wait(&self.room, state);
        }
        if state.stopped {
            return Err(Stopped);
        }
        state.ring.push_back(work);
        drop(state);
        self.work.notify_one();
        Ok(())
    }

    /// The next work for a channel that has ended `round` rounds; `None` when there will be no more.
    ///
    /// A channel gets [`Work::Sync`] only when the queue is empty, once a round.
    pub(crate) fn pull(&self, round: &mut u64) -> Option<Work> {
        let mut state = lock(&self.state);
        loop {
            if state.stopped {
                return None;
            }
            if let Some(work) = state.ring.pop_front() {
                drop(state);
                self.room.notify_one();
                return Some(work);
            }
            if *round < state.round {
                *round = state.round;
                return Some(Work::Sync(state.scope));
            }
            if state.closed {
                return None;
            }
            state = wait(&self.work, state);
        }
    }

    /// Says that a channel has sent what ends its round.
    pub(crate) fn synced(&self) {
        let mut state = lock(&self.state);
        state.to_sync = state.to_sync.saturating_sub(1);
        if state.to_sync == 0 {
            drop(state);
            self.room.notify_all();
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
            state = wait(&self.room, state);
        }
        if state.stopped { Err(Stopped) } else { Ok(()) }
    }

    /// No more work will come; what is queued is still done.
    pub(crate) fn close(&self) {
        lock(&self.state).closed = true;
        self.work.notify_all();
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

    /// Gives a sent batch back.
    pub(crate) fn recycle(&self, batch: PageBatch) {
        lock(&self.state).spare.push(batch);
    }
}

impl Unblock for Arc<WorkQueue> {
    fn unblock(&self) {
        lock(&self.state).stopped = true;
        self.work.notify_all();
        self.room.notify_all();
    }
}
