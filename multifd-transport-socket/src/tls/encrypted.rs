//! Moving bytes through a session, with the deadlines of its connection.

use super::Session;
use super::outcome::{Cut, Received};
use crate::connection::{Connection, Step};
use crate::sys;
use multifd_core::{ChannelError, Iov};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::Instant;

impl Connection {
    /// Waits until the socket is ready; `false` if that takes longer than the deadline.
    fn wait(&self, events: libc::c_short, since: Instant) -> Result<bool, ChannelError> {
        let left = self.deadline.saturating_sub(since.elapsed());
        let ready = sys::poll(&[self.socket.as_fd()], events, Some(left))?;
        self.check()?;
        // A signal can end a wait early.
        Ok(ready.contains(&true) || since.elapsed() < self.deadline)
    }

    pub(crate) fn check(&self) -> Result<(), ChannelError> {
        if self.stopped.load(Ordering::Acquire) {
            return Err(ChannelError::Stopped);
        }
        Ok(())
    }

    /// What a session says, unless it says so because we have been stopped.
    fn unless_stopped<T>(&self, result: Result<T, ChannelError>) -> Result<T, ChannelError> {
        self.check()?;
        result
    }

    fn wait_or_stall(&self, events: libc::c_short, since: Instant) -> Result<(), ChannelError> {
        if self.wait(events, since)? {
            return Ok(());
        }
        Err(ChannelError::Stalled {
            deadline: self.deadline,
        })
    }

    /// Does the handshake, if it has not been done.
    pub(crate) fn handshake(&self, tls: &Session) -> Result<(), ChannelError> {
        let since = Instant::now();
        while tls.is_handshaking() {
            let blocked_writing = self.unless_stopped(tls.handshake(&self.socket))?;
            if !tls.is_handshaking() {
                break;
            }
            let events = if blocked_writing {
                libc::POLLOUT
            } else {
                libc::POLLIN
            };
            self.wait_or_stall(events, since)?;
        }
        Ok(())
    }

    /// Writes out all that is encrypted.
    pub(crate) fn write_out(&self, tls: &Session) -> Result<(), ChannelError> {
        while !self.unless_stopped(tls.flush(&self.socket))? {
            self.wait_or_stall(libc::POLLOUT, Instant::now())?;
        }
        Ok(())
    }

    /// Encrypts what there is room for of `iovs`; returns how many bytes of them.
    pub(crate) fn encrypt(&self, tls: &Session, iovs: &[Iov<'_>]) -> Result<usize, ChannelError> {
        let (taken, free) = self.unless_stopped(tls.send(&self.socket, iovs))?;
        if !free {
            self.wait_or_stall(libc::POLLOUT, Instant::now())?;
        }
        Ok(taken)
    }

    /// Receives some bytes into `buffer`.
    pub(crate) fn decrypt(
        &self,
        tls: &Session,
        buffer: &mut [u8],
        cut: Cut,
    ) -> Result<Step, ChannelError> {
        self.handshake(tls)?;
        let since = Instant::now();
        loop {
            match self.unless_stopped(tls.recv(&self.socket, buffer))? {
                Received::Bytes(n) => return Ok(Step::Moved(n)),
                Received::End => return Ok(Step::Moved(0)),
                Received::Cut if cut == Cut::IsEnd => {
                    self.check_end()?;
                    return Ok(Step::Moved(0));
                }
                Received::Cut => {
                    let why =
                        "the connection ended without TLS's own end: it may have been cut off";
                    return Err(ChannelError::Peer(why.into()));
                }
                Received::Nothing => {
                    if !self.wait(libc::POLLIN, since)? {
                        return Ok(Step::Idle);
                    }
                }
            }
        }
    }
}
