//! Connections that speak TLS, told apart: what each is can only be seen inside of it, and its peer may wait for the handshake before
//! it says anything anywhere else. So each has its handshake at once, on a thread of its own.

use crate::SocketStream;
use crate::tls::{Session, TlsServer};
use multifd_core::{ChannelError, RecvChannel, Unblock};
use socket2::Socket;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Most handshakes at a time: every channel there can be, and the main connection.
const MAX_HANDSHAKES: usize = 256;

#[derive(Default)]
struct State {
    /// Connections that have done their handshake, each with its first four bytes.
    ready: VecDeque<(SocketStream, [u8; 4])>,
    /// Handshakes under way, and how to end them.
    under_way: HashMap<u64, Box<dyn Unblock>>,
    next: u64,
    /// Why the first of them was dropped.
    refused: Option<ChannelError>,
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
    tls: TlsServer,
    stall: Duration,
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl std::fmt::Debug for Reception {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reception").finish_non_exhaustive()
    }
}

impl Reception {
    pub(crate) fn new(tls: TlsServer, stall: Duration) -> Self {
        Self {
            tls,
            stall,
            shared: Arc::default(),
            threads: Mutex::default(),
        }
    }

    /// Begins the handshake of a connection; one too many is closed.
    pub(crate) fn take(&self, socket: Socket) -> Result<(), ChannelError> {
        let session = Session::server(&self.tls)?;
        let mut stream = SocketStream::with_session(socket, self.stall, Some(session))?;
        let key = {
            let mut state = self.shared.state();
            if state.stopped || state.under_way.len() >= MAX_HANDSHAKES {
                return Ok(());
            }
            state.next += 1;
            let key = state.next;
            state.under_way.insert(key, stream.unblocker());
            key
        };
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new()
            .name("multifd-handshake".into())
            .spawn(move || {
                let mut head = [0; 4];
                let outcome = stream.recv(&mut head);
                let mut state = shared.state();
                state.under_way.remove(&key);
                match outcome {
                    Ok(()) => state.ready.push_back((stream, head)),
                    Err(error) => {
                        state.refused.get_or_insert(error);
                    }
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

    /// A connection that is there, or one that comes within `timeout`.
    pub(crate) fn next(&self, timeout: Duration) -> Option<(SocketStream, [u8; 4])> {
        let none_yet = |state: &mut State| state.ready.is_empty() && !state.stopped;
        let waited = self
            .shared
            .changed
            .wait_timeout_while(self.shared.state(), timeout, none_yet);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.ready.pop_front()
    }

    /// The same, but no longer than there are handshakes under way.
    pub(crate) fn next_under_way(&self) -> Option<(SocketStream, [u8; 4])> {
        let pending =
            |state: &mut State| state.ready.is_empty() && !state.stopped && !state.under_way.is_empty();
        let end = Instant::now() + self.stall;
        let waited = self.shared.changed.wait_timeout_while(
            self.shared.state(),
            end.saturating_duration_since(Instant::now()),
            pending,
        );
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.ready.pop_front()
    }

    /// Why the first connection that proved nothing was dropped.
    pub(crate) fn refused(&self) -> Option<ChannelError> {
        self.shared.state().refused.take()
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

/// Takes connections from a listening socket, all the time, until the socket is shut down.
pub(crate) fn accept_on_thread(listening: Socket, reception: Arc<Reception>) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("multifd-accept".into())
        .spawn(move || {
            loop {
                match listening.accept() {
                    Ok((socket, _)) => {
                        if let Err(error) = reception.take(socket) {
                            reception.shared.state().refused.get_or_insert(error);
                        }
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                        use std::os::fd::AsFd;
                        if crate::sys::poll(&[listening.as_fd()], libc::POLLIN, None).is_err() {
                            break;
                        }
                    }
                    Err(e)
                        if [io::ErrorKind::Interrupted, io::ErrorKind::ConnectionAborted]
                            .contains(&e.kind()) => {}
                    // The listener has been stopped.
                    Err(_) => break,
                }
            }
            reception.stop();
        })
}
