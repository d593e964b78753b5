//! A stream as a main connection: bytes both ways, and how they end.

use super::SocketStream;
use crate::connection::Step;
use crate::tls::Cut;
use crate::zero_copy::ZeroCopy;
use multifd_core::{ChannelError, Iov, MainConnection, Progress, Unblock};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::Instant;

impl MainConnection for SocketStream {
    fn second(&mut self) -> Result<Box<dyn MainConnection>, ChannelError> {
        Ok(Box::new(Self {
            connection: Arc::clone(&self.connection),
            head: std::mem::take(&mut self.head),
            progress: self.progress.clone(),
            zero_copy: ZeroCopy::default(),
            cut: self.cut,
            guarded: self.guarded,
        }))
    }

    fn fail_on_close(&mut self, fail: bool) -> Result<(), ChannelError> {
        Ok(self.connection.fail_on_close(fail)?)
    }

    fn fail(&mut self) {
        self.connection.fail();
    }

    /// Under TLS its own end is not sent: a QEMU does not read it on its main connection, and
    /// unread bytes would have the connection reset.
    fn end_writing(&mut self) -> Result<(), ChannelError> {
        Ok(self.connection.end_writing()?)
    }

    fn wait_closed(&mut self) -> Result<(), ChannelError> {
        self.connection.introduce()?;
        let since = Instant::now();
        loop {
            // A QEMU closes its connection without ending a session; one that breaks off shows as
            // an error of the socket.
            let step = self
                .connection
                .recv_some(self.clock(), &mut [0], since, 0, Cut::IsEnd)?;
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

    /// TCP tells by a reset. Other sockets cannot tell a source that gave up from one that closes
    /// as soon as it has sent all, as a QEMU does.
    fn check(&mut self) -> Result<(), ChannelError> {
        match self.connection.socket.take_error()? {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }

    fn accept_unmarked_end(&mut self, accept: bool) {
        self.cut = if accept { Cut::IsEnd } else { Cut::IsError };
    }

    fn set_progress(&mut self, progress: Arc<Progress>) {
        // A socket that is gone says so when it is used.
        let _ = self.connection.follow_clock(progress.deadline());
        self.progress = Some(progress);
    }

    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
        Ok(self.handle(Shutdown::Both))
    }

    /// The peer notices nothing, so it cannot take a failure for an orderly end.
    fn read_unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
        Ok(self.handle(Shutdown::Read))
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
                .recv_some(self.clock(), buffer, since, 0, self.cut)
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
        self.send_iovs(&[Iov::from(buffer)], false)
            .map_err(into_io)?;
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
