//! Where connections come in: the listening sockets, and who is turned away.

#[cfg(feature = "secret")]
use crate::secret::Secret;
#[cfg(feature = "tls")]
use crate::tls::TlsServer;
use crate::{SocketOptions, SocketStream, sys};
#[cfg(feature = "admission")]
use ipnet::{IpNet, Ipv4Net};
use multifd_core::packet::Greeting;
use multifd_core::sync::lock;
use multifd_core::{ChannelError, event};
use socket2::{SockAddr, Socket};
use std::collections::HashMap;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Shutdown};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Most connections that may wait to be told apart, or to be taken: every channel there can be, and
/// the main one.
pub(crate) const MAX_WAITING: usize = 256;

/// Who may connect, and what a connection has to prove.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct Admission {
    /// Every connection must speak TLS, and prove what these credentials ask for.
    #[cfg(feature = "tls")]
    pub tls: Option<TlsServer>,
    /// Every connection must show that it knows this.
    #[cfg(feature = "secret")]
    pub secret: Option<Secret>,
    /// Networks that TCP connections may come from; any, if there are none.
    #[cfg(feature = "admission")]
    pub networks: Vec<IpNet>,
    /// Called for each refused connection, from several of the listener's threads at once. It must
    /// not block: dropping the listener waits for those threads.
    pub on_refusal: Option<OnRefusal>,
}

/// Called for each connection that is refused.
pub type OnRefusal = Arc<dyn Fn(&Refusal) + Send + Sync>;

/// A connection that was turned away.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Refusal {
    /// Where it came from.
    pub peer: String,
    /// What was wrong with it.
    pub why: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.peer, self.why)
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission")
            .field("proves", &self.proves())
            .finish_non_exhaustive()
    }
}

/// Why a connection from elsewhere is turned away.
pub(crate) const NOT_ALLOWED: &str = "it is not among the addresses that may connect";

impl Admission {
    /// Every connection must speak TLS, and prove what these credentials ask for.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(mut self, tls: Option<TlsServer>) -> Self {
        self.tls = tls;
        self
    }

    /// Every connection must show that it knows this.
    #[cfg(feature = "secret")]
    #[must_use]
    pub fn secret(mut self, secret: Option<Secret>) -> Self {
        self.secret = secret;
        self
    }

    /// Networks that TCP connections may come from; any, if there are none.
    #[cfg(feature = "admission")]
    #[must_use]
    pub fn networks(mut self, networks: Vec<IpNet>) -> Self {
        self.networks = networks;
        self
    }

    /// Called for every connection that is turned away.
    #[must_use]
    pub fn on_refusal(mut self, told: OnRefusal) -> Self {
        self.on_refusal = Some(told);
        self
    }

    /// Whether every connection speaks TLS.
    fn is_encrypted(&self) -> bool {
        #[cfg(feature = "tls")]
        if self.tls.is_some() {
            return true;
        }
        false
    }

    /// Whether connections must prove something before they say what they are.
    pub(crate) fn proves(&self) -> bool {
        #[cfg(feature = "secret")]
        if self.secret.is_some() {
            return true;
        }
        self.is_encrypted()
    }
}

/// What a connection is, by its first four bytes; if it is neither, what it is likely to be.
pub(crate) fn greeting(head: [u8; 4]) -> Result<Greeting, String> {
    if let Some(greeting) = Greeting::of(head) {
        return Ok(greeting);
    }
    let guess = match head {
        [0x16, 3, ..] => " (a TLS handshake: switch TLS off on the source)",
        crate::secret::HELLO => " (a source that has a shared secret)",
        [b'G', b'E', b'T', b' '] | [b'P', b'O', b'S', b'T'] => " (an HTTP request)",
        _ => "",
    };
    let value = u32::from_be_bytes(head);
    Err(format!(
        "a connection starts with {value:#010x}{guess}, which is neither a migration's main connection nor a multifd channel"
    ))
}

/// A connection that says what it is.
pub(crate) type Arrived = (SocketStream, Greeting);

#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) sockets: Vec<Socket>,
    pub(crate) options: SocketOptions,
    pub(crate) admission: Admission,
    stopped: AtomicBool,
    /// The second is shut down, so that the first wakes whoever polls: a listening socket may be
    /// others' too.
    wake: (UnixStream, UnixStream),
    first_refusal: Mutex<Option<Refusal>>,
    /// Which socket is looked at first: each in its turn, so that a crowd at one leaves the others
    /// theirs.
    turn: AtomicUsize,
}

/// What comes of one look at the door.
pub(crate) enum Look {
    /// A connection.
    Came(Socket, SockAddr),
    /// A connection that was turned away, or gone before we looked.
    Refused,
    /// There is one, and the system has no room for it: somebody else must go first.
    NoRoom(ChannelError),
    /// Nobody is there.
    Nobody,
}

impl Door {
    pub(crate) fn new(
        sockets: Vec<Socket>,
        options: SocketOptions,
        #[allow(unused_mut)] mut admission: Admission,
    ) -> io::Result<Self> {
        #[cfg(feature = "admission")]
        admission
            .networks
            .iter_mut()
            .for_each(|network| *network = plain_network(*network));
        Ok(Self {
            sockets,
            options,
            admission,
            stopped: AtomicBool::new(false),
            wake: UnixStream::pair()?,
            first_refusal: Mutex::new(None),
            turn: AtomicUsize::new(0),
        })
    }

    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        // The pair is ours: it is connected.
        let _ = self.wake.1.shutdown(Shutdown::Both);
    }

    pub(crate) fn check(&self) -> Result<(), ChannelError> {
        if self.stopped.load(Ordering::Acquire) {
            return Err(ChannelError::Stopped);
        }
        Ok(())
    }

    /// Turns a connection away.
    pub(crate) fn refuse(&self, peer: &SockAddr, why: impl Into<String>) {
        let refusal = Refusal {
            peer: name(peer),
            why: why.into(),
        };
        event!(peer = %refusal.peer, why = %refusal.why, "connection turned away");
        if let Some(told) = &self.admission.on_refusal {
            told(&refusal);
        }
        lock(&self.first_refusal).get_or_insert(refusal);
    }

    /// The first connection that was turned away.
    pub(crate) fn first_refusal(&self) -> Option<Refusal> {
        lock(&self.first_refusal).clone()
    }

    /// One connection, if there is one.
    pub(crate) fn look(&self) -> Result<Look, ChannelError> {
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        for n in 0..self.sockets.len() {
            self.check()?;
            let Some(socket) = self.sockets.get(first.wrapping_add(n) % self.sockets.len()) else {
                continue;
            };
            match socket.accept() {
                Ok((socket, peer)) if self.is_allowed(&peer) => {
                    reset_unless_taken(&socket);
                    return Ok(Look::Came(socket, peer));
                }
                Ok((socket, peer)) => {
                    reset_unless_taken(&socket);
                    self.refuse(&peer, NOT_ALLOWED);
                    return Ok(Look::Refused);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => match e.raw_os_error() {
                    // What is wrong with the one that came is its own business (accept(2) lists
                    // these).
                    Some(
                        libc::EINTR
                        | libc::ECONNABORTED
                        | libc::EPERM
                        | libc::EPROTO
                        | libc::ENOPROTOOPT
                        | libc::ENETDOWN
                        | libc::ENETUNREACH
                        | libc::EHOSTDOWN
                        | libc::EHOSTUNREACH
                        | libc::ENONET,
                    ) => return Ok(Look::Refused),
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                        return Ok(Look::NoRoom(e.into()));
                    }
                    _ => return Err(e.into()),
                },
            }
        }
        Ok(Look::Nobody)
    }

    #[cfg(not(feature = "admission"))]
    #[allow(clippy::unused_self)] // The same signature as with the feature.
    pub(crate) fn is_allowed(&self, _: &SockAddr) -> bool {
        true
    }

    #[cfg(feature = "admission")]
    pub(crate) fn is_allowed(&self, peer: &SockAddr) -> bool {
        let networks = &self.admission.networks;
        let Some(peer) = peer.as_socket() else {
            return true;
        };
        networks.is_empty()
            || networks
                .iter()
                .any(|network| network.contains(&plain(peer.ip())))
    }

    /// Waits for a connection, for one of `others` to be readable, or for the door to be stopped;
    /// not beyond `until`.
    pub(crate) fn wait<'a>(
        &'a self,
        others: impl Iterator<Item = BorrowedFd<'a>>,
        until: Option<Instant>,
    ) -> Result<(), ChannelError> {
        let mut fds = vec![self.wake.0.as_fd()];
        fds.extend(self.sockets.iter().map(AsFd::as_fd));
        fds.extend(others);
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        sys::poll(&fds, libc::POLLIN, left)?;
        self.check()
    }

    /// Whether somebody beyond this machine can connect without TLS.
    pub(crate) fn is_exposed(&self) -> bool {
        let beyond = |socket: &Socket| {
            let Ok(local) = socket.local_addr() else {
                return false;
            };
            match (local.as_socket(), local.as_vsock_address()) {
                (Some(ip), _) => !plain(ip.ip()).is_loopback(),
                // 1 is this machine itself.
                (None, Some((cid, _))) => cid != 1,
                (None, None) => false,
            }
        };
        !self.admission.is_encrypted() && self.sockets.iter().any(beyond)
    }
}

/// Which of those who wait goes when there are too many: the first of the address that most of them
/// come from. So a crowd from one address does not push out who comes from another.
pub(crate) fn first_of_the_crowd<'a, K>(
    waiting: impl Iterator<Item = (K, &'a SockAddr)>,
) -> Option<K> {
    let mut crowds: HashMap<Option<IpAddr>, (usize, usize, K)> = HashMap::new();
    for (order, (key, peer)) in waiting.enumerate() {
        let from = peer.as_socket().map(|peer| plain(peer.ip()));
        crowds.entry(from).or_insert((0, order, key)).0 += 1;
    }
    let largest = crowds
        .into_values()
        .max_by_key(|(count, order, _)| (*count, usize::MAX - order));
    largest.map(|(_, _, key)| key)
}

/// Has a TCP connection reset when it is closed, unless it is taken first: a refused source has to
/// see a failure, not an orderly end.
pub(crate) fn reset_unless_taken(socket: &Socket) {
    // Other families have no such way, and one that is gone needs none.
    let _ = socket.set_linger(Some(Duration::ZERO));
}

/// An IPv4 address that came by way of an IPv6 socket is one.
fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

#[cfg(feature = "admission")]
/// A network of IPv4 addresses written as IPv6 ones (`::ffff:a.b.c.d/96` and longer) is one, too.
fn plain_network(network: IpNet) -> IpNet {
    let IpNet::V6(six) = network else {
        return network;
    };
    let four = six.addr().to_ipv4_mapped();
    let length = six.prefix_len().checked_sub(96);
    four.zip(length)
        .and_then(|(four, length)| Ipv4Net::new(four, length).ok())
        .map_or(network, IpNet::V4)
}

fn name(peer: &SockAddr) -> String {
    if let Some(peer) = peer.as_socket() {
        return std::net::SocketAddr::new(plain(peer.ip()), peer.port()).to_string();
    }
    match peer.as_vsock_address() {
        Some((cid, port)) => format!("vsock:{cid}:{port}"),
        None => "a Unix socket".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    #[cfg(feature = "admission")]
    #[test]
    fn ipv4_networks_in_ipv6_notation_are_ipv4_networks() {
        for (text, expected) in [
            ("::ffff:10.1.2.3/128", "10.1.2.3/32"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:0.0.0.0/96", "0.0.0.0/0"),
            ("::ffff:0.0.0.0/95", "::ffff:0.0.0.0/95"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("10.0.0.0/8", "10.0.0.0/8"),
        ] {
            let network = plain_network(text.parse().unwrap());
            assert_eq!(network, expected.parse::<IpNet>().unwrap(), "{text}");
        }
    }

    #[test]
    fn a_crowd_makes_room_itself() {
        let peers: Vec<SockAddr> = [
            "10.0.0.1:1",
            "10.0.0.2:1",
            "10.0.0.2:2",
            "[::ffff:10.0.0.1]:7",
            "10.0.0.2:3",
        ]
        .map(|text| text.parse::<SocketAddr>().unwrap().into())
        .into();
        assert_eq!(first_of_the_crowd(peers.iter().enumerate()), Some(1));
        assert_eq!(first_of_the_crowd(peers[..4].iter().enumerate()), Some(0));
        assert_eq!(first_of_the_crowd(peers[..0].iter().enumerate()), None);
    }
}
