//! The listening side: connections are told apart by their first four bytes.

use crate::connect::{resolve, stream_socket};
use crate::door::{Admission, Arrived, Door, MAX_WAITING, NOT_ALLOWED, reset_unless_taken};
use crate::lobby::{Lobby, Patience, too_many};
#[cfg(any(feature = "tls", feature = "secret"))]
use crate::reception::{Reception, accept_on_thread};
use crate::unix_path::{BoundPath, remove_abandoned};
use crate::{Address, SocketOptions, SocketStream, inherited};
use multifd_core::packet::Greeting;
use multifd_core::{ChannelError, ChannelSource, Incoming, MainListener, RecvChannel, Unblock};
use socket2::{SockAddr, Socket};
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::sync::Arc;
#[cfg(any(feature = "tls", feature = "secret"))]
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a channel that should be there may still take.
const SOON: Duration = Duration::from_secs(3);

/// Listening sockets, at one address or several. A Unix socket's path is removed when it is
/// dropped.
///
/// Who is no migration is turned away, and waited for no longer: strangers end nothing. What they
/// do see is in [`Admission::on_refusal`].
#[derive(Debug)]
pub struct SocketListener {
    door: Arc<Door>,
    addresses: Vec<Address>,
    /// Removed with the listener.
    _paths: Vec<BoundPath>,
    arrivals: Arrivals,
    /// Channels that came before they were asked for.
    channels: VecDeque<SocketStream>,
}

/// How connections become known for what they are.
#[derive(Debug)]
enum Arrivals {
    /// They say so.
    Say(Lobby),
    /// They prove something first.
    #[cfg(any(feature = "tls", feature = "secret"))]
    Prove {
        reception: Arc<Reception>,
        accepting: Option<JoinHandle<()>>,
    },
}

struct Handle(Arc<Door>);

impl Unblock for Handle {
    fn unblock(&self) {
        self.0.stop();
    }
}

impl SocketListener {
    /// Listens on one address, for anybody. A Unix socket's path that a dead process left behind is
    /// taken over.
    ///
    /// # Errors
    /// [`ChannelError::Io`] with the system's reason and the address, as when it is in use.
    pub fn bind(address: &Address, options: SocketOptions) -> Result<Self, ChannelError> {
        Self::bind_all(std::slice::from_ref(address), options, Admission::default())
    }

    /// Listens on all of `addresses`, for those that `admission` lets in. Of inherited descriptors,
    /// those that listen are listened on, the others are taken for connections that have come.
    ///
    /// # Errors
    /// As for [`SocketListener::bind`]; also if a thread cannot be had that handshakes need.
    pub fn bind_all(
        addresses: &[Address],
        options: SocketOptions,
        admission: Admission,
    ) -> Result<Self, ChannelError> {
        let (mut sockets, mut came, mut paths) = (Vec::new(), Vec::new(), Vec::new());
        for address in addresses {
            let named =
                |error: io::Error| io::Error::new(error.kind(), format!("{address}: {error}"));
            if let Address::Descriptors(_) | Address::Activated = address {
                for number in inherited::numbers(address).map_err(named)? {
                    let socket = inherited::stream(number).map_err(named)?;
                    options.apply(&socket).map_err(named)?;
                    if socket.is_listener().map_err(named)? {
                        socket.set_nonblocking(true).map_err(named)?;
                        sockets.push(socket);
                    } else {
                        came.push(socket);
                    }
                }
                continue;
            }
            sockets.push(listen_on(address, &options).map_err(named)?);
            if let Address::Unix(path) = address {
                paths.push(BoundPath::new(path));
            }
        }
        let addresses: Result<Vec<_>, _> = sockets.iter().map(local_address).collect();
        #[cfg(any(feature = "tls", feature = "secret"))]
        let proves = admission.proves();
        let door = Arc::new(Door::new(sockets, options, admission)?);
        let mut listener = Self {
            door: Arc::clone(&door),
            addresses: addresses?,
            _paths: paths,
            arrivals: Arrivals::Say(Lobby::default()),
            channels: VecDeque::new(),
        };
        #[cfg(any(feature = "tls", feature = "secret"))]
        if proves {
            let reception = Arc::new(Reception::new(door));
            listener.arrivals = Arrivals::Prove {
                accepting: Some(accept_on_thread(Arc::clone(&reception))?),
                reception,
            };
        }
        for socket in came {
            let peer = socket.peer_addr()?;
            reset_unless_taken(&socket);
            if !listener.door.is_allowed(&peer) {
                listener.door.refuse(&peer, NOT_ALLOWED);
                continue;
            }
            match &mut listener.arrivals {
                Arrivals::Say(lobby) => lobby.admit(&listener.door, socket, peer)?,
                #[cfg(any(feature = "tls", feature = "secret"))]
                Arrivals::Prove { reception, .. } => reception.admit(socket, peer)?,
            }
        }
        Ok(listener)
    }

    /// Where it listens first, with the port the system chose.
    ///
    /// # Errors
    /// [`ChannelError::Misconfigured`] if it does not listen at all, having been given connections
    /// only.
    pub fn address(&self) -> Result<Address, ChannelError> {
        let first = self.addresses.first().cloned();
        first.ok_or_else(|| {
            ChannelError::Misconfigured("there is no listening socket, only connections".into())
        })
    }

    /// Everywhere it listens, with the ports the system chose.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Whether a stranger beyond this machine can connect and send a VM: it listens on an address
    /// that is not a loopback one, without TLS.
    pub fn is_exposed(&self) -> bool {
        self.door.is_exposed()
    }

    fn next(&mut self, patience: Patience) -> Result<Option<Arrived>, ChannelError> {
        match &mut self.arrivals {
            Arrivals::Say(lobby) => lobby.next(&self.door, patience),
            #[cfg(any(feature = "tls", feature = "secret"))]
            Arrivals::Prove { reception, .. } => reception.next(patience),
        }
    }

    /// The next channel, by so much patience.
    fn next_by(
        &mut self,
        patience: Patience,
    ) -> Result<Option<Box<dyn RecvChannel>>, ChannelError> {
        loop {
            if let Some(channel) = self.channels.pop_front() {
                return Ok(Some(Box::new(channel)));
            }
            match self.next(patience)? {
                Some((channel, Greeting::Channel)) => return Ok(Some(Box::new(channel))),
                Some((stream, Greeting::Main)) => {
                    self.refuse(&stream, "another migration is under way here".into());
                }
                None => return Ok(None),
            }
        }
    }

    fn keep(&mut self, channel: SocketStream) {
        if self.channels.len() < MAX_WAITING {
            self.channels.push_back(channel);
        } else {
            self.refuse(&channel, too_many());
        }
    }

    fn refuse(&self, stream: &SocketStream, why: String) {
        // It is dropped unfinished: the source learns that.
        if let Ok(peer) = stream.peer() {
            self.door.refuse(&peer, why);
        }
    }
}

impl MainListener for SocketListener {
    /// The deadline for the first connection of a migration is [`SocketOptions::wait`], from then
    /// on [`SocketOptions::stall`]. An error names the first connection that was turned away.
    fn accept_main(&mut self) -> Result<Incoming, ChannelError> {
        let options = self.door.options;
        let mut within = options.wait;
        let mut deadline = within.map(|wait| Instant::now() + wait);
        let mut begun = false;
        loop {
            match self.next(Patience::ForOne(deadline))? {
                Some((stream, Greeting::Main)) => return Incoming::new(Box::new(stream)),
                Some((stream, Greeting::Channel)) => {
                    self.keep(stream);
                    if !begun {
                        begun = true;
                        within = Some(options.stall);
                        deadline = Some(Instant::now() + options.stall);
                    }
                }
                None => {
                    let refused = self.door.first_refusal();
                    let refused =
                        refused.map_or(String::new(), |first| format!("; turned away, {first}"));
                    return Err(ChannelError::Peer(format!(
                        "no main connection of a migration came within {:?} ({} multifd channels did{refused})",
                        within.unwrap_or_default(),
                        self.channels.len(),
                    )));
                }
            }
        }
    }

    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
        Ok(Box::new(Handle(Arc::clone(&self.door))))
    }
}

impl ChannelSource for SocketListener {
    /// The next connection that is a channel. Without `wait`, those that are there count, and are
    /// given the deadline for connecting to say what they are.
    fn next_channel(&mut self, wait: bool) -> Result<Option<Box<dyn RecvChannel>>, ChannelError> {
        let until = Instant::now() + self.door.options.connect;
        let patience = if wait {
            Patience::ForOne(Some(until))
        } else {
            Patience::ForThose(until)
        };
        self.next_by(patience)
    }

    /// Behind something that passes connections on, channels may come after the main connection's
    /// first words.
    fn due_channel(&mut self) -> Result<Option<Box<dyn RecvChannel>>, ChannelError> {
        let soon = self.door.options.connect.min(SOON);
        self.next_by(Patience::ForOne(Some(Instant::now() + soon)))
    }

    fn late_channel(&mut self) -> Result<Option<Box<dyn RecvChannel>>, ChannelError> {
        self.next_by(Patience::ForThose(Instant::now()))
    }
}

impl Drop for SocketListener {
    fn drop(&mut self) {
        #[cfg(any(feature = "tls", feature = "secret"))]
        if let Arrivals::Prove { accepting, .. } = &mut self.arrivals
            && let Some(accepting) = accepting.take()
        {
            // Wakes the accepting thread, which ends all handshakes.
            self.door.stop();
            let _ = accepting.join();
        }
    }
}

/// A listening socket at the first of an address's socket addresses that can be had.
fn listen_on(address: &Address, options: &SocketOptions) -> io::Result<Socket> {
    let everywhere = match address {
        // One socket for both families, where there are both.
        Address::Tcp { host, port } if host.is_empty() => {
            let everywhere = SockAddr::from(std::net::SocketAddr::from(([0_u16; 8], *port)));
            listen(&everywhere, address, options).ok()
        }
        _ => None,
    };
    if let Some(socket) = everywhere {
        return Ok(socket);
    }
    let mut socket = Err(io::Error::new(
        ErrorKind::NotFound,
        "the name has no address",
    ));
    for target in &resolve(address, "0.0.0.0")? {
        socket = listen(target, address, options);
        if socket.is_ok() {
            break;
        }
    }
    socket
}

fn listen(target: &SockAddr, address: &Address, options: &SocketOptions) -> io::Result<Socket> {
    let socket = stream_socket(target)?;
    options.apply(&socket)?;
    if let Address::Tcp { host, .. } = address {
        // A port whose last connections still linger can be used again at once.
        socket.set_reuse_address(true)?;
        if host.is_empty() && target.is_ipv6() {
            socket.set_only_v6(false)?;
        }
    }
    match (socket.bind(target), address) {
        (Err(e), Address::Unix(path))
            if e.kind() == ErrorKind::AddrInUse && remove_abandoned(path, target)? =>
        {
            socket.bind(target)?;
        }
        (result, _) => result?,
    }
    // All channels of a source may connect before the first is accepted.
    socket.listen(512)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The address of a listening socket.
fn local_address(socket: &Socket) -> Result<Address, ChannelError> {
    let local = socket.local_addr()?;
    if let Some(ip) = local.as_socket() {
        return Ok(Address::Tcp {
            host: ip.ip().to_string(),
            port: ip.port(),
        });
    }
    if let Some((cid, port)) = local.as_vsock_address() {
        return Ok(Address::Vsock { cid, port });
    }
    if let Some(path) = local.as_pathname() {
        return Ok(Address::Unix(path.into()));
    }
    match local.as_abstract_namespace() {
        Some(name) => Ok(Address::Abstract(
            String::from_utf8_lossy(name).into_owned(),
        )),
        None => Err(ChannelError::Unsupported(
            "a listening socket has no address".into(),
        )),
    }
}
