//! Connections that have to prove something, told apart: what each is can only be seen afterwards, and its peer may wait for the
//! handshake before it says anything anywhere else. So each has its handshake at once, on a thread of its own.

use crate::SocketStream;
use crate::door::{Arrived, Door, Kind, Look, MAX_WAITING};
use crate::lobby::{Patience, too_many};
use crate::tls::Session;
use multifd_core::{ChannelError, RecvChannel, Unblock};
use socket2::{SockAddr, Socket};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

#[derive(Default)]
struct State {
    /// Connections that have proved what they had to.
    ready: VecDeque<Arrived>,
    /// Handshakes under way, by age, and how to end them.
    under_way: BTreeMap<u64, Box<dyn Unblock>>,
    next: u64,
    stopped: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where handshakes are done.
pub(crate) struct Reception {
    door: Arc<Door>,
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl std::fmt::Debug for Reception {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reception").finish_non_exhaustive()
    }
}

impl Reception {
    pub(crate) fn new(door: Arc<Door>) -> Self {
        Self {
            door,
            shared: Arc::default(),
            threads: Mutex::default(),
        }
    }

    /// Begins the handshake of a connection. If there are too many, the oldest of them ends.
    pub(crate) fn admit(&self, socket: Socket, peer: SockAddr) -> Result<(), ChannelError> {
        let session = self
            .door
            .admission
            .tls
            .as_ref()
            .map(Session::server)
            .transpose()?;
        let stream = SocketStream::accepted(socket, self.door.options.stall, session)?;
        let key = {
            let mut state = self.shared.state();
            if state.stopped {
                return Ok(());
            }
            if state.under_way.len() >= MAX_WAITING
                && let Some((_, oldest)) = state.under_way.pop_first()
            {
                oldest.unblock();
            }
            state.next += 1;
            let key = state.next;
            state.under_way.insert(key, stream.unblocker());
            key
        };
        let (shared, door) = (Arc::clone(&self.shared), Arc::clone(&self.door));
        let thread = std::thread::Builder::new()
            .name("multifd-handshake".into())
            .spawn(move || {
                let outcome = handshake(stream, &door);
                let mut state = shared.state();
                // Who is not on the list any more had to make room for others.
                let in_time = state.under_way.remove(&key).is_some();
                let why = match outcome {
                    Ok(_) if state.ready.len() >= MAX_WAITING => Some(too_many()),
                    Ok(arrived) => {
                        state.ready.push_back(arrived);
                        None
                    }
                    Err(_) if state.stopped => None,
                    Err(_) if !in_time => Some(format!("it proved nothing while {MAX_WAITING} others came")),
                    Err(error) => Some(error.to_string()),
                };
                drop(state);
                if let Some(why) = why {
                    door.refuse(&peer, why);
                }
                shared.changed.notify_all();
            });
        match thread {
            Ok(thread) => {
                let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
                threads.retain(|thread| !thread.is_finished());
                threads.push(thread);
                Ok(())
            }
            Err(error) => {
                self.shared.state().under_way.remove(&key);
                Err(error.into())
            }
        }
    }

    /// The next connection that has proved what it had to.
    pub(crate) fn next(&self, patience: Patience) -> Result<Option<Arrived>, ChannelError> {
        if let Patience::ForThose(_) = patience {
            // Those that are there count, though the accepting thread may not have got to them.
            for _ in 0..MAX_WAITING {
                match self.door.look()? {
                    Look::Came(socket, peer) => self.admit(socket, peer)?,
                    Look::Refused => {}
                    Look::Nobody => break,
                }
            }
        }
        let mut state = self.shared.state();
        loop {
            if state.stopped {
                return Err(ChannelError::Stopped);
            }
            if let Some(arrived) = state.ready.pop_front() {
                return Ok(Some(arrived));
            }
            let until = match patience {
                Patience::ForOne(until) => until,
                Patience::ForThose(_) if state.under_way.is_empty() => return Ok(None),
                Patience::ForThose(until) => Some(until),
            };
            state = match until {
                None => self
                    .shared
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(None);
                    }
                    let waited = self.shared.changed.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn stop(&self) {
        let mut state = self.shared.state();
        state.stopped = true;
        state.under_way.values().for_each(|handle| handle.unblock());
        self.shared.changed.notify_all();
    }
}

impl Drop for Reception {
    fn drop(&mut self) {
        self.stop();
        let threads = self.threads.get_mut().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Has a connection prove what it must, and say what it is.
fn handshake(mut stream: SocketStream, door: &Door) -> Result<Arrived, ChannelError> {
    if let Some(secret) = &door.admission.secret {
        stream.examine(secret)?;
    }
    let mut head = [0; 4];
    stream.recv(&mut head)?;
    let kind = Kind::of(head).map_err(ChannelError::Peer)?;
    Ok((stream.with_head(&head), kind))
}

/// Takes connections in, all the time, until the door is stopped.
pub(crate) fn accept_on_thread(reception: Arc<Reception>) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("multifd-accept".into())
        .spawn(move || {
            let door = Arc::clone(&reception.door);
            loop {
                let outcome = match door.look() {
                    Ok(Look::Came(socket, peer)) => {
                        if let Err(error) = reception.admit(socket, peer.clone()) {
                            door.refuse(&peer, error.to_string());
                        }
                        Ok(())
                    }
                    Ok(Look::Refused) => Ok(()),
                    Ok(Look::Nobody) => door.wait(std::iter::empty(), None),
                    Err(error) => Err(error),
                };
                // The door has been stopped, or there is nothing to take in any more.
                if outcome.is_err() {
                    break;
                }
            }
            reception.stop();
        })
}
