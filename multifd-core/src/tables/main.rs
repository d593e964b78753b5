//! The main connection of a migration, and how one ends.
//!
//! ```text
//!   source                                              destination
//!   connect_main() -> Outgoing                          accept_main() -> Incoming
//!     write ...                       ------------->      read ...
//!     finish(): end of the stream     ------------->      end of the stream
//!                                                         all is in place: accept()
//!     Ok: "it arrived"                <-------------      orderly close
//!   dropped before: a failure there                     dropped before: a failure there
//! ```

use super::transport::{ChannelSource, Transport};
use crate::{ChannelError, Progress, Unblock};
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A transport's end of a main connection: a stream of bytes, both ways.
///
/// Users get one inside an [`Incoming`] or an [`Outgoing`], which end it right. A read that meets
/// the connection's deadline fails with [`io::ErrorKind::TimedOut`], and may be repeated.
pub trait MainConnection: Read + Write + Send {
    /// The same connection once more, so that one thread can read while another writes.
    ///
    /// # Errors
    /// [`ChannelError`], the system's.
    fn second(&mut self) -> Result<Box<dyn MainConnection>, ChannelError>;

    /// Whether closing the connection is to look like a failure to the peer. With `true`, so is the
    /// end of the process, if the transport can do that.
    ///
    /// # Errors
    /// [`ChannelError`], the system's.
    fn fail_on_close(&mut self, fail: bool) -> Result<(), ChannelError>;

    /// Makes the peer see a failure now, where closing the last handle would be late. Called when
    /// an [`Incoming`] or [`Outgoing`] is dropped unfinished; the provided method leaves it to
    /// that.
    fn fail(&mut self) {}

    /// Says that nothing more will be written. The peer reads the end of the stream after the rest.
    ///
    /// # Errors
    /// [`ChannelError`] if the connection is gone.
    fn end_writing(&mut self) -> Result<(), ChannelError>;

    /// Waits, up to the connection's deadline, until the peer closes the connection in order.
    ///
    /// # Errors
    /// [`ChannelError::Stalled`] after the deadline, and it may be called again; any other if the
    /// peer has failed.
    fn wait_closed(&mut self) -> Result<(), ChannelError>;

    /// Whether the peer is known to have failed since: what [`Incoming::accept`] looks at last. The
    /// provided method is for transports that cannot tell.
    ///
    /// # Errors
    /// [`ChannelError`] if it has.
    fn check(&mut self) -> Result<(), ChannelError> {
        Ok(())
    }

    /// Whether an end of the stream counts as one although the transport's own mark for it is
    /// missing (TLS's `close_notify`, which QEMU does not send here). Only right where the bytes
    /// themselves show that they are whole. The provided method is for transports without such a
    /// mark.
    fn accept_unmarked_end(&mut self, accept: bool) {
        let _ = accept;
    }

    /// A clock to touch whenever bytes move.
    fn set_progress(&mut self, progress: Arc<Progress>) {
        let _ = progress;
    }

    /// Makes blocked and later reads and writes fail, from another thread.
    ///
    /// # Errors
    /// [`ChannelError`], the system's.
    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError>;

    /// Makes blocked and later reads fail, from another thread. The peer does not notice.
    ///
    /// # Errors
    /// [`ChannelError`], the system's.
    fn read_unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError>;
}

/// Where migrations come in: a main connection, and the channels that belong to it.
pub trait MainListener: ChannelSource {
    /// Waits for a main connection. Channels that come before it are kept for
    /// [`ChannelSource::next_channel`].
    ///
    /// # Errors
    /// [`ChannelError`] if none comes in time, or the listener has been stopped.
    fn accept_main(&mut self) -> Result<Incoming, ChannelError>;

    /// Makes blocked and later calls fail, from another thread.
    ///
    /// # Errors
    /// [`ChannelError`], the system's.
    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError>;
}

/// A transport that opens main connections, too.
pub trait MainTransport: Transport {
    /// Connects the main connection.
    ///
    /// # Errors
    /// [`ChannelError`] if the peer cannot be reached within the transport's deadline.
    fn connect_main(&self) -> Result<Outgoing, ChannelError>;
}

/// The destination's end of a main connection. [`Incoming::accept`] is the only way to tell the
/// source that the migration has arrived; dropping this before is a failure there.
pub struct Incoming {
    connection: Box<dyn MainConnection>,
    accepted: bool,
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming").finish_non_exhaustive()
    }
}

impl Incoming {
    /// Takes over a connection; for transports.
    ///
    /// # Errors
    /// Those of [`MainConnection::fail_on_close`].
    pub fn new(mut connection: Box<dyn MainConnection>) -> Result<Self, ChannelError> {
        connection.fail_on_close(true)?;
        Ok(Self {
            connection,
            accepted: false,
        })
    }

    /// Tells the source that all has arrived, and is where it is to stay: closes the connection in
    /// order. Second handles of it have to be gone by then, or the source waits for them.
    ///
    /// # Errors
    /// [`ChannelError`] if the source is known to have failed or given up, as far as the transport
    /// can tell. A source that gives up a moment later is not noticed.
    pub fn accept(mut self) -> Result<(), ChannelError> {
        self.connection.check()?;
        self.connection.fail_on_close(false)?;
        self.accepted = true;
        Ok(())
    }

    /// The connection itself, such as for a return path.
    pub fn connection(&mut self) -> &mut dyn MainConnection {
        self.connection.as_mut()
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.accepted {
            self.connection.fail();
        }
    }
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.connection.read(buffer)
    }
}

/// The source's end of a main connection. [`Outgoing::finish`] is the only way to learn that the
/// migration has arrived; dropping this before is a failure at the destination.
pub struct Outgoing {
    connection: Box<dyn MainConnection>,
    ended: bool,
}

impl std::fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outgoing").finish_non_exhaustive()
    }
}

impl Outgoing {
    /// Takes over a connection; for transports.
    ///
    /// # Errors
    /// Those of [`MainConnection::fail_on_close`].
    pub fn new(mut connection: Box<dyn MainConnection>) -> Result<Self, ChannelError> {
        connection.fail_on_close(true)?;
        Ok(Self {
            connection,
            ended: false,
        })
    }

    /// Ends the stream and waits until the destination closes the connection in order: then the
    /// migration has arrived.
    ///
    /// # Errors
    /// [`ChannelError::Stalled`] after `timeout`; [`ChannelError`] if the destination has failed.
    pub fn finish(self, timeout: Duration) -> Result<(), ChannelError> {
        self.finish_noting(timeout, || ())
    }

    /// As [`Outgoing::finish`]; calls `waiting` once if the destination takes longer than the
    /// connection's own deadline.
    ///
    /// # Errors
    /// As [`Outgoing::finish`].
    pub fn finish_noting(
        mut self,
        timeout: Duration,
        waiting: impl FnOnce(),
    ) -> Result<(), ChannelError> {
        self.connection.fail_on_close(false)?;
        let finished = end(self.connection.as_mut(), timeout, waiting);
        match finished {
            Ok(()) => self.ended = true,
            // A destination that is not done yet must not take it that this end still waits.
            Err(_) => drop(self.connection.fail_on_close(true)),
        }
        finished
    }

    /// The connection itself, such as for a return path.
    pub fn connection(&mut self) -> &mut dyn MainConnection {
        self.connection.as_mut()
    }
}

/// Ends the stream, and waits for the destination to close the connection in order.
fn end(
    connection: &mut dyn MainConnection,
    timeout: Duration,
    waiting: impl FnOnce(),
) -> Result<(), ChannelError> {
    connection.end_writing()?;
    let begun = Instant::now();
    let mut waiting = Some(waiting);
    loop {
        match connection.wait_closed() {
            Err(ChannelError::Stalled { .. }) if begun.elapsed() < timeout => {
                if let Some(waiting) = waiting.take() {
                    waiting();
                }
            }
            Err(ChannelError::Stalled { .. }) => {
                return Err(ChannelError::Stalled { deadline: timeout });
            }
            other => return other,
        }
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        if !self.ended {
            self.connection.fail();
        }
    }
}

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.connection.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.connection.flush()
    }
}
