//! Sending guest pages without a copy: `MSG_ZEROCOPY`, and what the kernel says of it on the
//! socket's error queue.

use crate::connection::Connection;
use crate::sys;
use multifd_core::{ChannelError, Iov, event};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
use socket2::Socket;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Sends under way that are looked after without waiting: beyond this many the error queue is
/// emptied now and then.
const REAP_EVERY: u64 = 32;

/// How zero-copy sends went, over all connections of a [`SocketTransport`](crate::SocketTransport).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ZeroCopyCounts {
    /// Sends that were asked to go without a copy.
    pub sends: u64,
    /// Of those, how many the kernel copied all the same, as it does for a receiver on the same
    /// machine.
    pub copied: u64,
    /// Sends that went with a copy because no more memory could be locked, or because this
    /// connection cannot do without (TLS, Unix).
    pub fell_back: u64,
}

/// The counters behind [`ZeroCopyCounts`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    sends: AtomicU64,
    copied: AtomicU64,
    fell_back: AtomicU64,
}

impl Counters {
    pub(crate) fn read(&self) -> ZeroCopyCounts {
        let [sends, copied, fell_back] = [&self.sends, &self.copied, &self.fell_back]
            .map(|counter| counter.load(Ordering::Relaxed));
        ZeroCopyCounts {
            sends,
            copied,
            fell_back,
        }
    }
}

/// One connection's zero-copy sends. The kernel numbers them, and says on the error queue when it
/// is done with which.
#[derive(Debug, Default)]
pub(crate) struct ZeroCopy {
    counters: Arc<Counters>,
    /// Whether a send may go with a copy if no more memory can be locked.
    may_copy: bool,
    enabled: bool,
    issued: u64,
    completed: u64,
}

impl ZeroCopy {
    pub(crate) fn new(counters: Arc<Counters>, may_copy: bool) -> Self {
        Self {
            counters,
            may_copy,
            ..Self::default()
        }
    }

    /// Counts a send that is to go with a copy from the start; `false` if it must not.
    pub(crate) fn copies_instead(&self) -> bool {
        if self.may_copy && self.counters.fell_back.fetch_add(1, Ordering::Relaxed) == 0 {
            event!("zero copy is not possible here: falling back to copying");
        }
        self.may_copy
    }

    fn enable(&mut self, socket: &Socket) -> Result<(), ChannelError> {
        if self.enabled {
            return Ok(());
        }
        sys::enable_zero_copy(socket).map_err(|error| {
            let why = format!("this connection cannot send without a copy: {error}");
            ChannelError::from(io::Error::new(error.kind(), why))
        })?;
        self.enabled = true;
        Ok(())
    }

    /// One send of as many IOVs as it takes; returns the bytes sent. The memory must stay as it is
    /// until [`ZeroCopy::finish`].
    pub(crate) fn send(
        &mut self,
        connection: &Connection,
        iovs: &[Iov<'_>],
    ) -> Result<io::Result<usize>, ChannelError> {
        let (socket, deadline) = (&connection.socket, connection.deadline);
        if let Err(error) = self.enable(socket) {
            if !self.copies_instead() {
                return Err(error);
            }
            return Ok(sys::send(socket, iovs, 0));
        }
        if self.issued - self.completed >= REAP_EVERY {
            self.reap(socket)?;
        }
        let since = Instant::now();
        loop {
            match sys::send(socket, iovs, libc::MSG_ZEROCOPY) {
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Ok(sent) => {
                    self.issued += 1;
                    self.counters.sends.fetch_add(1, Ordering::Relaxed);
                    return Ok(Ok(sent));
                }
                Err(error) => return Ok(Err(error)),
            }
            // The kernel keeps account of memory it has locked, and of notices not read. Both end
            // as sends complete.
            if self.issued > self.completed && since.elapsed() < deadline {
                self.wait(connection, deadline.saturating_sub(since.elapsed()))?;
                continue;
            }
            if !self.copies_instead() {
                let why = "no more memory can be locked to be sent without a copy: raise the limit (ulimit -l, \
                           LimitMEMLOCK=), or let such sends be copied";
                return Err(io::Error::new(io::ErrorKind::OutOfMemory, why).into());
            }
            return Ok(sys::send(socket, iovs, 0));
        }
    }

    /// Whether the kernel still needs memory it was given.
    pub(crate) fn is_pending(&self) -> bool {
        self.issued > self.completed
    }

    /// Waits until the kernel is done with all memory it was given.
    pub(crate) fn finish(&mut self, connection: &Connection) -> Result<(), ChannelError> {
        let deadline = connection.deadline;
        let mut since = Instant::now();
        while self.issued > self.completed {
            let before = self.completed;
            self.wait(connection, deadline.saturating_sub(since.elapsed()))?;
            if self.completed > before {
                since = Instant::now();
            } else if since.elapsed() >= deadline {
                return Err(ChannelError::Stalled { deadline });
            }
        }
        Ok(())
    }

    /// Waits for notices, for some time, and takes them in.
    fn wait(&mut self, connection: &Connection, timeout: Duration) -> Result<(), ChannelError> {
        let before = self.completed;
        // The error queue shows as an error, which is always looked for.
        let ready = sys::poll(&[connection.socket.as_fd()], 0, Some(timeout))?;
        connection.check()?;
        self.reap(&connection.socket)?;
        if ready.contains(&true) && self.completed == before {
            // A connection that both sides have ended is always ready: look again now and then, not
            // all the time.
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Takes in the notices that are there.
    pub(crate) fn reap(&mut self, socket: &Socket) -> Result<(), ChannelError> {
        let mut room = cmsg_space!(libc::sock_extended_err, libc::sockaddr_storage);
        loop {
            let mut nothing: [IoSliceMut<'_>; 0] = [];
            let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
            let message = match recvmsg::<SockaddrStorage>(
                socket.as_raw_fd(),
                &mut nothing,
                Some(&mut room),
                flags,
            ) {
                Ok(message) => message,
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(io::Error::from(error).into()),
            };
            let notices = message.cmsgs().map_err(io::Error::from)?;
            for notice in notices {
                let (ControlMessageOwned::Ipv4RecvErr(notice, _)
                | ControlMessageOwned::Ipv6RecvErr(notice, _)) = notice
                else {
                    continue;
                };
                if notice.ee_origin != SO_EE_ORIGIN_ZEROCOPY {
                    continue;
                }
                // Numbers from one to the other, both included; they wrap around.
                let count = u64::from(notice.ee_data.wrapping_sub(notice.ee_info)) + 1;
                self.completed = self.issued.min(self.completed + count);
                if notice.ee_code == SO_EE_CODE_ZEROCOPY_COPIED {
                    self.counters.copied.fetch_add(count, Ordering::Relaxed);
                }
            }
        }
        // An error of the connection itself would show as one for ever.
        match socket.take_error()? {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }
}

/// Who sent the notice, and its code if the kernel copied after all (`linux/errqueue.h`).
const SO_EE_ORIGIN_ZEROCOPY: u8 = 5;
const SO_EE_CODE_ZEROCOPY_COPIED: u8 = 1;
