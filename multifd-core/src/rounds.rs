//! Where the receiving channels and the client meet: identities, rounds, the end.

use crate::shutdown::lock;
use crate::{Error, Unblock};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default, Clone, Copy)]
struct Slot {
    id: Option<u8>,
    at_sync: bool,
    ended: bool,
}

#[derive(Default)]
struct State {
    slots: Vec<Slot>,
    round: u64,
    last_round: bool,
    stopped: bool,
}

/// The meeting place; a channel is known here by its slot, in order of arrival, until it has said its id.
#[derive(Default)]
pub(crate) struct Rounds {
    state: Mutex<State>,
    /// A channel has said its id, got to a round's end, or ended: waits of the client. Nobody else is woken for it: with many channels
    /// that would be most of the work.
    moved: Condvar,
    /// The round is over, or everything is: waits of the channels.
    released: Condvar,
}

/// The transfer has failed or was cancelled.
pub(crate) struct Stopped;

fn wait<'a>(on: &Condvar, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
    on.wait(state).unwrap_or_else(PoisonError::into_inner)
}

impl Rounds {
    pub(crate) fn add(&self) -> usize {
        let mut state = lock(&self.state);
        state.slots.push(Slot::default());
        state.slots.len() - 1
    }

    pub(crate) fn channels(&self) -> usize {
        lock(&self.state).slots.len()
    }

    /// Gives a slot its id, unless another has it.
    pub(crate) fn identify(&self, slot: usize, id: u8) -> Result<(), Error> {
        let mut state = lock(&self.state);
        if state.slots.iter().any(|s| s.id == Some(id)) {
            return Err(Error::DuplicateChannel { channel: id });
        }
        if let Some(s) = state.slots.get_mut(slot) {
            s.id = Some(id);
        }
        self.moved.notify_all();
        Ok(())
    }

    /// Waits until every channel has said its id; then the ids must be 0..n.
    pub(crate) fn wait_identified(&self) -> Result<Result<(), Error>, Stopped> {
        let mut state = lock(&self.state);
        while !state.stopped && state.slots.iter().any(|s| s.id.is_none()) {
            state = wait(&self.moved, state);
        }
        if state.stopped {
            return Err(Stopped);
        }
        let channels = state.slots.len();
        let out = state
            .slots
            .iter()
            .filter_map(|s| s.id)
            .find(|&id| usize::from(id) >= channels);
        Ok(out.map_or(Ok(()), |channel| {
            Err(Error::ChannelOutOfRange { channel, channels })
        }))
    }

    /// A channel has received SYNC: waits until the client joins the round.
    pub(crate) fn arrive(&self, slot: usize, id: u8) -> Result<Result<(), Error>, Stopped> {
        let mut state = lock(&self.state);
        if state.last_round {
            return Ok(Err(Error::AfterLastRound { channel: id }));
        }
        let round = state.round;
        if let Some(s) = state.slots.get_mut(slot) {
            s.at_sync = true;
        }
        self.moved.notify_all();
        while !state.stopped && state.round == round && !state.last_round {
            state = wait(&self.released, state);
        }
        match (state.stopped, state.round == round) {
            (true, _) => Err(Stopped),
            (false, true) => Ok(Err(Error::AfterLastRound { channel: id })),
            (false, false) => Ok(Ok(())),
        }
    }

    /// A channel has ended, where a message could have begun.
    pub(crate) fn end(&self, slot: usize) {
        if let Some(s) = lock(&self.state).slots.get_mut(slot) {
            s.ended = true;
        }
        self.moved.notify_all();
    }

    /// Joins a round: waits until every channel has received SYNC, then lets all of them go on.
    pub(crate) fn join(&self) -> Result<Result<(), Error>, Stopped> {
        let mut state = lock(&self.state);
        loop {
            if state.stopped {
                return Err(Stopped);
            }
            if let Some(gone) = state.slots.iter().find(|s| s.ended && !s.at_sync) {
                return Ok(Err(Error::EndedEarly {
                    channel: gone.id.unwrap_or(0),
                }));
            }
            if state.slots.iter().all(|s| s.at_sync) {
                break;
            }
            state = wait(&self.moved, state);
        }
        drop(state);
        self.release();
        Ok(Ok(()))
    }

    /// Waits until every channel has received SYNC, or every channel has ended: `false`.
    pub(crate) fn hold(&self) -> Result<Result<bool, Error>, Stopped> {
        let mut state = lock(&self.state);
        loop {
            if state.stopped {
                return Err(Stopped);
            }
            if state.slots.iter().all(|s| s.ended) {
                return Ok(Ok(false));
            }
            if state.slots.iter().all(|s| s.at_sync) {
                return Ok(Ok(true));
            }
            let ended = state.slots.iter().find(|s| s.ended);
            if let Some(gone) = ended.filter(|_| state.slots.iter().any(|s| s.at_sync)) {
                return Ok(Err(Error::EndedEarly {
                    channel: gone.id.unwrap_or(0),
                }));
            }
            state = wait(&self.moved, state);
        }
    }

    /// Ends a round that every channel has reached the end of.
    pub(crate) fn release(&self) {
        let mut state = lock(&self.state);
        state.slots.iter_mut().for_each(|s| s.at_sync = false);
        state.round += 1;
        self.released.notify_all();
    }

    /// No further round will be joined: a SYNC is an error from now on.
    pub(crate) fn close(&self) {
        lock(&self.state).last_round = true;
        self.released.notify_all();
    }
}

impl Unblock for Arc<Rounds> {
    fn unblock(&self) {
        lock(&self.state).stopped = true;
        self.moved.notify_all();
        self.released.notify_all();
    }
}
