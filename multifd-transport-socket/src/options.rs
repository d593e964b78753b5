//! How sockets are set up.

use socket2::{Domain, SockAddr, Socket, TcpKeepalive, Type};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::sync::LazyLock;
use std::time::Duration;

/// Bytes on their way within one machine, of which Linux makes twice as many. There is no link to
/// fill, and the fewer they are the sooner the other end copies them out again, while they are in a
/// cache (measured: BENCHMARKING.md).
const SAME_HOST_SEND_BUFFER: usize = 256 << 10;

/// Congestion control within one machine: nothing is lost there, and nothing has to be spread out
/// in time, as the `bbr` that many systems have for their links does (measured: BENCHMARKING.md).
/// Every Linux has this one.
const SAME_HOST_CONGESTION: &[u8] = b"reno";

/// Connections within one machine that are worth sending over at once, for each of its processors.
const SAME_HOST_PER_PROCESSOR: NonZeroUsize = NonZeroUsize::new(2).unwrap();

/// Finding out reads several files: once is enough.
static PROCESSORS: LazyLock<NonZeroUsize> =
    LazyLock::new(|| std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN));

multifd_core::config! {
    /// Deadlines of connections, and how they are set up. Options of TCP do nothing to other
    /// families.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct SocketOptions {
        /// For a connection to be made, on either side. Default: 10 s.
        connect: Duration = Duration::from_secs(10),
        /// For anything to move on a connection that a thread waits for. Default: 30 s.
        stall: Duration = Duration::from_secs(30),
        /// For a migration's first connection to come, when listening. `None`: without a deadline.
        /// Once a connection of a migration is there, [`SocketOptions::stall`] holds for the
        /// others.
        wait: Option<Duration> = None,
        /// Whether a send that should go without a copy may be copied when no more memory can be
        /// locked, or the connection cannot do without; otherwise that is an error.
        zero_copy_fallback: bool = false,
        /// Bytes of the kernel's buffer for sending (`SO_SNDBUF`), up to the system's limit.
        /// `None`: the kernel fits it to the link, and TCP to this very host gets 256 KiB, which
        /// keeps data under way in the processor's caches.
        send_buffer: Option<u32> = None,
        /// Bytes of the kernel's buffer for receiving (`SO_RCVBUF`). `None`: the kernel's choice.
        recv_buffer: Option<u32> = None,
        /// Which congestion control TCP uses. `None`: the system's, and `reno` to this very host.
        congestion: Option<CongestionControl> = None,
        /// Whether TCP sends small messages at once (`TCP_NODELAY`). Default: yes.
        nodelay: bool = true,
        /// After how long without traffic TCP asks whether the peer is still there. `None`: never.
        /// Default: 15 s.
        keepalive: Option<Duration> = Some(Duration::from_secs(15)),
        /// How long TCP tries to send something again before it gives the connection up
        /// (`TCP_USER_TIMEOUT`). `None`: the system's way, some fifteen minutes.
        user_timeout: Option<Duration> = None,
    }
}

impl SocketOptions {
    /// Sets a socket up. Buffers count for the window TCP offers, so this comes before it connects
    /// or listens; what it accepts has the same.
    pub(crate) fn apply(&self, socket: &Socket) -> io::Result<()> {
        if let Some(bytes) = self.send_buffer {
            socket.set_send_buffer_size(bytes as usize)?;
        }
        if let Some(bytes) = self.recv_buffer {
            socket.set_recv_buffer_size(bytes as usize)?;
        }
        if !is_tcp(socket)? {
            return Ok(());
        }
        socket.set_tcp_nodelay(self.nodelay)?;
        if let Some(name) = &self.congestion {
            socket.set_tcp_congestion(name.bytes()).map_err(|error| {
                let why = format!("the congestion control {name} cannot be had: {error}");
                io::Error::new(error.kind(), why)
            })?;
        }
        if let Some(idle) = self.keepalive {
            let between = (idle / 3).max(Duration::from_secs(1));
            let how = TcpKeepalive::new()
                .with_time(idle.max(Duration::from_secs(1)))
                .with_interval(between)
                .with_retries(3);
            socket.set_tcp_keepalive(&how)?;
        }
        if self.user_timeout.is_some() {
            socket.set_tcp_user_timeout(self.user_timeout)?;
        }
        Ok(())
    }

    /// Fits a socket to where it will be connected to, if that is TCP to this very host.
    ///
    /// That has to be before it is connected. A connection that once used a congestion control with
    /// pacing, such as `bbr`, stays paced.
    pub(crate) fn fit(&self, socket: &Socket, target: &SockAddr) -> io::Result<()> {
        if !will_stay_here(socket, target) {
            return Ok(());
        }
        if self.send_buffer.is_none() {
            socket.set_send_buffer_size(SAME_HOST_SEND_BUFFER)?;
        }
        if self.congestion.is_none() {
            // A kernel without it has others that do.
            let _ = socket.set_tcp_congestion(SAME_HOST_CONGESTION);
        }
        Ok(())
    }
}

/// How many connections within one host are worth sending over at once. The processors do all the
/// work there; more connections than they serve only leave more data under way than fits their
/// caches.
pub(crate) fn useful_channels() -> Option<NonZeroUsize> {
    PROCESSORS.checked_mul(SAME_HOST_PER_PROCESSOR)
}

/// Whether a connected socket leads to this very host.
pub(crate) fn stays_here(socket: &Socket) -> bool {
    let is_unix = socket.domain().is_ok_and(|domain| domain == Domain::UNIX);
    is_unix || is_same_host(socket).unwrap_or(false)
}

/// Whether a connection from a socket, which may be bound, to an address would lead to this very
/// host. If that cannot be told, it would not.
fn will_stay_here(socket: &Socket, target: &SockAddr) -> bool {
    let bound = socket.local_addr().ok().as_ref().and_then(host);
    match bound.filter(|from| !from.is_unspecified()) {
        Some(from) => host(target) == Some(from),
        // A datagram socket is told which way it would go, and nothing goes yet.
        None => Socket::new(target.domain(), Type::DGRAM, None)
            .and_then(|way| {
                way.bind_device(socket.device()?.as_deref())?;
                way.connect(target)?;
                is_same_host(&way)
            })
            .unwrap_or(false),
    }
}

/// The host of an address, if it is one of IP.
fn host(address: &SockAddr) -> Option<IpAddr> {
    address.as_socket().map(|address| address.ip())
}

/// Whether both ends of a connected socket are the same host.
fn is_same_host(socket: &Socket) -> io::Result<bool> {
    let (own, peer) = (host(&socket.local_addr()?), host(&socket.peer_addr()?));
    Ok(own.is_some() && own == peer)
}

/// Whether a socket speaks TCP.
pub(crate) fn is_tcp(socket: &Socket) -> io::Result<bool> {
    let domain = socket.domain()?;
    Ok(domain == Domain::IPV4 || domain == Domain::IPV6)
}

/// The name of a congestion control, such as `cubic` or `bbr`.
///
/// ```
/// use multifd_transport_socket::CongestionControl;
///
/// let bbr: CongestionControl = "bbr".parse()?;
/// assert_eq!(bbr.to_string(), "bbr");
/// assert!("a name that is far too long".parse::<CongestionControl>().is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CongestionControl {
    name: [u8; Self::MAX],
    len: usize,
}

impl CongestionControl {
    /// Longest name Linux knows (`TCP_CA_NAME_MAX`, without the zero at its end).
    const MAX: usize = 15;

    fn bytes(&self) -> &[u8] {
        self.name.get(..self.len).unwrap_or_default()
    }
}

impl FromStr for CongestionControl {
    type Err = CongestionControlError;

    fn from_str(text: &str) -> Result<Self, CongestionControlError> {
        let mut name = [0; Self::MAX];
        let fits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
        match name.get_mut(..text.len()).filter(|_| fits) {
            Some(room) => room.copy_from_slice(text.as_bytes()),
            None => return Err(CongestionControlError { text: text.into() }),
        }
        Ok(Self {
            name,
            len: text.len(),
        })
    }
}

impl fmt::Display for CongestionControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.bytes()))
    }
}

impl fmt::Debug for CongestionControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that can be no [`CongestionControl`]'s name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no congestion control's name: 1 to 15 letters, as in /proc/sys/net/ipv4/tcp_available_congestion_control"
)]
pub struct CongestionControlError {
    text: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    fn would_stay(from: Option<&str>, to: &str) -> bool {
        let address = |ip: &str, port| -> SockAddr {
            let ip: IpAddr = ip.parse().unwrap();
            SocketAddr::new(ip, port).into()
        };
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        if let Some(from) = from {
            socket.bind(&address(from, 0)).unwrap();
        }
        will_stay_here(&socket, &address(to, 9))
    }

    #[test]
    fn a_connection_from_an_address_to_itself_stays_here() {
        assert!(would_stay(None, "127.0.0.1"));
        assert!(would_stay(Some("0.0.0.0"), "127.0.0.1"));
        assert!(would_stay(Some("127.0.0.2"), "127.0.0.2"));
        assert!(!would_stay(Some("127.0.0.2"), "127.0.0.1"));
        // For documentation: nobody has it, and whether or not a route leads there, it is
        // another's.
        assert!(!would_stay(None, "192.0.2.1"));
        // Before it is connected: afterwards it is too late.
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let target: SocketAddr = "127.0.0.1:9".parse().unwrap();
        SocketOptions::default()
            .fit(&socket, &target.into())
            .unwrap();
        assert!(
            socket
                .tcp_congestion()
                .unwrap()
                .starts_with(SAME_HOST_CONGESTION)
        );
        let unix = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        assert!(!will_stay_here(&unix, &SockAddr::unix("nowhere").unwrap()));
    }
}
