//! One TLS connection over a socket that is only ever used without waiting: waits are for whoever
//! holds no lock.

use crate::sys;
use crate::tls::{Received, TlsClient, TlsServer};
use multifd_core::sync::lock;
use multifd_core::{ChannelError, Iov};
use rustls::{
    AlertDescription, ClientConnection, Connection, Error as Rustls, InvalidMessage,
    ServerConnection,
};
use socket2::Socket;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::sync::{Mutex, MutexGuard};

/// Bytes that are encrypted at once: one record.
const RECORD: usize = 16 << 10;
/// Bytes that may wait, encrypted, to be written.
const PENDING: usize = 256 << 10;

/// A TLS session. One thread may read while another writes.
pub(crate) struct Session {
    state: Mutex<State>,
}

struct State {
    connection: Connection,
    staging: Vec<u8>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

impl Session {
    pub(crate) fn client(client: &TlsClient) -> Result<Self, ChannelError> {
        let connection = ClientConnection::new(client.config.clone(), client.name.clone())
            .map_err(|e| refused("TLS", &e))?;
        Ok(Self::new(connection.into()))
    }

    pub(crate) fn server(server: &TlsServer) -> Result<Self, ChannelError> {
        let connection =
            ServerConnection::new(server.config.clone()).map_err(|e| refused("TLS", &e))?;
        Ok(Self::new(connection.into()))
    }

    fn new(mut connection: Connection) -> Self {
        connection.set_buffer_limit(Some(PENDING));
        Self {
            state: Mutex::new(State {
                connection,
                staging: vec![0; RECORD],
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Whether the handshake is not over yet.
    pub(crate) fn is_handshaking(&self) -> bool {
        self.state().connection.is_handshaking()
    }

    /// Goes as far with the handshake as the socket allows; returns whether it waits to be written
    /// to, and not to be read.
    pub(crate) fn handshake(&self, socket: &Socket) -> Result<bool, ChannelError> {
        let mut state = self.state();
        let connection = &mut state.connection;
        while connection.is_handshaking() {
            if !write_out(connection, socket)? {
                return Ok(true);
            }
            if !connection.is_handshaking() {
                break;
            }
            match connection.read_tls(&mut Wire(socket)) {
                Ok(0) => {
                    let why = "the peer closed the connection in the middle of the TLS handshake: does it expect TLS, and \
                               trust our certificate?";
                    return Err(ChannelError::Peer(why.into()));
                }
                Ok(_) => process(connection, socket)?,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(e.into()),
            }
        }
        write_out(connection, socket).map(|done| !done)
    }

    /// Encrypts the start of `iovs`, and writes out what the socket takes; returns how many bytes
    /// of `iovs` were taken, and whether the socket takes more.
    pub(crate) fn send(
        &self,
        socket: &Socket,
        iovs: &[Iov<'_>],
    ) -> Result<(usize, bool), ChannelError> {
        let mut state = self.state();
        let State {
            connection,
            staging,
        } = &mut *state;
        let mut taken = 0;
        for iov in iovs {
            let mut left = *iov;
            while !left.is_empty() {
                // Guest memory may change while it is encrypted: only a copy stays what it is.
                let n = left.copy_to(staging);
                let accepted = connection
                    .writer()
                    .write(staging.get(..n).unwrap_or_default())?;
                taken += accepted;
                if accepted < n {
                    return Ok((taken, write_out(connection, socket)?));
                }
                left = left.advanced(n);
            }
        }
        Ok((taken, write_out(connection, socket)?))
    }

    /// Whether anything encrypted has not been written out.
    pub(crate) fn flush(&self, socket: &Socket) -> Result<bool, ChannelError> {
        write_out(&mut self.state().connection, socket)
    }

    /// Decrypts what has come into `buffer`.
    pub(crate) fn recv(
        &self,
        socket: &Socket,
        buffer: &mut [u8],
    ) -> Result<Received, ChannelError> {
        let mut state = self.state();
        let connection = &mut state.connection;
        loop {
            match connection.reader().read(buffer) {
                Ok(0) => return Ok(Received::End),
                Ok(n) => return Ok(Received::Bytes(n)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Ok(Received::Cut),
                Err(e) => return Err(e.into()),
            }
            match connection.read_tls(&mut Wire(socket)) {
                // Whether that is a proper end the reader knows.
                Ok(_) => process(connection, socket)?,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(Received::Nothing),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Reads what is there and is of no use, such as tickets for a next session: left unread, it
    /// would have the connection reset when it is closed.
    pub(crate) fn drain(&self, socket: &Socket) {
        while matches!(self.recv(socket, &mut [0; 256]), Ok(Received::Bytes(_))) {}
    }

    /// Says that nothing more will be sent.
    pub(crate) fn end(&self) {
        self.state().connection.send_close_notify();
    }
}

/// Writes out what is encrypted; whether that is all of it.
fn write_out(connection: &mut Connection, socket: &Socket) -> Result<bool, ChannelError> {
    while connection.wants_write() {
        match connection.write_tls(&mut Wire(socket)) {
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(true)
}

fn process(connection: &mut Connection, socket: &Socket) -> Result<(), ChannelError> {
    let Err(error) = connection.process_new_packets() else {
        return Ok(());
    };
    // The peer is told why, if it still listens.
    let _ = write_out(connection, socket);
    let when = if connection.is_handshaking() {
        "the TLS handshake"
    } else {
        "TLS"
    };
    Err(refused(when, &error))
}

/// What rustls says, when, and what to do about it where that is known.
fn refused(when: &str, error: &Rustls) -> ChannelError {
    let advice = match error {
        Rustls::InvalidMessage(
            InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
        ) => ": the peer does not speak TLS, or has broken off",
        Rustls::NoCertificatesPresented => ": every client must have a certificate here",
        Rustls::AlertReceived(AlertDescription::CertificateRequired) => {
            ": the peer asks for a certificate (client-cert.pem, client-key.pem)"
        }
        _ => "",
    };
    ChannelError::Peer(format!("{when}: {error}{advice}"))
}

/// The socket, read and written without waiting.
struct Wire<'a>(&'a Socket);

impl Read for Wire<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match sys::recv(self.0, buffer, libc::MSG_DONTWAIT) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buffer)])
    }

    fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        let iovs: Vec<Iov<'_>> = buffers.iter().map(|slice| Iov::from(&**slice)).collect();
        loop {
            match sys::send(self.0, &iovs, libc::MSG_DONTWAIT) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
