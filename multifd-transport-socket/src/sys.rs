//! The system calls that take raw IOVs, and `poll`.

use multifd_core::{Iov, Region};
use socket2::Socket;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Most IOVs one call takes.
pub(crate) const IOV_MAX: usize = libc::UIO_MAXIOV as usize;

/// A message over `count` IOVs at `iovs`, at most [`IOV_MAX`] of them.
fn message(iovs: *const libc::iovec, count: usize) -> libc::msghdr {
    // SAFETY: a msghdr of zeros is one without name, control data and IOVs.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iovs.cast_mut();
    message.msg_iovlen = count.min(IOV_MAX) as _;
    message
}

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// One `sendmsg` of as many IOVs as it takes; returns the bytes sent.
pub(crate) fn send(socket: &Socket, iovs: &[Iov<'_>], flags: libc::c_int) -> io::Result<usize> {
    // `Iov` has the layout of `struct iovec`: that is documented and asserted below.
    let message = message(iovs.as_ptr().cast(), iovs.len());
    // SAFETY: the IOVs name memory that is readable while they live; the kernel only reads the
    // message and the memory.
    check(unsafe {
        libc::sendmsg(
            socket.as_raw_fd(),
            &raw const message,
            libc::MSG_NOSIGNAL | flags,
        )
    })
}

/// Whether the descriptor `number` was opened by this program, and not inherited: it would not
/// outlive an `exec`.
pub(crate) fn is_ours(number: i32) -> io::Result<bool> {
    // SAFETY: the call only reads a flag; any number is fine.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    check(flags as isize)?;
    Ok(flags & libc::FD_CLOEXEC != 0)
}

/// One more descriptor for what the descriptor `number` is for, if it is open. Nothing is taken
/// from whoever owns that one.
pub(crate) fn duplicate(number: i32) -> io::Result<Socket> {
    // SAFETY: the call only makes a new descriptor; any number is fine.
    let result = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    check(result as isize)?;
    // SAFETY: it has just been made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(result) }.into())
}

/// Lets `MSG_ZEROCOPY` mean something on a socket.
pub(crate) fn enable_zero_copy(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option's value is one `int`, which is there and only read.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ZEROCOPY,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    check(result as isize).map(|_| ())
}

/// One `recvmsg` into as many regions as it takes, waiting for all of their bytes; returns the
/// bytes received.
pub(crate) fn recv_regions(socket: &Socket, regions: &[Region<'_>]) -> io::Result<usize> {
    // `Region` has the layout of `struct iovec`: that is documented and asserted below.
    let mut message = message(regions.as_ptr().cast(), regions.len());
    // SAFETY: the regions name guest memory that stays mapped while they live, and that anyone may
    // write to.
    check(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_WAITALL) })
}

/// One `recv` into `buffer`; returns the bytes received.
pub(crate) fn recv(socket: &Socket, buffer: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
    // SAFETY: the buffer is ours to write to.
    check(unsafe {
        libc::recv(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            flags,
        )
    })
}

/// Waits until one of `fds` is ready for `events` or `timeout` has passed (never, if there is
/// none); returns which are.
pub(crate) fn poll(
    fds: &[BorrowedFd<'_>],
    events: libc::c_short,
    timeout: Option<Duration>,
) -> io::Result<Vec<bool>> {
    let mut polled: Vec<libc::pollfd> = fds
        .iter()
        .map(|fd| libc::pollfd {
            fd: fd.as_raw_fd(),
            events,
            revents: 0,
        })
        .collect();
    // Rounded up, so that a wait never ends before its time.
    let millis = timeout.map_or(-1, |t| {
        i32::try_from(t.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
    });
    // SAFETY: the array has as many entries as it is said to have, and is ours to write to.
    let result = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, millis) };
    match check(result as isize) {
        Ok(_) => Ok(polled.iter().map(|fd| fd.revents != 0).collect()),
        Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(vec![false; fds.len()]),
        Err(e) => Err(e),
    }
}

const _: () = {
    assert!(size_of::<Iov<'_>>() == size_of::<libc::iovec>());
    assert!(align_of::<Iov<'_>>() == align_of::<libc::iovec>());
    assert!(size_of::<Region<'_>>() == size_of::<libc::iovec>());
    assert!(align_of::<Region<'_>>() == align_of::<libc::iovec>());
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_iov_is_an_iovec() {
        let bytes = [1u8, 2, 3];
        let iov = Iov::from(&bytes[..]);
        // SAFETY: same size and alignment, asserted above; both are a pointer and a length.
        let raw: libc::iovec = unsafe { std::mem::transmute_copy(&iov) };
        assert_eq!(
            (raw.iov_base.cast_const().cast(), raw.iov_len),
            (bytes.as_ptr(), 3)
        );
        let block = multifd_core::RamBlock::anonymous("b", 4096, 4096).unwrap();
        let region = block.page(0).unwrap();
        // SAFETY: as above.
        let raw: libc::iovec = unsafe { std::mem::transmute_copy(&region) };
        assert_eq!(
            (raw.iov_base.cast(), raw.iov_len),
            (region.as_mut_ptr(), 4096)
        );
    }
}
