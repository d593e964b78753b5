//! A connected stream socket: a channel of either kind, or QEMU's main connection.

use crate::sys;
use crate::tls::{Cut, Session};
use crate::zero_copy::ZeroCopy;
use multifd_core::{
    Arrival, ChannelError, Iov, Outgoing, Progress, RecvChannel, Region, SendChannel, Unblock, WriteFlags,
};
use socket2::Socket;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A connected TCP or Unix stream socket with a deadline on every wait.
///
/// As a [`SendChannel`] or [`RecvChannel`] it moves messages; as `Read` and `Write` it is QEMU's main connection. A
/// read that meets the deadline fails with [`io::ErrorKind::TimedOut`] and may be tried again.
#[derive(Debug)]
pub struct SocketStream {
    shared: Arc<Shared>,
    /// Bytes read to find out what the connection is, for whoever reads next.
    head: Vec<u8>,
    progress: Option<Arc<Progress>>,
    zero_copy: ZeroCopy,
    cut: Cut,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) socket: Socket,
    pub(crate) stopped: AtomicBool,
    pub(crate) deadline: Duration,
    pub(crate) tls: Option<Session>,
}

struct Handle {
    shared: Arc<Shared>,
    how: Shutdown,
}

impl Unblock for Handle {
    fn unblock(&self) {
        self.shared.stopped.store(true, Ordering::Release);
        // A socket that is not connected any more has nothing to wake.
        let _ = self.shared.socket.shutdown(self.how);
    }
}

/// What one system call came to.
pub(crate) enum Step {
    Moved(usize),
    Again,
    Idle,
}

impl SocketStream {
    /// Takes a connected stream socket over, whatever its family; no wait on it lasts longer than `deadline`.
    ///
    /// # Errors
    /// The system's, if the socket's options can not be set.
    pub fn new(socket: Socket, deadline: Duration) -> io::Result<Self> {
        Self::with_session(socket, deadline, None)
    }

    /// The same, with TLS over it; the handshake is done by whoever first reads or writes.
    pub(crate) fn with_session(socket: Socket, deadline: Duration, tls: Option<Session>) -> io::Result<Self> {
        socket.set_nonblocking(false)?;
        // A read waits for all it is to get; what has come of it is to be noticed well within the deadline.
        socket.set_read_timeout(Some((deadline / 4).max(Duration::from_millis(1))))?;
        socket.set_write_timeout(Some(deadline))?;
        if socket.local_addr()?.is_ipv4() || socket.local_addr()?.is_ipv6() {
            // A message is one write: waiting for more would only delay the end of a round.
            socket.set_tcp_nodelay(true)?;
        }
        let shared = Shared {
            socket,
            stopped: AtomicBool::new(false),
            deadline,
            tls,
        };
        Ok(Self {
            shared: Arc::new(shared),
            head: Vec::new(),
            progress: None,
            zero_copy: ZeroCopy::default(),
            cut: Cut::IsError,
        })
    }

    pub(crate) fn with_zero_copy(mut self, zero_copy: ZeroCopy) -> Self {
        self.zero_copy = zero_copy;
        self
    }

    pub(crate) fn with_head(mut self, head: Vec<u8>) -> Self {
        self.head = head;
        self
    }

    /// The same connection once more, so that one thread can read while another writes. Bytes that were read ahead stay
    /// where they are first asked for.
    #[must_use]
    pub fn second(&mut self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            head: std::mem::take(&mut self.head),
            progress: self.progress.clone(),
            zero_copy: ZeroCopy::default(),
            cut: self.cut,
        }
    }

    /// A handle that makes every blocked and later call on this connection fail, from another thread. The peer may see
    /// the end of the stream.
    pub fn unblocker(&self) -> Box<dyn Unblock> {
        self.handle(Shutdown::Both)
    }

    /// A handle that makes every blocked read, and every later call, on this connection fail, from another thread. The
    /// peer sees nothing of it, so that it can not take a failure for an orderly end.
    pub fn read_unblocker(&self) -> Box<dyn Unblock> {
        self.handle(Shutdown::Read)
    }

    fn handle(&self, how: Shutdown) -> Box<dyn Unblock> {
        Box::new(Handle {
            shared: Arc::clone(&self.shared),
            how,
        })
    }

    /// Says that nothing more will be written; the peer sees the end of the stream once it has read the rest. Under TLS its own end is
    /// not sent: a QEMU does not read it on its main connection, and what is not read would have the connection reset. A channel's
    /// [`SendChannel::close`] sends it.
    ///
    /// # Errors
    /// [`ChannelError::Io`] if the connection is gone.
    pub fn end_writing(&self) -> Result<(), ChannelError> {
        Ok(self.shared.socket.shutdown(Shutdown::Write)?)
    }

    /// Whether the end of the connection is taken for the end of what is read from it even if TLS's own end is missing, as it is on a
    /// QEMU's main connection. Only where what is read shows by itself whether it is whole; elsewhere, and without this, it is an
    /// error, as somebody may have cut it off.
    pub fn end_without_tls(&mut self, accept: bool) {
        self.cut = if accept { Cut::IsEnd } else { Cut::IsError };
    }

    /// Waits until the peer closes the connection, having read all that was sent.
    ///
    /// # Errors
    /// [`ChannelError::Io`] if the peer dropped the connection with bytes unread, [`ChannelError::Peer`] if it says
    /// something, as by [`SocketStream::refuse`], [`ChannelError::Stalled`].
    pub fn wait_closed(&mut self) -> Result<(), ChannelError> {
        let arrival = match &self.shared.tls {
            None => self.recv_start(&mut [0])?,
            // A QEMU closes its connection without ending the session; what breaks off is an error of the socket.
            Some(tls) => match self.shared.decrypt(tls, &mut [0], Cut::IsEnd)? {
                Step::Moved(0) => Arrival::End,
                Step::Moved(_) => Arrival::Message,
                Step::Again | Step::Idle => Arrival::Idle {
                    waited: self.shared.deadline,
                },
            },
        };
        match arrival {
            Arrival::End => Ok(()),
            Arrival::Message => Err(ChannelError::Peer(
                "the destination says that it has failed".into(),
            )),
            Arrival::Idle { waited } => Err(ChannelError::Stalled { deadline: waited }),
        }
    }

    /// Whether the peer of a TCP connection is to get an error, not an orderly end, when this one is closed, even by the
    /// death of the process. A Unix socket has no such way: see [`SocketStream::refuse`].
    ///
    /// # Errors
    /// [`ChannelError::Io`], the system's.
    pub fn abort_on_close(&self, abort: bool) -> Result<(), ChannelError> {
        Ok(self.shared.socket.set_linger(abort.then_some(Duration::ZERO))?)
    }

    /// Tells a peer that waits in [`SocketStream::wait_closed`] that what it sent was not taken: by one byte, which QEMU's
    /// protocol has no place for, and which a QEMU that sends does not look at. For Unix sockets, where closing alone tells
    /// nothing.
    pub fn refuse(&self) {
        // A peer that is gone has no use for it.
        let _ = self.send_iovs(&[Iov::from(&[0u8][..])], false);
    }

    /// Sorts out what a system call returned: what to do again, what is a stall, what is an error.
    fn step(
        &self,
        events: libc::c_short,
        since: Instant,
        result: io::Result<usize>,
    ) -> Result<Step, ChannelError> {
        let Shared {
            socket,
            stopped,
            deadline,
            ..
        } = &*self.shared;
        if stopped.load(Ordering::Acquire) {
            return Err(ChannelError::Stopped);
        }
        let error = match result {
            Ok(moved) => {
                if let Some(progress) = &self.progress {
                    progress.touch();
                }
                return Ok(Step::Moved(moved));
            }
            Err(error) => error,
        };
        match error.kind() {
            io::ErrorKind::Interrupted => Ok(Step::Again),
            io::ErrorKind::WouldBlock => {
                // The socket's own timeout has passed, or somebody made it non-blocking.
                let left = deadline.saturating_sub(since.elapsed());
                let ready = sys::poll(&[socket.as_fd()], events, Some(left))?;
                Ok(if ready.contains(&true) {
                    Step::Again
                } else {
                    self.idle(since)
                })
            }
            _ => Err(error.into()),
        }
    }

    fn idle(&self, since: Instant) -> Step {
        // A signal can end `poll` early.
        if since.elapsed() < self.shared.deadline {
            Step::Again
        } else {
            Step::Idle
        }
    }

    fn stalled(&self) -> ChannelError {
        ChannelError::Stalled {
            deadline: self.shared.deadline,
        }
    }

    /// Sends all of `iovs`; `more` says that something follows at once.
    fn send_iovs(&self, iovs: &[Iov<'_>], more: bool) -> Result<(), ChannelError> {
        if let Some(tls) = &self.shared.tls {
            return self.shared.encrypt(tls, iovs);
        }
        let flags = if more { libc::MSG_MORE } else { 0 };
        let mut left = iovs;
        let mut since = Instant::now();
        // Bytes of the first IOV that have gone already.
        let mut gone = 0;
        while let Some(first) = left.first() {
            let result = if gone == 0 {
                sys::send(&self.shared.socket, left, flags)
            } else {
                sys::send(&self.shared.socket, &[first.advanced(gone)], flags)
            };
            match self.step(libc::POLLOUT, since, result)? {
                Step::Moved(n) => {
                    (left, gone) = skip(left, Iov::len, gone + n);
                    since = Instant::now();
                }
                Step::Again => {}
                Step::Idle => return Err(self.stalled()),
            }
        }
        Ok(())
    }

    /// Sends all of `iovs` without a copy.
    fn send_in_place(&mut self, iovs: &[Iov<'_>]) -> Result<(), ChannelError> {
        let shared = Arc::clone(&self.shared);
        let mut left = iovs;
        let mut since = Instant::now();
        let mut gone = 0;
        while let Some(first) = left.first() {
            let rest = [first.advanced(gone)];
            let now = if gone == 0 { left } else { &rest };
            let result = self.zero_copy.send(&shared.socket, now, shared.deadline)?;
            if result.is_err() && self.zero_copy.is_pending() {
                // Notices that wait look like a socket that is ready.
                self.zero_copy.reap(&shared.socket)?;
            }
            match self.step(libc::POLLOUT, since, result)? {
                Step::Moved(n) => {
                    (left, gone) = skip(left, Iov::len, gone + n);
                    since = Instant::now();
                }
                Step::Again => {}
                Step::Idle => return Err(self.stalled()),
            }
        }
        Ok(())
    }

    /// Notes that something has moved.
    fn touch(&self, step: &Step) {
        if let (Step::Moved(_), Some(progress)) = (step, &self.progress) {
            progress.touch();
        }
    }

    /// Fills regions by way of memory of our own.
    fn recv_copied(&mut self, regions: &[Region<'_>]) -> Result<(), ChannelError> {
        let mut staging = [0; 16 << 10];
        for region in regions {
            let mut left = *region;
            while !left.is_empty() {
                let n = left.len().min(staging.len());
                let piece = staging.get_mut(..n).unwrap_or_default();
                self.recv(piece)?;
                left.copy_from(piece);
                left = left.advanced(n);
            }
        }
        Ok(())
    }

    /// Takes bytes that were read ahead.
    fn take_head(&mut self, buffer: &mut [u8]) -> usize {
        let n = self.head.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(self.head.drain(..n)) {
            *to = from;
        }
        n
    }

    /// Fills `buffer` from `filled` on.
    fn fill(&mut self, buffer: &mut [u8], mut filled: usize) -> Result<Arrival, ChannelError> {
        let expected = buffer.len();
        let mut since = Instant::now();
        while let Some(room) = buffer.get_mut(filled..).filter(|room| !room.is_empty()) {
            let step = if let Some(tls) = &self.shared.tls {
                let step = self.shared.decrypt(tls, room, Cut::IsError)?;
                self.touch(&step);
                step
            } else {
                let result = sys::recv(&self.shared.socket, room, libc::MSG_WAITALL);
                self.step(libc::POLLIN, since, result)?
            };
            match step {
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
                        waited: self.shared.deadline,
                    });
                }
                Step::Idle => return Err(self.stalled()),
            }
        }
        Ok(Arrival::Message)
    }
}

/// What is left of `list` after `moved` bytes: the entries not done, and the bytes of the first that are.
pub(crate) fn skip<T>(mut list: &[T], len: impl Fn(&T) -> usize, mut moved: usize) -> (&[T], usize) {
    while let Some((first, rest)) = list.split_first() {
        if moved < len(first) {
            break;
        }
        moved -= len(first);
        list = rest;
    }
    (list, moved)
}

impl SendChannel for SocketStream {
    fn send(&mut self, message: &Outgoing<'_>, flags: WriteFlags) -> Result<(), ChannelError> {
        let (iovs, payload) = (message.iovs(), message.payload());
        if !flags.zero_copy || payload.is_empty() {
            return self.send_iovs(iovs, false);
        }
        if self.shared.tls.is_some() {
            let why = "pages can not be sent without a copy under TLS: they are encrypted first";
            return Err(ChannelError::Peer(why.into()));
        }
        // The header's memory is used again at once: it goes by itself, and with a copy.
        let header = iovs.get(..iovs.len() - payload.len()).unwrap_or_default();
        self.send_iovs(header, true)?;
        self.send_in_place(payload)
    }

    fn flush(&mut self) -> Result<(), ChannelError> {
        let shared = Arc::clone(&self.shared);
        self.zero_copy.finish(&shared.socket, shared.deadline)
    }

    fn close(&mut self) -> Result<(), ChannelError> {
        if let Some(tls) = &self.shared.tls {
            self.shared.handshake(tls)?;
            tls.end();
            self.shared.write_out(tls)?;
            tls.drain(&self.shared.socket);
            // A peer that has read TLS's end may have closed the connection already.
            return match self.end_writing() {
                Err(ChannelError::Io(error)) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
                ended => ended,
            };
        }
        self.end_writing()
    }

    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
        Ok(self.unblocker())
    }
}

impl RecvChannel for SocketStream {
    fn recv_start(&mut self, buffer: &mut [u8]) -> Result<Arrival, ChannelError> {
        let filled = self.take_head(buffer);
        self.fill(buffer, filled)
    }

    fn set_progress(&mut self, progress: Arc<Progress>) {
        self.progress = Some(progress);
    }

    fn recv_regions(&mut self, regions: &[Region<'_>]) -> Result<(), ChannelError> {
        if self.shared.tls.is_some() {
            return self.recv_copied(regions);
        }
        let mut left = regions;
        let mut since = Instant::now();
        let (mut done, mut received) = (0, 0);
        while let Some(first) = left.first() {
            let result = if done == 0 {
                sys::recv_regions(&self.shared.socket, left)
            } else {
                sys::recv_regions(&self.shared.socket, &[first.advanced(done)])
            };
            match self.step(libc::POLLIN, since, result)? {
                Step::Moved(0) => {
                    let expected = regions.iter().map(Region::len).sum();
                    return Err(ChannelError::Closed { received, expected });
                }
                Step::Moved(n) => {
                    received += n;
                    (left, done) = skip(left, Region::len, done + n);
                    since = Instant::now();
                }
                Step::Again => {}
                Step::Idle => return Err(self.stalled()),
            }
        }
        Ok(())
    }

    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
        Ok(self.read_unblocker())
    }
}

fn into_io(error: ChannelError) -> io::Error {
    match error {
        ChannelError::Stalled { .. } => io::Error::new(io::ErrorKind::TimedOut, error),
        ChannelError::Io(source) => io::Error::new(source.kind(), ChannelError::Io(source)),
        other => io::Error::other(other),
    }
}

impl Read for SocketStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let taken = self.take_head(buffer);
        if taken > 0 || buffer.is_empty() {
            return Ok(taken);
        }
        let since = Instant::now();
        loop {
            let step = if let Some(tls) = &self.shared.tls {
                let step = self.shared.decrypt(tls, buffer, self.cut).map_err(into_io)?;
                self.touch(&step);
                step
            } else {
                let result = sys::recv(&self.shared.socket, buffer, 0);
                self.step(libc::POLLIN, since, result).map_err(into_io)?
            };
            match step {
                Step::Moved(n) => return Ok(n),
                Step::Again => {}
                Step::Idle => return Err(into_io(self.stalled())),
            }
        }
    }
}

impl Write for SocketStream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.send_iovs(&[Iov::from(buffer)], false).map_err(into_io)?;
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for SocketStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.socket.as_fd()
    }
}
