//! The connecting side.

use crate::bandwidth::Bandwidth;
use crate::inherited;
use crate::options;
use crate::secret::Secret;
use crate::tls::{Session, TlsClient};
use crate::zero_copy::{Counters, ZeroCopy, ZeroCopyCounts};
use crate::{Address, SocketOptions, SocketStream, Source};
use multifd_core::{Capabilities, ChannelError, MainTransport, Outgoing, SendChannel, Transport};
use socket2::{Domain, SockAddr, Socket, Type};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Connects channels, and QEMU's main connection, to one destination: by one address, or by several
/// in turn.
#[derive(Debug, Clone)]
pub struct SocketTransport {
    /// Each with how many of its inherited connections have been used.
    addresses: Vec<(Address, Arc<AtomicUsize>)>,
    sources: Vec<Source>,
    options: SocketOptions,
    zero_copy: Arc<Counters>,
    opened: Arc<Opened>,
    tls: Option<TlsClient>,
    secret: Option<Secret>,
    bandwidth: Option<Bandwidth>,
}

impl SocketTransport {
    /// A transport to `address`; nothing is connected yet.
    pub fn new(address: Address, options: SocketOptions) -> Self {
        Self {
            addresses: vec![(address, Arc::default())],
            sources: Vec::new(),
            options,
            zero_copy: Arc::default(),
            opened: Arc::default(),
            tls: None,
            secret: None,
            bandwidth: None,
        }
    }

    /// One more address of the same destination, so that channels are spread over several network
    /// cards: channel `i` goes to address `i` modulo their number, and the main connection to the
    /// first.
    #[must_use]
    pub fn and_to(mut self, address: Address) -> Self {
        self.addresses.push((address, Arc::default()));
        self
    }

    /// A way for connections to leave this machine; of several, channel `i` goes by number `i`
    /// modulo their number, and the main connection by the first. For TCP only.
    #[must_use]
    pub fn from_source(mut self, source: Source) -> Self {
        self.sources.push(source);
        self
    }

    /// Every connection speaks TLS, and each address must be that of the name the credentials were
    /// made for. A handshake is done by whoever first uses its connection: that of a channel on the
    /// channel's own thread.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn with_tls(mut self, tls: TlsClient) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Every connection shows first that it knows a secret, and sees to it that the destination
    /// does.
    #[cfg(feature = "secret")]
    #[must_use]
    pub fn with_secret(mut self, secret: Secret) -> Self {
        self.secret = Some(secret);
        self
    }

    /// All connections together send no more than this allows.
    #[must_use]
    pub fn with_bandwidth(mut self, bandwidth: Bandwidth) -> Self {
        self.bandwidth = Some(bandwidth);
        self
    }

    /// How zero-copy sends have gone so far, over all connections.
    pub fn zero_copy_counts(&self) -> ZeroCopyCounts {
        self.zero_copy.read()
    }

    /// Makes one bare connection to the first address. A name with several addresses is tried in
    /// the resolver's order, within one deadline. For a migration's main connection see
    /// [`MainTransport::connect_main`].
    ///
    /// # Errors
    /// [`ChannelError::Io`] with the system's reason and the address, as for a refusal or the
    /// deadline.
    pub fn connect(&self) -> Result<SocketStream, ChannelError> {
        self.connect_by(0)
    }

    /// Makes a connection by the addresses and the source whose turn it is.
    fn connect_by(&self, turn: usize) -> Result<SocketStream, ChannelError> {
        let source = self.sources.get(turn % self.sources.len().max(1));
        let Some((address, used)) = self.addresses.get(turn % self.addresses.len()) else {
            return Err(ChannelError::Misconfigured(
                "there is no address to connect to".into(),
            ));
        };
        self.try_connect(address, used, source).map_err(|error| {
            let from = source.map_or(String::new(), |source| format!(" from {source}"));
            io::Error::new(error.kind(), format!("{address}{from}: {error}")).into()
        })
    }

    fn try_connect(
        &self,
        address: &Address,
        used: &AtomicUsize,
        source: Option<&Source>,
    ) -> io::Result<SocketStream> {
        if let Address::Descriptors(_) | Address::Activated = address {
            return self.stream(self.inherited(address, used)?);
        }
        let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
        let targets = resolve(address, "localhost")?;
        // How long a resolver takes is its own affair.
        let deadline = Instant::now() + self.options.connect;
        let mut untried = u32::try_from(targets.len()).unwrap_or(u32::MAX);
        for target in targets {
            // One that does not answer must leave time for the others.
            let left = deadline.saturating_duration_since(Instant::now()) / untried.max(1);
            untried -= 1;
            if left.is_zero() {
                last = ErrorKind::TimedOut.into();
                break;
            }
            // A family this machine does not have is no reason not to try the next address.
            match self.connect_socket(&target, source, left) {
                Ok(socket) => return self.stream(socket),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn connect_socket(
        &self,
        target: &SockAddr,
        source: Option<&Source>,
        timeout: Duration,
    ) -> io::Result<Socket> {
        let socket = stream_socket(target)?;
        self.options.apply(&socket)?;
        match source {
            Some(Source::Address(from)) => socket.bind(&SocketAddr::new(*from, 0).into())?,
            Some(Source::Interface(name)) => socket.bind_device(Some(name.as_bytes()))?,
            None => {}
        }
        if target.is_unix() {
            // A full backlog is waited for only so.
            socket.set_write_timeout(Some(timeout))?;
            socket.connect(target)?;
        } else {
            self.options.fit(&socket, target)?;
            socket.connect_timeout(target, timeout)?;
        }
        Ok(socket)
    }

    /// Whether the kernel can send from guest memory: not under TLS, and not over Unix sockets.
    fn zero_copy(&self) -> Result<(), &'static str> {
        let is_unix =
            |address: &Address| matches!(address, Address::Unix(_) | Address::Abstract(_));
        if self.options.zero_copy_fallback {
            Ok(())
        } else if self.tls.is_some() {
            Err("pages cannot be sent without a copy under TLS, which encrypts them first")
        } else if self.addresses.iter().any(|(address, _)| is_unix(address)) {
            Err("pages cannot be sent without a copy over Unix sockets")
        } else {
            Ok(())
        }
    }

    /// The next of the connections this process has inherited.
    fn inherited(&self, address: &Address, used: &AtomicUsize) -> io::Result<Socket> {
        let numbers = inherited::numbers(address)?;
        let which = used.fetch_add(1, Ordering::Relaxed);
        let number = numbers.get(which).ok_or_else(|| {
            let why = format!(
                "it takes connection {}, and there are only {}: the main one, and one a channel",
                which + 1,
                numbers.len()
            );
            io::Error::new(ErrorKind::NotFound, why)
        })?;
        let socket = inherited::stream(*number)?;
        if socket.is_listener()? {
            let why = format!("descriptor {number} listens: it is no connection");
            return Err(io::Error::new(ErrorKind::InvalidInput, why));
        }
        self.options.apply(&socket)?;
        Ok(socket)
    }

    fn stream(&self, socket: Socket) -> io::Result<SocketStream> {
        let tls = self.tls.as_ref().map(Session::client).transpose();
        SocketStream::connected(
            socket,
            self.options.stall,
            tls.map_err(io::Error::other)?,
            self.secret.clone(),
            self.bandwidth.clone(),
        )
    }
}

impl Transport for SocketTransport {
    fn open(&self, id: u8) -> Result<Box<dyn SendChannel>, ChannelError> {
        let zero_copy = ZeroCopy::new(Arc::clone(&self.zero_copy), self.options.zero_copy_fallback);
        let stream = self.connect_by(id.into())?;
        self.opened.note(stream.stays_here());
        Ok(Box::new(stream.for_sending(zero_copy)?))
    }

    /// Within one host few channels are worth having busy; whether all lead there is known once
    /// they are open.
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
            .useful_channels(options::useful_channels().filter(|_| self.opened.all_stay_here()))
            .zero_copy(self.zero_copy())
    }
}

impl MainTransport for SocketTransport {
    fn connect_main(&self) -> Result<Outgoing, ChannelError> {
        Outgoing::new(Box::new(self.connect()?))
    }
}

/// How many channels have been opened, and how many of them lead to this very host.
#[derive(Debug, Default)]
struct Opened {
    channels: AtomicUsize,
    here: AtomicUsize,
}

impl Opened {
    fn note(&self, here: bool) {
        self.channels.fetch_add(1, Ordering::Relaxed);
        self.here.fetch_add(usize::from(here), Ordering::Relaxed);
    }

    fn all_stay_here(&self) -> bool {
        let [channels, here] =
            [&self.channels, &self.here].map(|count| count.load(Ordering::Relaxed));
        channels > 0 && channels == here
    }
}

/// The socket addresses of an address; `anywhere` is the host an empty one stands for.
pub(crate) fn resolve(address: &Address, anywhere: &str) -> io::Result<Vec<SockAddr>> {
    match address {
        Address::Unix(path) => Ok(vec![SockAddr::unix(path)?]),
        Address::Abstract(name) => Ok(vec![SockAddr::unix(format!("\0{name}"))?]),
        Address::Vsock { cid, port } => Ok(vec![SockAddr::vsock(*cid, *port)]),
        Address::Tcp { host, port } => {
            let host = if host.is_empty() { anywhere } else { host };
            Ok((host, *port)
                .to_socket_addrs()?
                .map(SockAddr::from)
                .collect())
        }
        Address::Descriptors(_) | Address::Activated => {
            Err(io::Error::other("descriptors are no addresses"))
        }
    }
}

/// A stream socket of an address's family.
pub(crate) fn stream_socket(address: &SockAddr) -> io::Result<Socket> {
    Socket::new(
        Domain::from(i32::from(address.family())),
        Type::STREAM,
        None,
    )
}
