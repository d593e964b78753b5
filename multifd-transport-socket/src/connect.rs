//! The connecting side.

use crate::tls::{Session, TlsClient};
use crate::zero_copy::{Counters, ZeroCopy, ZeroCopyCounts};
use crate::{Address, SocketOptions, SocketStream};
use multifd_core::{ChannelError, SendChannel, Transport};
use socket2::{Domain, SockAddr, Socket, Type};
use std::io;
use std::net::ToSocketAddrs;
use std::sync::Arc;
use std::time::Instant;

/// Connects channels, and QEMU's main connection, to one address.
#[derive(Debug, Clone)]
pub struct SocketTransport {
    address: Address,
    options: SocketOptions,
    zero_copy: Arc<Counters>,
    tls: Option<TlsClient>,
}

impl SocketTransport {
    /// A transport to `address`; nothing is connected yet.
    pub fn new(address: Address, options: SocketOptions) -> Self {
        Self {
            address,
            options,
            zero_copy: Arc::default(),
            tls: None,
        }
    }

    /// Every connection speaks TLS. A handshake is done by whoever first uses its connection: that of a channel on the channel's
    /// own thread.
    #[must_use]
    pub fn with_tls(mut self, tls: TlsClient) -> Self {
        self.tls = Some(tls);
        self
    }

    /// How zero-copy sends have gone so far, over all connections.
    pub fn zero_copy_counts(&self) -> ZeroCopyCounts {
        self.zero_copy.read()
    }

    /// Makes one connection. A name with several addresses is tried in the resolver's order, within one deadline.
    ///
    /// # Errors
    /// [`ChannelError::Io`] with the system's reason and the address, as for a refusal or the deadline.
    pub fn connect(&self) -> Result<SocketStream, ChannelError> {
        self.try_connect().map_err(|error| {
            let message = format!("{}: {error}", self.address);
            io::Error::new(error.kind(), message).into()
        })
    }

    fn try_connect(&self) -> io::Result<SocketStream> {
        let deadline = Instant::now() + self.options.connect;
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        let targets = resolve(&self.address)?;
        let mut untried = u32::try_from(targets.len()).unwrap_or(u32::MAX);
        for target in targets {
            // One that does not answer must leave time for the others.
            let left = deadline.saturating_duration_since(Instant::now()) / untried.max(1);
            untried -= 1;
            if left.is_zero() {
                last = io::ErrorKind::TimedOut.into();
                break;
            }
            // A family this machine does not have is no reason not to try the next address.
            let connected = stream_socket(&target).and_then(|socket| {
                socket.connect_timeout(&target, left)?;
                Ok(socket)
            });
            match connected {
                Ok(socket) => return self.stream(socket),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

impl SocketTransport {
    fn stream(&self, socket: Socket) -> io::Result<SocketStream> {
        let tls = self.tls.as_ref().map(Session::client).transpose();
        SocketStream::with_session(socket, self.options.stall, tls.map_err(io::Error::other)?)
    }
}

impl Transport for SocketTransport {
    fn open(&self, _id: u8) -> Result<Box<dyn SendChannel>, ChannelError> {
        let zero_copy = ZeroCopy::new(Arc::clone(&self.zero_copy), self.options.zero_copy_fallback);
        Ok(Box::new(self.connect()?.with_zero_copy(zero_copy)))
    }
}

/// The socket addresses of an address. An empty host is every address of this machine.
pub(crate) fn resolve(address: &Address) -> io::Result<Vec<SockAddr>> {
    match address {
        Address::Unix(path) => Ok(vec![SockAddr::unix(path)?]),
        Address::Tcp { host, port } => {
            let host = if host.is_empty() { "0.0.0.0" } else { host };
            Ok((host, *port).to_socket_addrs()?.map(SockAddr::from).collect())
        }
    }
}

/// A stream socket of an address's family.
pub(crate) fn stream_socket(address: &SockAddr) -> io::Result<Socket> {
    Socket::new(Domain::from(i32::from(address.family())), Type::STREAM, None)
}
