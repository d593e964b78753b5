//! A connected stream socket: a channel of either kind, or QEMU's main connection.

use crate::bandwidth::Bandwidth;
use crate::connection::{Connection, Handle, Introduction, Step, skip};
use crate::options::{self, is_tcp};
use crate::secret::Secret;
use crate::sys;
use crate::tls::{Cut, Session};
use crate::zero_copy::ZeroCopy;
use multifd_core::{
    Arrival, ChannelError, Iov, Outgoing, Progress, RecvChannel, Region, SendChannel, Unblock, WriteFlags,
};
use socket2::{SockAddr, Socket};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A connected stream socket of any family, with a deadline on every wait.
///
/// As a [`SendChannel`] or [`RecvChannel`] it moves messages; as `Read` and `Write` it is QEMU's main connection. A
/// read that meets the deadline fails with [`io::ErrorKind::TimedOut`] and may be tried again.
#[derive(Debug)]
pub struct SocketStream {
    connection: Arc<Connection>,
    /// Bytes read to find out what the connection is, for whoever reads next.
    head: Vec<u8>,
    progress: Option<Arc<Progress>>,
    zero_copy: ZeroCopy,
    cut: Cut,
}

impl SocketStream {
    /// Takes a connected stream socket over, whatever its family; no wait on it lasts longer than `deadline`.
    ///
    /// # Errors
    /// The system's, if the socket's options can not be set.
    pub fn new(socket: Socket, deadline: Duration) -> io::Result<Self> {
        if is_tcp(&socket)? {
            // A message is one write: waiting for more would only delay the end of a round.
            socket.set_tcp_nodelay(true)?;
        }
        Ok(Self::over(Connection::new(socket, deadline)?))
    }

    fn over(connection: Connection) -> Self {
        Self {
            connection: Arc::new(connection),
            head: Vec::new(),
            progress: None,
            zero_copy: ZeroCopy::default(),
            cut: Cut::IsError,
        }
    }

    /// The accepting end of a connection whose socket is set up; the handshake of a session is done by whoever first reads or writes.
    pub(crate) fn accepted(socket: Socket, deadline: Duration, tls: Option<Session>) -> io::Result<Self> {
        Ok(Self::over(Connection {
            tls,
            ..Connection::new(socket, deadline)?
        }))
    }

    /// The connecting end; the handshake is done, and the secret shown, by whoever first reads or writes.
    pub(crate) fn connected(
        socket: Socket,
        deadline: Duration,
        tls: Option<Session>,
        secret: Option<Secret>,
        bandwidth: Option<Bandwidth>,
    ) -> io::Result<Self> {
        Ok(Self::over(Connection {
            tls,
            bandwidth,
            secret: secret.map(|secret| Mutex::new(Introduction::Pending(secret))),
            ..Connection::new(socket, deadline)?
        }))
    }

    pub(crate) fn with_zero_copy(mut self, zero_copy: ZeroCopy) -> Self {
        self.zero_copy = zero_copy;
        self
    }

    pub(crate) fn with_head(mut self, head: &[u8]) -> Self {
        self.head = head.to_vec();
        self
    }

    /// Does TLS's handshake, if there is one to do.
    pub(crate) fn finish_handshake(&self) -> Result<(), ChannelError> {
        match &self.connection.tls {
            Some(tls) => self.connection.handshake(tls),
            None => Ok(()),
        }
    }

    /// Sees to it that the peer knows a secret, before it has said anything else.
    pub(crate) fn examine(&self, secret: &Secret) -> Result<(), ChannelError> {
        secret.examine(&mut &*self.connection)
    }

    /// The same connection once more, so that one thread can read while another writes. Bytes that were read ahead stay
    /// where they are first asked for.
    #[must_use]
    pub fn second(&mut self) -> Self {
        Self {
            connection: Arc::clone(&self.connection),
            head: std::mem::take(&mut self.head),
            progress: self.progress.clone(),
            zero_copy: ZeroCopy::default(),
            cut: self.cut,
        }
    }

    pub(crate) fn peer(&self) -> io::Result<SockAddr> {
        self.connection.socket.peer_addr()
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
            connection: Arc::clone(&self.connection),
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
        Ok(self.connection.end_writing()?)
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
        self.connection.introduce()?;
        let since = Instant::now();
        loop {
            // A QEMU closes its connection without ending a session; what breaks off is an error of the socket.
            let step = self
                .connection
                .recv_some(self.progress(), &mut [0], since, 0, Cut::IsEnd)?;
            match step {
                Step::Moved(0) => return Ok(()),
                Step::Moved(_) => {
                    let why = "the destination says that it has failed";
                    return Err(ChannelError::Peer(why.into()));
                }
                Step::Again => {}
                Step::Idle => return Err(self.connection.stalled()),
            }
        }
    }

    /// Whether closing this connection can be an error for the peer ([`SocketStream::abort_on_close`]): over TCP it can; elsewhere
    /// only [`SocketStream::refuse`] tells it anything.
    pub fn can_abort(&self) -> bool {
        is_tcp(&self.connection.socket).unwrap_or(false)
    }

    /// Whether the peer of a TCP connection is to get an error, not an orderly end, when this one is closed, even by the
    /// death of the process. Other sockets have no such way: see [`SocketStream::refuse`].
    ///
    /// # Errors
    /// [`ChannelError::Io`], the system's.
    pub fn abort_on_close(&self, abort: bool) -> Result<(), ChannelError> {
        Ok(self
            .connection
            .socket
            .set_linger(abort.then_some(Duration::ZERO))?)
    }

    /// Tells a peer that waits in [`SocketStream::wait_closed`] that what it sent was not taken: by one byte, which QEMU's
    /// protocol has no place for, and which a QEMU that sends does not look at. For sockets where closing alone tells nothing.
    pub fn refuse(&self) {
        // A peer that is gone has no use for it.
        let _ = self.send_iovs(&[Iov::from(&[0u8][..])], false);
    }

    fn progress(&self) -> Option<&Progress> {
        self.progress.as_deref()
    }

    /// Sends all of `iovs`; `more` says that something follows at once.
    fn send_iovs(&self, iovs: &[Iov<'_>], more: bool) -> Result<(), ChannelError> {
        self.connection.introduce()?;
        self.connection.send(self.progress(), iovs, more)
    }

    /// Sends all of `iovs` without a copy.
    fn send_in_place(&mut self, iovs: &[Iov<'_>]) -> Result<(), ChannelError> {
        let Self {
            connection,
            progress,
            zero_copy,
            ..
        } = self;
        connection.send_by(progress.as_deref(), iovs, |socket, iovs| {
            let result = zero_copy.send(connection, iovs)?;
            if result.is_err() && zero_copy.is_pending() {
                // Notices that wait look like a socket that is ready.
                zero_copy.reap(socket)?;
            }
            Ok(result)
        })
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
}

impl SendChannel for SocketStream {
    fn send(&mut self, message: &Outgoing<'_>, flags: WriteFlags) -> Result<(), ChannelError> {
        let (iovs, payload) = (message.iovs(), message.payload());
        if !flags.zero_copy || payload.is_empty() {
            return self.send_iovs(iovs, false);
        }
        if self.connection.tls.is_some() {
            if self.zero_copy.copies_instead() {
                return self.send_iovs(iovs, false);
            }
            let why = "pages can not be sent without a copy under TLS: they are encrypted first";
            return Err(ChannelError::Peer(why.into()));
        }
        // The header's memory is used again at once: it goes by itself, and with a copy.
        let header = iovs.get(..iovs.len() - payload.len()).unwrap_or_default();
        self.send_iovs(header, true)?;
        self.send_in_place(payload)
    }

    fn flush(&mut self) -> Result<(), ChannelError> {
        let Self {
            connection,
            zero_copy,
            ..
        } = self;
        zero_copy.finish(connection)
    }

    fn close(&mut self) -> Result<(), ChannelError> {
        if let Some(tls) = &self.connection.tls {
            self.connection.handshake(tls)?;
            tls.end();
            self.connection.write_out(tls)?;
            tls.drain(&self.connection.socket);
            // A peer that has read TLS's end may have closed the connection already.
            return match self.end_writing() {
                Err(ChannelError::Io(error)) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
                ended => ended,
            };
        }
        self.end_writing()
    }

    fn busy_at_once(&self) -> Option<NonZeroUsize> {
        options::busy_at_once(&self.connection.socket)
    }

    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
        Ok(self.unblocker())
    }
}

impl RecvChannel for SocketStream {
    fn recv_start(&mut self, buffer: &mut [u8]) -> Result<Arrival, ChannelError> {
        self.connection.introduce()?;
        let filled = self.take_head(buffer);
        self.connection.fill(self.progress.as_deref(), buffer, filled)
    }

    fn set_progress(&mut self, progress: Arc<Progress>) {
        self.progress = Some(progress);
    }

    fn recv_regions(&mut self, regions: &[Region<'_>]) -> Result<(), ChannelError> {
        if self.connection.tls.is_some() {
            return self.recv_copied(regions);
        }
        let mut left = regions;
        let mut since = Instant::now();
        let (mut done, mut received) = (0, 0);
        while let Some(first) = left.first() {
            let result = if done == 0 {
                sys::recv_regions(&self.connection.socket, left)
            } else {
                sys::recv_regions(&self.connection.socket, &[first.advanced(done)])
            };
            match self
                .connection
                .step(self.progress(), libc::POLLIN, since, result)?
            {
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
                Step::Idle => return Err(self.connection.stalled()),
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
        self.connection.introduce().map_err(into_io)?;
        let since = Instant::now();
        loop {
            let step = self
                .connection
                .recv_some(self.progress(), buffer, since, 0, self.cut)
                .map_err(into_io)?;
            match step {
                Step::Moved(n) => return Ok(n),
                Step::Again => {}
                Step::Idle => return Err(into_io(self.connection.stalled())),
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
        self.connection.socket.as_fd()
    }
}
