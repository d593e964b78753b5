//! Connections that have to prove something, told apart: what each is can only be seen afterwards,
//! and its peer may wait for the handshake before it says anything anywhere else. So each has its
//! handshake at once, on a thread of its own.

use crate::SocketStream;
use crate::door::{Arrived, Door, Look, MAX_WAITING, first_of_the_crowd, greeting};
use crate::lobby::{Patience, too_many};
#[cfg(feature = "tls")]
use crate::tls::Session;
use multifd_core::sync::{lock, wait, wait_timeout};
use multifd_core::{ChannelError, RecvChannel, Unblock};
use socket2::{SockAddr, Socket};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

#[derive(Default)]
struct State {
    /// Connections that have proved what they had to, and said what they are.
    ready: VecDeque<Arrived>,
    /// Those that have not, by age.
    under_way: BTreeMap<u64, Visitor>,
    next: u64,
    stopped: bool,
    /// Why nobody is taken in any more.
    failed: Option<ChannelError>,
}

/// A connection whose handshake is under way.
struct Visitor {
    peer: SockAddr,
    /// Ends it.
    end: Box<dyn Unblock>,
    since: Instant,
    /// It has proved what it had to, and is silent still, as a QEMU's main connection is for a
    /// while: it need not make room for others.
    proved: bool,
}

impl State {
    /// Ends one of the handshakes; `false` if there is none.
    fn make_room(&mut self) -> bool {
        let waiting = self.under_way.iter().filter(|(_, visitor)| !visitor.proved);
        let gone = first_of_the_crowd(waiting.map(|(key, visitor)| (*key, &visitor.peer)));
        let visitor = gone.and_then(|key| self.under_way.remove(&key));
        if let Some(visitor) = &visitor {
            visitor.end.unblock();
        }
        visitor.is_some()
    }

    /// Ends those that began before `then` and have proved nothing.
    fn end_older(&mut self, then: Instant) {
        self.under_way.retain(|_, visitor| {
            let stays = visitor.proved || visitor.since > then;
            if !stays {
                visitor.end.unblock();
            }
            stays
        });
    }
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// Where handshakes are done.
pub(crate) struct Reception {
    door: Arc<Door>,
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Held from looking at the door until whoever came is under way, so that nobody is in between.
    looking: Mutex<()>,
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
            looking: Mutex::default(),
        }
    }

    /// Takes in one connection, if there is one; `false` if not.
    fn look(&self) -> Result<bool, ChannelError> {
        let _looking = lock(&self.looking);
        match self.door.look()? {
            Look::Nobody => return Ok(false),
            Look::Refused => {}
            Look::NoRoom(error) => {
                if !self.shared.state().make_room() {
                    return Err(error);
                }
                // Its thread has to end before there is room.
                std::thread::sleep(Duration::from_millis(1));
            }
            Look::Came(socket, peer) => {
                if let Err(error) = self.admit(socket, peer.clone()) {
                    self.door.refuse(&peer, error.to_string());
                }
            }
        }
        Ok(true)
    }

    /// Begins the handshake of a connection. If there are too many, one of them ends.
    pub(crate) fn admit(&self, socket: Socket, peer: SockAddr) -> Result<(), ChannelError> {
        #[cfg(feature = "tls")]
        let session = self
            .door
            .admission
            .tls
            .as_ref()
            .map(Session::server)
            .transpose()?;
        #[cfg(not(feature = "tls"))]
        let session = None;
        let stream = SocketStream::accepted(socket, self.door.options.stall, session)?;
        let key = {
            let mut state = self.shared.state();
            if state.stopped {
                return Ok(());
            }
            if state.under_way.len() >= MAX_WAITING && !state.make_room() {
                drop(state);
                self.door.refuse(&peer, too_many());
                return Ok(());
            }
            state.next += 1;
            let key = state.next;
            let visitor = Visitor {
                peer: peer.clone(),
                end: stream.unblocker(),
                since: Instant::now(),
                proved: false,
            };
            state.under_way.insert(key, visitor);
            key
        };
        let (shared, door) = (Arc::clone(&self.shared), Arc::clone(&self.door));
        let thread = std::thread::Builder::new()
            .name("multifd-handshake".into())
            .spawn(move || {
                let proved = || {
                    if let Some(visitor) = shared.state().under_way.get_mut(&key) {
                        visitor.proved = true;
                    }
                };
                let outcome = handshake(stream, &door, proved);
                let mut state = shared.state();
                // Who is not on the list any more had to make room for others.
                let in_time = state.under_way.remove(&key).is_some();
                let why = match outcome {
                    // Its connection has been ended.
                    Ok(_) if !in_time => Some(late()),
                    Ok(_) if state.ready.len() >= MAX_WAITING => Some(too_many()),
                    Ok(arrived) => {
                        state.ready.push_back(arrived);
                        None
                    }
                    Err(_) if state.stopped => None,
                    Err(_) if !in_time => Some(late()),
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
                let mut threads = lock(&self.threads);
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
                if !self.look()? {
                    break;
                }
            }
        }
        let mut state = self.shared.state();
        loop {
            if state.stopped {
                return Err(state.failed.clone().unwrap_or(ChannelError::Stopped));
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
                None => wait(&self.shared.changed, state),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        if let Patience::ForThose(_) = patience {
                            state.end_older(until);
                        }
                        return Ok(None);
                    }
                    wait_timeout(&self.shared.changed, state, left).0
                }
            };
        }
    }

    /// Ends the handshakes that have taken longer than `stall`; returns when to look again.
    fn end_overdue(&self, stall: Duration) -> Option<Instant> {
        let now = Instant::now();
        let mut state = self.shared.state();
        if let Some(then) = now.checked_sub(stall) {
            state.end_older(then);
        }
        let unproved = state.under_way.values().find(|visitor| !visitor.proved);
        unproved.map(|oldest| oldest.since + stall)
    }

    fn stop(&self) {
        let mut state = self.shared.state();
        state.stopped = true;
        state
            .under_way
            .values()
            .for_each(|visitor| visitor.end.unblock());
        self.shared.changed.notify_all();
    }
}

impl Drop for Reception {
    fn drop(&mut self) {
        self.stop();
        let threads = std::mem::take(&mut *lock(&self.threads));
        for thread in threads {
            let _ = thread.join();
        }
    }
}

/// Has a connection prove what it must, and say what it is.
fn handshake(
    mut stream: SocketStream,
    door: &Door,
    proved: impl FnOnce(),
) -> Result<Arrived, ChannelError> {
    stream.finish_handshake()?;
    #[cfg(feature = "secret")]
    if let Some(secret) = &door.admission.secret {
        stream.examine(secret)?;
    }
    #[cfg(not(feature = "secret"))]
    let _ = door;
    proved();
    let mut head = [0; 4];
    stream.recv(&mut head)?;
    let kind = greeting(head).map_err(ChannelError::Peer)?;
    Ok((stream.with_head(&head), kind))
}

/// Takes connections in, all the time, until the door is stopped.
pub(crate) fn accept_on_thread(reception: Arc<Reception>) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("multifd-accept".into())
        .spawn(move || {
            let stall = reception.door.options.stall;
            loop {
                let outcome = reception.look().and_then(|came| {
                    if came {
                        return Ok(());
                    }
                    let until = reception.end_overdue(stall);
                    reception.door.wait(std::iter::empty(), until)
                });
                if let Err(error) = outcome {
                    // The door has been stopped, or there is nothing to take in any more.
                    if !matches!(error, ChannelError::Stopped) {
                        reception.shared.state().failed = Some(error);
                    }
                    break;
                }
            }
            reception.stop();
        })
}

/// Why a connection had to make room for others.
fn late() -> String {
    "it had proved nothing in its time, or when there were too many".into()
}
