//! Where connections come in: the listening sockets, and who is turned away.

use crate::secret::Secret;
use crate::tls::TlsServer;
use crate::{SocketOptions, SocketStream, sys};
use ipnet::IpNet;
use multifd_core::ChannelError;
use socket2::{SockAddr, Socket};
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Shutdown};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// First bytes of QEMU's main connection ("QEVM").
const MAIN: [u8; 4] = *b"QEVM";
/// First bytes of a multifd channel.
const CHANNEL: [u8; 4] = [0x11, 0x22, 0x33, 0x44];
/// Most connections that may wait to be told apart, or to be taken: every channel there can be, and the main one.
pub(crate) const MAX_WAITING: usize = 256;

/// Who may connect, and what a connection has to prove.
#[derive(Clone, Default)]
pub struct Admission {
    /// Every connection must speak TLS, and prove what these credentials ask for.
    pub tls: Option<TlsServer>,
    /// Every connection must show that it knows this.
    pub secret: Option<Secret>,
    /// Networks that TCP connections may come from; any, if there are none.
    pub networks: Vec<IpNet>,
    /// Told of every connection that is turned away: where it came from, and why. It is called from the accepting thread and must not
    /// block.
    pub on_refusal: Option<OnRefusal>,
}

/// Told of a connection that is turned away.
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
            .field("tls", &self.tls.is_some())
            .field("secret", &self.secret.is_some())
            .field("networks", &self.networks)
            .finish_non_exhaustive()
    }
}

/// What a connection is, by its first four bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// QEMU's main one.
    Main,
    /// A multifd channel.
    Channel,
}

impl Kind {
    /// What it is; if it is neither, what it is likely to be.
    pub(crate) fn of(head: [u8; 4]) -> Result<Self, String> {
        match head {
            MAIN => return Ok(Self::Main),
            CHANNEL => return Ok(Self::Channel),
            _ => {}
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
}

/// A connection that says what it is.
pub(crate) type Arrived = (SocketStream, Kind);

#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) sockets: Vec<Socket>,
    pub(crate) options: SocketOptions,
    pub(crate) admission: Admission,
    stopped: AtomicBool,
    /// The second is shut down, so that the first wakes whoever polls: a listening socket may be others' too.
    wake: (UnixStream, UnixStream),
    first_refusal: Mutex<Option<Refusal>>,
}

/// What comes of one look at the door.
pub(crate) enum Look {
    /// A connection.
    Came(Socket, SockAddr),
    /// A connection that was turned away.
    Refused,
    /// Nobody is there.
    Nobody,
}

impl Door {
    pub(crate) fn new(
        sockets: Vec<Socket>,
        options: SocketOptions,
        admission: Admission,
    ) -> io::Result<Self> {
        Ok(Self {
            sockets,
            options,
            admission,
            stopped: AtomicBool::new(false),
            wake: UnixStream::pair()?,
            first_refusal: Mutex::new(None),
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
        if let Some(told) = &self.admission.on_refusal {
            told(&refusal);
        }
        let mut first = self.first_refusal.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(refusal);
    }

    /// The first connection that was turned away.
    pub(crate) fn first_refusal(&self) -> Option<Refusal> {
        let first = self.first_refusal.lock().unwrap_or_else(PoisonError::into_inner);
        first.clone()
    }

    /// One connection, if there is one.
    pub(crate) fn look(&self) -> Result<Look, ChannelError> {
        for socket in &self.sockets {
            self.check()?;
            match socket.accept() {
                Ok((socket, peer)) if self.is_allowed(&peer) => return Ok(Look::Came(socket, peer)),
                Ok((_, peer)) => {
                    self.refuse(&peer, "it is not among the addresses that may connect");
                    return Ok(Look::Refused);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                // A connection that was gone before we looked is none.
                Err(e) if [ErrorKind::Interrupted, ErrorKind::ConnectionAborted].contains(&e.kind()) => {
                    return Ok(Look::Refused);
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(Look::Nobody)
    }

    fn is_allowed(&self, peer: &SockAddr) -> bool {
        let networks = &self.admission.networks;
        let Some(peer) = peer.as_socket() else { return true };
        networks.is_empty() || networks.iter().any(|network| network.contains(&plain(peer.ip())))
    }

    /// Waits for a connection, for one of `others` to be readable, or for the door to be stopped; not beyond `until`.
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
            let local = socket.local_addr().ok().and_then(|local| local.as_socket());
            local.is_some_and(|local| !plain(local.ip()).is_loopback())
        };
        self.admission.tls.is_none() && self.sockets.iter().any(beyond)
    }

    /// By when a connection that is there must have said what it is.
    pub(crate) fn patience(&self) -> Duration {
        self.options.connect
    }
}

/// An IPv4 address that came by way of an IPv6 socket is one.
fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
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
