//! What the two halves of a connection share: its socket, its deadline, and what lies between them
//! and the bytes.

use crate::bandwidth::Bandwidth;
use crate::options::is_tcp;
use crate::secret::{Secret, Wire};
use crate::sys;
use crate::tls::{Cut, Session};
use multifd_core::sync::lock;
use multifd_core::{Arrival, ChannelError, Iov, Progress, Unblock};
use socket2::Socket;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Most IOVs of one call where a list has to be cut anyway.
const WINDOW: usize = 64;

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) socket: Socket,
    pub(crate) stopped: AtomicBool,
    pub(crate) deadline: Duration,
    /// We have ended our side.
    pub(crate) ended: AtomicBool,
    /// Closing the connection is to look like a failure to the peer.
    fails_on_close: AtomicBool,
    /// The stray bytes that say so have been sent.
    is_spoilt: AtomicBool,
    /// A message is being sent: cut off now, it is not whole.
    in_message: AtomicBool,
    pub(crate) tls: Option<Session>,
    pub(crate) bandwidth: Option<Bandwidth>,
    /// The secret to be shown before anything else.
    pub(crate) secret: Option<Mutex<Introduction>>,
}

/// How far the showing of a secret has got.
#[derive(Debug)]
pub(crate) enum Introduction {
    Pending(Secret),
    Shown,
    /// Whoever is there has proved nothing, and never gets another chance on this connection.
    Failed(ChannelError),
}

/// What one system call came to.
pub(crate) enum Step {
    Moved(usize),
    Again,
    Idle,
}

/// Makes a connection's blocked and later calls fail.
pub(crate) struct Handle {
    pub(crate) connection: Arc<Connection>,
    pub(crate) how: Shutdown,
}

impl Unblock for Handle {
    fn unblock(&self) {
        self.connection.break_off(self.how);
    }
}

/// What no stream of a migration can go on with: it is not a section of the main channel, nor the
/// start of a packet, nor the header of a TLS record, which has five bytes. In the other direction
/// it is what the source does not expect at all.
const STRAY: [u8; 5] = [0xff; 5];

/// How long the last holder of a connection waits to send the stray bytes.
const LAST_WORD: Duration = Duration::from_secs(1);

impl Drop for Connection {
    /// Closes the socket. If that is to look like a failure, TCP sends a reset, which the linger
    /// option has asked for, even if the process is killed; other families get stray bytes.
    fn drop(&mut self) {
        let fails =
            self.fails_on_close.load(Ordering::SeqCst) && !self.ended.load(Ordering::SeqCst);
        if fails && !is_tcp(&self.socket).unwrap_or(false) {
            // A peer that takes nothing for so long has given up, or will.
            let _ = self.socket.set_write_timeout(Some(LAST_WORD));
            self.spoil(0);
        }
    }
}

impl Connection {
    /// A connection over a connected socket. No wait on it lasts longer than `deadline`.
    pub(crate) fn new(socket: Socket, deadline: Duration) -> io::Result<Self> {
        socket.set_nonblocking(false)?;
        socket.set_write_timeout(Some(deadline))?;
        let this = Self {
            socket,
            stopped: AtomicBool::new(false),
            deadline,
            ended: AtomicBool::new(false),
            fails_on_close: AtomicBool::new(false),
            is_spoilt: AtomicBool::new(false),
            in_message: AtomicBool::new(false),
            tls: None,
            bandwidth: None,
            secret: None,
        };
        this.follow_clock(deadline)?;
        Ok(this)
    }

    /// Lets reads return in time for a clock with this deadline: one waits for all it is to get, and
    /// what has come of it is to be noticed well before.
    pub(crate) fn follow_clock(&self, deadline: Duration) -> io::Result<()> {
        let tick = self.deadline.min(deadline) / 4;
        self.socket
            .set_read_timeout(Some(tick.max(Duration::from_millis(1))))
    }

    /// Whether closing the connection, by whatever way, is to look like a failure to the peer.
    pub(crate) fn fail_on_close(&self, fail: bool) -> io::Result<()> {
        self.fails_on_close.store(fail, Ordering::SeqCst);
        if is_tcp(&self.socket)? {
            self.socket.set_linger(fail.then_some(Duration::ZERO))?;
        }
        Ok(())
    }

    /// Sends the stray bytes, unless that was done; `false` if the socket has no space for them.
    /// Under TLS they are sent past the session: that its own end is missing does not say enough,
    /// as QEMU leaves it out, too.
    fn spoil(&self, flags: libc::c_int) -> bool {
        if self.is_spoilt.load(Ordering::SeqCst) {
            return true;
        }
        let full = matches!(
            sys::send(&self.socket, &[Iov::from(&STRAY[..])], flags),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock
        );
        self.is_spoilt.store(!full, Ordering::SeqCst);
        !full
    }

    /// Makes blocked and later calls fail. If closing is to be a failure, so that the peer does not
    /// take this for an orderly end.
    fn break_off(&self, how: Shutdown) {
        self.stopped.store(true, Ordering::SeqCst);
        let fails =
            self.fails_on_close.load(Ordering::SeqCst) && !self.ended.load(Ordering::SeqCst);
        let keep_writing = fails
            && how == Shutdown::Both
            && !self.spoil(libc::MSG_DONTWAIT)
            // Without space for them: a message that is cut off says enough; otherwise the end must
            // not come before them.
            && !self.in_message.load(Ordering::SeqCst);
        let how = if keep_writing { Shutdown::Read } else { how };
        // A socket that is not connected any more has nothing to wake.
        let _ = self.socket.shutdown(how);
        if let Some(bandwidth) = &self.bandwidth {
            bandwidth.wake();
        }
    }

    /// Makes the peer see a failure now.
    pub(crate) fn fail(&self) {
        if !is_tcp(&self.socket).unwrap_or(false) {
            self.spoil(libc::MSG_DONTWAIT);
        }
    }

    pub(crate) fn stalled(&self) -> ChannelError {
        ChannelError::Stalled {
            deadline: self.deadline,
        }
    }

    /// Sorts out what a system call returned: what to do again, what is a stall, what is an error.
    pub(crate) fn step(
        &self,
        progress: Option<&Progress>,
        events: libc::c_short,
        since: Instant,
        result: io::Result<usize>,
    ) -> Result<Step, ChannelError> {
        if self.stopped.load(Ordering::Acquire) {
            return Err(ChannelError::Stopped);
        }
        let error = match result {
            Ok(moved) => {
                if let Some(progress) = progress {
                    progress.touch();
                }
                return Ok(Step::Moved(moved));
            }
            Err(error) => error,
        };
        match error.kind() {
            io::ErrorKind::Interrupted => Ok(Step::Again),
            io::ErrorKind::WouldBlock => {
                // Nobody waits for bytes longer than the transfer's clock allows.
                let deadline = progress
                    .filter(|_| events == libc::POLLIN)
                    .map_or(self.deadline, |clock| self.deadline.min(clock.deadline()));
                // The socket's own timeout has passed, or somebody made it non-blocking.
                let left = deadline.saturating_sub(since.elapsed());
                let ready = sys::poll(&[self.socket.as_fd()], events, Some(left))?;
                // A signal can end `poll` early.
                let again = ready.contains(&true) || since.elapsed() < deadline;
                Ok(if again { Step::Again } else { Step::Idle })
            }
            _ => Err(error.into()),
        }
    }

    /// Says that nothing more will be written.
    pub(crate) fn end_writing(&self) -> io::Result<()> {
        // Noted first: a peer that has ended its side, too, is gone as soon as it knows.
        if self.ended.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        self.socket.shutdown(Shutdown::Write)
    }

    /// What the end of the bytes is: an orderly end, or a reset that another thread has been told
    /// of already. The kernel tells of it once, and lets the connection look ended after that.
    /// While our side is open, a connection that was ended in order still has a peer; once we have
    /// ended it, no writer is left that could have been told.
    pub(crate) fn check_end(&self) -> Result<(), ChannelError> {
        let without_peer =
            is_tcp(&self.socket).unwrap_or(false) && self.socket.peer_addr().is_err();
        // Looked at last, as it is noted first.
        if without_peer && !self.ended.load(Ordering::SeqCst) {
            self.check()?;
            return Err(io::Error::from(io::ErrorKind::ConnectionReset).into());
        }
        Ok(())
    }

    /// Shows that we know the secret, if that is asked for and has not been done.
    pub(crate) fn introduce(&self) -> Result<(), ChannelError> {
        let Some(secret) = &self.secret else {
            return Ok(());
        };
        let mut state = lock(secret);
        let outcome = match &*state {
            Introduction::Shown => return Ok(()),
            Introduction::Failed(error) => return Err(error.clone()),
            Introduction::Pending(secret) => secret.introduce(&mut &*self),
        };
        *state = match &outcome {
            Ok(()) => Introduction::Shown,
            Err(error) => Introduction::Failed(error.clone()),
        };
        outcome
    }

    /// Sends all of `iovs`; `more` says that something follows at once.
    pub(crate) fn send(
        &self,
        progress: Option<&Progress>,
        iovs: &[Iov<'_>],
        more: bool,
    ) -> Result<(), ChannelError> {
        let Some(tls) = &self.tls else {
            let flags = if more { libc::MSG_MORE } else { 0 };
            return self.send_by(progress, iovs, |socket, iovs| {
                Ok(sys::send(socket, iovs, flags))
            });
        };
        self.handshake(tls)?;
        self.send_by(progress, iovs, |_, iovs| self.encrypt(tls, iovs).map(Ok))?;
        self.write_out(tls)
    }

    /// Sends all of `iovs` by calls that each take as many as they can, and, where there is a
    /// limit, no more than one's turn is for.
    pub(crate) fn send_by(
        &self,
        progress: Option<&Progress>,
        iovs: &[Iov<'_>],
        mut call: impl FnMut(&Socket, &[Iov<'_>]) -> Result<io::Result<usize>, ChannelError>,
    ) -> Result<(), ChannelError> {
        let mut left = iovs;
        // Bytes of the first IOV that have gone already.
        let mut gone = 0;
        let mut turn = self.bandwidth.as_ref().map_or(usize::MAX, |_| 0);
        let mut since = Instant::now();
        let mut room = [Iov::from(&[][..]); WINDOW];
        self.in_message.store(true, Ordering::SeqCst);
        // Looked at after that is known: either this sees the stop, or the stop sees the message.
        self.check()?;
        while !left.is_empty() {
            if let Some(bandwidth) = self.bandwidth.as_ref().filter(|_| turn == 0) {
                let wanted = left.iter().map(Iov::len).sum::<usize>() - gone;
                turn = bandwidth
                    .wait_turn(wanted, &self.stopped)?
                    .unwrap_or(usize::MAX);
                since = Instant::now();
            }
            let now = if turn < usize::MAX || gone > 0 {
                window(left, gone, turn, &mut room)
            } else {
                left
            };
            let result = call(&self.socket, now)?;
            match self.step(progress, libc::POLLOUT, since, result)? {
                Step::Moved(n) => {
                    (left, gone) = skip(left, Iov::len, gone + n);
                    if turn < usize::MAX {
                        turn -= n.min(turn);
                    }
                    since = Instant::now();
                }
                Step::Again => {}
                Step::Idle => return Err(self.stalled()),
            }
        }
        self.in_message.store(false, Ordering::SeqCst);
        Ok(())
    }

    /// Fills `buffer` from `filled` on.
    pub(crate) fn fill(
        &self,
        progress: Option<&Progress>,
        buffer: &mut [u8],
        mut filled: usize,
    ) -> Result<Arrival, ChannelError> {
        let expected = buffer.len();
        let mut since = Instant::now();
        while let Some(room) = buffer.get_mut(filled..).filter(|room| !room.is_empty()) {
            match self.recv_some(progress, room, since, libc::MSG_WAITALL, Cut::IsError)? {
                Step::Moved(0) if filled == 0 => return Ok(Arrival::End),
                Step::Moved(0) => {
                    return Err(ChannelError::Closed {
                        received: filled,
                        expected,
                    });
                }
                Step::Moved(n) => {
                    filled += n;
                    since = Instant::now();
                }
                Step::Again => {}
                Step::Idle if filled == 0 => {
                    return Ok(Arrival::Idle {
                        waited: since.elapsed(),
                    });
                }
                Step::Idle => return Err(self.stalled()),
            }
        }
        Ok(Arrival::Message)
    }

    /// Receives some bytes; none at the end.
    pub(crate) fn recv_some(
        &self,
        progress: Option<&Progress>,
        room: &mut [u8],
        since: Instant,
        flags: libc::c_int,
        cut: Cut,
    ) -> Result<Step, ChannelError> {
        let Some(tls) = &self.tls else {
            let result = sys::recv(&self.socket, room, flags);
            let step = self.step(progress, libc::POLLIN, since, result)?;
            if let Step::Moved(0) = step {
                self.check_end()?;
            }
            return Ok(step);
        };
        let step = self.decrypt(tls, room, cut)?;
        if let (Step::Moved(_), Some(progress)) = (&step, progress) {
            progress.touch();
        }
        Ok(step)
    }
}

impl Wire for &Connection {
    fn put(&mut self, bytes: &[u8]) -> Result<(), ChannelError> {
        self.send(None, &[Iov::from(bytes)], false)
    }

    fn get(&mut self, bytes: &mut [u8]) -> Result<(), ChannelError> {
        match self.fill(None, bytes, 0)? {
            Arrival::Message => Ok(()),
            Arrival::End => Err(ChannelError::Closed {
                received: 0,
                expected: bytes.len(),
            }),
            Arrival::Idle { .. } => Err(self.stalled()),
        }
    }
}

/// The first `most` bytes of `list` after the `gone` first of its first IOV, as far as there is
/// room to name them.
fn window<'r, 'a>(
    list: &[Iov<'a>],
    gone: usize,
    most: usize,
    room: &'r mut [Iov<'a>],
) -> &'r [Iov<'a>] {
    let (mut gone, mut most, mut count) = (gone, most, 0);
    for (slot, iov) in room.iter_mut().zip(list) {
        if most == 0 {
            break;
        }
        *slot = iov.advanced(gone).shortened(most);
        gone = 0;
        most -= slot.len();
        count += 1;
    }
    room.get(..count).unwrap_or_default()
}

/// What is left of `list` after `moved` bytes: the entries not done, and the bytes of the first
/// that are.
pub(crate) fn skip<T>(
    mut list: &[T],
    len: impl Fn(&T) -> usize,
    mut moved: usize,
) -> (&[T], usize) {
    while let Some((first, rest)) = list.split_first() {
        if moved < len(first) {
            break;
        }
        moved -= len(first);
        list = rest;
    }
    (list, moved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_what_is_next_and_no_more() {
        let bytes: Vec<u8> = (0..100).collect();
        let list: Vec<Iov<'_>> = bytes.chunks(10).map(Iov::from).collect();
        let mut room = [Iov::from(&[][..]); 4];
        for (gone, most, expected) in [
            (0, usize::MAX, 0..40),
            (3, usize::MAX, 3..40),
            (3, 5, 3..8),
            (9, 2, 9..11),
            (0, 10, 0..10),
            (9, 1, 9..10),
        ] {
            let mut seen = Vec::new();
            for iov in window(&list, gone, most, &mut room) {
                let mut out = vec![0; iov.len()];
                iov.copy_to(&mut out);
                seen.extend(out);
            }
            assert_eq!(seen, bytes[expected], "{gone} {most}");
        }
    }
}
