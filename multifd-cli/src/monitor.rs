//! A QEMU's monitor, as commands reach it.

use crate::failure::{Failure, doing};
use crate::{report, signals};
use multifd_qemu::qmp::{Hooks, Qmp, QmpStream};
use multifd_transport_socket::{Address, SocketOptions, SocketStream, SocketTransport};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

/// How often a wait at the monitor looks again.
const TICK: Duration = Duration::from_millis(100);

/// A connection to a monitor.
struct Connection {
    stream: SocketStream,
    is_unix: bool,
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl QmpStream for Connection {
    fn unix_socket(&self) -> Option<BorrowedFd<'_>> {
        self.is_unix.then(|| self.stream.as_fd())
    }
}

/// Connects to a monitor; every answer must come within `deadline`.
pub(crate) fn connect(address: &Address, deadline: Duration) -> Result<Qmp, Failure> {
    let options = SocketOptions::default().connect(deadline).stall(TICK);
    let stream = SocketTransport::new(address.clone(), options).connect();
    let connection = Connection {
        stream: stream.map_err(doing("connecting to QMP"))?,
        is_unix: matches!(address, Address::Unix(_)),
    };
    Ok(Qmp::over(
        Box::new(connection),
        &address.to_string(),
        deadline,
    )?)
}

/// What a person is told, and signals that wait.
pub(crate) fn hooks() -> Hooks {
    Hooks::default()
        .on_note(Arc::new(report::note))
        .on_changed(Arc::new(signals::changed))
}
