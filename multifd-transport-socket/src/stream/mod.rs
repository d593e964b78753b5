//! A connected stream socket: a channel of either kind, or QEMU's main connection.

mod main_connection;

use crate::bandwidth::Bandwidth;
use crate::connection::{Connection, Handle, Introduction, Step, skip};
use crate::options::{is_tcp, stays_here};
use crate::secret::Secret;
use crate::sys;
use crate::tls::{Cut, Session};
use crate::zero_copy::ZeroCopy;
use multifd_core::{
    Arrival, ChannelError, Iov, Message, Progress, RecvChannel, Region, SendChannel, Unblock,
    WriteFlags,
};
use socket2::{SockAddr, Socket};
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A connected stream socket of any family, with a deadline on every wait.
///
/// As a [`SendChannel`] or [`RecvChannel`] it moves messages; as a
/// [`MainConnection`](multifd_core::MainConnection) it is QEMU's main connection. A read that meets
/// the deadline fails with [`io::ErrorKind::TimedOut`] and may be tried again.
///
/// A channel that is dropped before [`SendChannel::close`] looks like a failure to the peer: TCP is
/// reset, also if the process is killed; other families get stray bytes, which a killed process
/// does not send.
#[derive(Debug)]
pub struct SocketStream {
    connection: Arc<Connection>,
    /// Bytes read to find out what the connection is, for whoever reads next.
    head: Vec<u8>,
    progress: Option<Arc<Progress>>,
    zero_copy: ZeroCopy,
    cut: Cut,
    /// As a sending channel: dropping it looks like a failure.
    guarded: bool,
}

impl SocketStream {
    /// Takes a connected stream socket over, whatever its family; no wait on it lasts longer than
    /// `deadline`.
    ///
    /// # Errors
    /// The system's, if the socket's options cannot be set.
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
            guarded: false,
        }
    }

    /// The accepting end of a connection whose socket is set up; the handshake of a session is done
    /// by whoever first reads or writes. Until its end, or that of the migration, dropping it looks
    /// like a failure to the source.
    pub(crate) fn accepted(
        socket: Socket,
        deadline: Duration,
        tls: Option<Session>,
    ) -> io::Result<Self> {
        let mut connection = Connection::new(socket, deadline)?;
        connection.tls = tls;
        connection.fail_on_close(true)?;
        Ok(Self::over(connection))
    }

    /// The connecting end; the handshake is done, and the secret shown, by whoever first reads or
    /// writes.
    pub(crate) fn connected(
        socket: Socket,
        deadline: Duration,
        tls: Option<Session>,
        secret: Option<Secret>,
        bandwidth: Option<Bandwidth>,
    ) -> io::Result<Self> {
        let mut connection = Connection::new(socket, deadline)?;
        connection.tls = tls;
        connection.bandwidth = bandwidth;
        connection.secret = secret.map(|secret| Mutex::new(Introduction::Pending(secret)));
        Ok(Self::over(connection))
    }

    /// The sending end of a channel.
    pub(crate) fn for_sending(mut self, zero_copy: ZeroCopy) -> io::Result<Self> {
        self.zero_copy = zero_copy;
        self.guard()?;
        Ok(self)
    }

    /// Makes dropping this look like a failure to the peer.
    fn guard(&mut self) -> io::Result<()> {
        if !self.guarded {
            self.connection.fail_on_close(true)?;
            self.guarded = true;
        }
        Ok(())
    }

    /// Whether the peer is on this very host.
    pub(crate) fn stays_here(&self) -> bool {
        stays_here(&self.connection.socket)
    }

    pub(crate) fn with_head(mut self, head: &[u8]) -> Self {
        self.head = head.to_vec();
        self
    }

    /// Does TLS's handshake, if there is one to do.
    #[cfg(any(feature = "tls", feature = "secret"))]
    pub(crate) fn finish_handshake(&self) -> Result<(), ChannelError> {
        match &self.connection.tls {
            Some(tls) => self.connection.handshake(tls),
            None => Ok(()),
        }
    }

    /// Checks that the peer knows a secret, before it has said anything else.
    #[cfg(feature = "secret")]
    pub(crate) fn examine(&self, secret: &Secret) -> Result<(), ChannelError> {
        secret.examine(&mut &*self.connection)
    }

    pub(crate) fn peer(&self) -> io::Result<SockAddr> {
        self.connection.socket.peer_addr()
    }

    fn handle(&self, how: Shutdown) -> Box<dyn Unblock> {
        Box::new(Handle {
            connection: Arc::clone(&self.connection),
            how,
        })
    }

    /// A handle that makes every blocked and later call fail, from another thread.
    #[cfg(any(feature = "tls", feature = "secret"))]
    pub(crate) fn unblocker(&self) -> Box<dyn Unblock> {
        self.handle(Shutdown::Both)
    }

    fn clock(&self) -> Option<&Progress> {
        self.progress.as_deref()
    }

    /// Sends all of `iovs`; `more` says that something follows at once.
    fn send_iovs(&self, iovs: &[Iov<'_>], more: bool) -> Result<(), ChannelError> {
        self.connection.introduce()?;
        self.connection.send(self.clock(), iovs, more)
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
            region.fill_by(&mut staging, |piece| self.recv(piece))?;
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
    fn send(&mut self, message: &Message<'_>, flags: WriteFlags) -> Result<(), ChannelError> {
        self.guard()?;
        let (iovs, payload) = (message.iovs(), message.payload());
        if !flags.zero_copy || payload.is_empty() {
            return self.send_iovs(iovs, false);
        }
        if self.connection.tls.is_some() {
            if self.zero_copy.copies_instead() {
                return self.send_iovs(iovs, false);
            }
            let why = "pages cannot be sent without a copy under TLS: they are encrypted first";
            return Err(ChannelError::Unsupported(why.into()));
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
        self.connection.fail_on_close(false)?;
        if let Some(tls) = &self.connection.tls {
            self.connection.handshake(tls)?;
            tls.end();
            self.connection.write_out(tls)?;
            tls.drain(&self.connection.socket);
            // A peer that has read TLS's end may have closed the connection already.
            return match self.connection.end_writing() {
                Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
                ended => Ok(ended?),
            };
        }
        Ok(self.connection.end_writing()?)
    }

    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
        Ok(self.handle(Shutdown::Both))
    }
}

impl RecvChannel for SocketStream {
    fn recv_start(&mut self, buffer: &mut [u8]) -> Result<Arrival, ChannelError> {
        self.connection.introduce()?;
        let filled = self.take_head(buffer);
        let arrival = self
            .connection
            .fill(self.progress.as_deref(), buffer, filled)?;
        if arrival == Arrival::End {
            // The source has ended its side in order, and so do we.
            self.connection.fail_on_close(false)?;
        }
        Ok(arrival)
    }

    fn set_progress(&mut self, progress: Arc<Progress>) {
        // A socket that is gone says so when it is used.
        let _ = self.connection.follow_clock(progress.deadline());
        self.progress = Some(progress);
    }

    fn progress(&self) -> Option<&Progress> {
        self.clock()
    }

    fn recv(&mut self, buffer: &mut [u8]) -> Result<(), ChannelError> {
        loop {
            match self.recv_start(buffer)? {
                Arrival::Message => return Ok(()),
                Arrival::End => {
                    return Err(ChannelError::Closed {
                        received: 0,
                        expected: buffer.len(),
                    });
                }
                // The connection's own deadline has passed: a stall, unless others still move.
                Arrival::Idle { .. } if self.clock().is_none_or(Progress::is_stalled) => {
                    return Err(self.connection.stalled());
                }
                Arrival::Idle { .. } => {}
            }
        }
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
                .step(self.clock(), libc::POLLIN, since, result)?
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
        Ok(self.handle(Shutdown::Read))
    }
}

impl AsFd for SocketStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.socket.as_fd()
    }
}
