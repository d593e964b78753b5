//! What a monitor listens at, and descriptors that are passed over it.

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// A stream that a monitor listens at. Reads must end within about 100 ms if nothing comes, with
/// [`ErrorKind::TimedOut`] or [`ErrorKind::WouldBlock`].
pub trait QmpStream: Read + Write + Send {
    /// The Unix socket that it is. Over others no descriptor can be passed to QEMU, which then
    /// does not read or write files by itself.
    fn unix_socket(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl QmpStream for UnixStream {
    fn unix_socket(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }
}

impl QmpStream for TcpStream {}

/// Writes bytes, and passes a descriptor with the first of them.
pub(super) fn pass(
    stream: &mut dyn QmpStream,
    bytes: &[u8],
    descriptor: BorrowedFd<'_>,
) -> io::Result<()> {
    let socket = stream.unix_socket().ok_or_else(|| {
        io::Error::new(
            ErrorKind::Unsupported,
            "descriptors can only be passed over a Unix socket",
        )
    })?;
    let descriptors = [descriptor];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    let sent = loop {
        let iov = [IoSlice::new(bytes)];
        match sendmsg(socket, &iov, &mut control, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    stream.write_all(bytes.get(sent..).unwrap_or_default())
}
