//! Where the receiving channels and the client meet: identities, rounds, the end.

use crate::sync::{lock, wait};
use crate::{Error, Unblock};
use std::sync::{Arc, Condvar, Mutex};

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
    /// A channel has sent a packet, or has ended.
    spoken: bool,
    stopped: bool,
}

/// The meeting place; a channel is known here by its slot, in order of arrival, until it has said
/// its id.
#[derive(Default)]
pub(super) struct Rounds {
    state: Mutex<State>,
    /// A channel has said its id, got to a round's end, or ended: waits of the client. Nobody else
    /// is woken for it: with many channels that would be most of the work.
    moved: Condvar,
    /// The round is over, or everything is: waits of the channels.
    released: Condvar,
}

/// Why a wait has ended without the event it waited for.
pub(super) enum Halt {
    /// The transfer has failed or was cancelled; its error is known elsewhere.
    Stopped,
    /// This is the transfer's error, unless another came first.
    Failed(Error),
}

impl Rounds {
    pub(super) fn add(&self) -> usize {
        let mut state = lock(&self.state);
        state.slots.push(Slot::default());
        state.slots.len() - 1
    }

    pub(super) fn channels(&self) -> usize {
        lock(&self.state).slots.len()
    }

    /// Gives a slot its id, unless another has it.
    pub(super) fn identify(&self, slot: usize, id: u8) -> Result<(), Error> {
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
    pub(super) fn wait_identified(&self) -> Result<(), Halt> {
        let mut state = lock(&self.state);
        while !state.stopped && state.slots.iter().any(|s| s.id.is_none()) {
            state = wait(&self.moved, state);
        }
        if state.stopped {
            return Err(Halt::Stopped);
        }
        let channels = state.slots.len();
        let out = state
            .slots
            .iter()
            .filter_map(|s| s.id)
            .find(|&id| usize::from(id) >= channels);
        out.map_or(Ok(()), |channel| {
            Err(Halt::Failed(Error::ChannelOutOfRange { channel, channels }))
        })
    }

    /// A channel has received SYNC: waits until the client joins the round.
    pub(super) fn arrive(&self, slot: usize, id: u8) -> Result<(), Halt> {
        let mut state = lock(&self.state);
        if state.last_round {
            return Err(Halt::Failed(Error::AfterLastRound { channel: id }));
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
            (true, _) => Err(Halt::Stopped),
            (false, true) => Err(Halt::Failed(Error::AfterLastRound { channel: id })),
            (false, false) => Ok(()),
        }
    }

    /// A channel has ended, where a message could have begun.
    pub(super) fn end(&self, slot: usize) {
        let mut state = lock(&self.state);
        state.spoken = true;
        if let Some(s) = state.slots.get_mut(slot) {
            s.ended = true;
        }
        self.moved.notify_all();
    }

    /// A channel has sent its first packet.
    pub(super) fn speak(&self) {
        lock(&self.state).spoken = true;
        self.moved.notify_all();
    }

    /// Waits until a channel has sent its first packet, or has ended.
    pub(super) fn wait_spoken(&self) -> Result<(), Halt> {
        let mut state = lock(&self.state);
        while !state.stopped && !state.spoken {
            state = wait(&self.moved, state);
        }
        if state.stopped {
            Err(Halt::Stopped)
        } else {
            Ok(())
        }
    }

    /// How many rounds have ended.
    pub(super) fn ended(&self) -> u64 {
        lock(&self.state).round
    }

    /// Joins a round: waits until every channel has received SYNC, then lets all of them go on.
    pub(super) fn join(&self) -> Result<(), Halt> {
        let mut state = lock(&self.state);
        loop {
            if state.stopped {
                return Err(Halt::Stopped);
            }
            if let Some(gone) = state.slots.iter().find(|s| s.ended && !s.at_sync) {
                return Err(Halt::Failed(Error::EndedEarly {
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
        Ok(())
    }

    /// Waits until every channel has received SYNC, or every channel has ended: `false`.
    pub(super) fn hold(&self) -> Result<bool, Halt> {
        let mut state = lock(&self.state);
        loop {
            if state.stopped {
                return Err(Halt::Stopped);
            }
            if state.slots.iter().all(|s| s.ended) {
                return Ok(false);
            }
            if state.slots.iter().all(|s| s.at_sync) {
                return Ok(true);
            }
            let ended = state.slots.iter().find(|s| s.ended);
            if let Some(gone) = ended.filter(|_| state.slots.iter().any(|s| s.at_sync)) {
                return Err(Halt::Failed(Error::EndedEarly {
                    channel: gone.id.unwrap_or(0),
                }));
            }
            state = wait(&self.moved, state);
        }
    }

    /// Ends a round that every channel has reached the end of.
    pub(super) fn release(&self) {
        let mut state = lock(&self.state);
        state.slots.iter_mut().for_each(|s| s.at_sync = false);
        state.round += 1;
        self.released.notify_all();
    }

    /// No further round will be joined: a SYNC is an error from now on.
    pub(super) fn close(&self) {
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
