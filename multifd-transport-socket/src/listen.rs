//! The listening side: connections are told apart by their first four bytes.

use crate::connect::{resolve, stream_socket};
use crate::tls::{Reception, TlsServer, accept_on_thread};
use crate::{Address, SocketOptions, SocketStream, sys};
use multifd_core::{ChannelError, ChannelSource, RecvChannel, Unblock};
use socket2::{SockAddr, Socket};
use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// First bytes of QEMU's main connection ("QEVM").
const MAIN: [u8; 4] = *b"QEVM";
/// First bytes of a multifd channel.
const CHANNEL: [u8; 4] = [0x11, 0x22, 0x33, 0x44];
/// Most connections that may wait to be told apart: every channel there can be, and the main one.
const MAX_WAITING: usize = 256;

/// A listening TCP or Unix stream socket. A Unix socket's path is removed when it is dropped.
#[derive(Debug)]
pub struct SocketListener {
    shared: Arc<Shared>,
    options: SocketOptions,
    path: Option<PathBuf>,
    /// Connections that have not sent four bytes, with those they have.
    undecided: VecDeque<(Socket, Vec<u8>)>,
    channels: VecDeque<SocketStream>,
    tls: Option<Arc<Reception>>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    socket: Socket,
    stopped: AtomicBool,
}

struct Handle(Arc<Shared>);

impl Unblock for Handle {
    fn unblock(&self) {
        self.0.stopped.store(true, Ordering::Release);
        // Wakes whoever polls a listening socket, on Linux.
        let _ = self.0.socket.shutdown(Shutdown::Both);
    }
}

impl SocketListener {
    /// Listens on `address`. A Unix socket's path that a dead process left behind is taken over.
    ///
    /// # Errors
    /// [`ChannelError::Io`] with the system's reason and the address, as when it is in use.
    pub fn bind(address: &Address, options: SocketOptions) -> Result<Self, ChannelError> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{address}: {error}"));
        let targets = resolve(address).map_err(named)?;
        let mut socket = Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
        for target in &targets {
            socket = listen(target, address);
            if socket.is_ok() {
                break;
            }
        }
        let socket = socket.map_err(named)?;
        let path = match address {
            Address::Unix(path) => Some(path.clone()),
            Address::Tcp { .. } => None,
        };
        let shared = Shared {
            socket,
            stopped: AtomicBool::new(false),
        };
        Ok(Self {
            shared: Arc::new(shared),
            options,
            path,
            undecided: VecDeque::new(),
            channels: VecDeque::new(),
            tls: None,
            accepting: None,
        })
    }

    /// Every connection must speak TLS. Each has its handshake as soon as it comes, on a thread of its own; one that fails is dropped,
    /// and the peer may still come.
    ///
    /// # Errors
    /// [`ChannelError::Io`] if no thread can be had.
    pub fn with_tls(mut self, tls: TlsServer) -> Result<Self, ChannelError> {
        let reception = Arc::new(Reception::new(tls, self.options.stall));
        let listening = self.shared.socket.try_clone()?;
        self.accepting = Some(accept_on_thread(listening, Arc::clone(&reception))?);
        self.tls = Some(reception);
        Ok(self)
    }

    /// Where it listens, with the port the system chose.
    ///
    /// # Errors
    /// [`ChannelError::Io`], the system's.
    pub fn address(&self) -> Result<Address, ChannelError> {
        if let Some(path) = &self.path {
            return Ok(Address::Unix(path.clone()));
        }
        let local = self.shared.socket.local_addr()?;
        let local = local
            .as_socket()
            .ok_or_else(|| ChannelError::Peer("the listening socket has no IP address".into()))?;
        Ok(Address::Tcp {
            host: local.ip().to_string(),
            port: local.port(),
        })
    }

    /// A handle that makes every blocked and later call fail, from another thread.
    pub fn unblocker(&self) -> Box<dyn Unblock> {
        Box::new(Handle(Arc::clone(&self.shared)))
    }

    /// Waits for QEMU's main connection; multifd channels that come before it are kept for
    /// [`ChannelSource::next_channel`]. There is no deadline for the first connection, only from then on.
    ///
    /// # Errors
    /// [`ChannelError::Peer`] for a connection that is neither, for too many of them, or if the main one does not come;
    /// [`ChannelError::Stopped`].
    pub fn accept_main(&mut self) -> Result<SocketStream, ChannelError> {
        if let Some(reception) = self.tls.clone() {
            return self.accept_main_inside(&reception);
        }
        let mut deadline = None;
        loop {
            let mut at = 0;
            while at < self.undecided.len() {
                match self.decide(at)? {
                    Decision::Main(main) => return Ok(main),
                    Decision::Channel(channel) => self.channels.push_back(channel),
                    Decision::Gone => {}
                    Decision::Waits => at += 1,
                }
            }
            if self.accept_pending()? > 0 {
                deadline = deadline.or_else(|| Some(Instant::now() + self.options.stall));
                continue;
            }
            let left = deadline.map(|end: Instant| end.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                let (silent, channels) = (self.undecided.len(), self.channels.len());
                let stall = self.options.stall;
                return Err(ChannelError::Peer(format!(
                    "no main connection of a migration came within {stall:?} ({channels} multifd channels did, and \
                     {silent} connections that sent nothing)"
                )));
            }
            self.poll(left)?;
        }
    }

    /// Reads what the connection at `at` has sent of its first four bytes; when they are all there, it is one or the
    /// other, and leaves the queue. One that ends before that was no migration's: it leaves, too.
    fn decide(&mut self, at: usize) -> Result<Decision, ChannelError> {
        let Some((socket, head)) = self.undecided.get_mut(at) else {
            return Ok(Decision::Waits);
        };
        let mut room = [0; 4];
        while let Some(missing) = room.get_mut(head.len()..).filter(|missing| !missing.is_empty()) {
            match sys::recv(socket, missing, libc::MSG_DONTWAIT) {
                Ok(n) if n > 0 => head.extend(missing.iter().take(n)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Decision::Waits),
                Ok(_) | Err(_) => {
                    self.undecided.remove(at);
                    return Ok(Decision::Gone);
                }
            }
        }
        for (to, from) in room.iter_mut().zip(head.iter()) {
            *to = *from;
        }
        let Some((socket, head)) = self.undecided.remove(at) else {
            return Ok(Decision::Gone);
        };
        match room {
            MAIN => Ok(Decision::Main(self.stream(socket, head)?)),
            CHANNEL => Ok(Decision::Channel(self.stream(socket, head)?)),
            other => Err(ChannelError::Peer(stranger(other))),
        }
    }

    /// The main connection among those that speak TLS. Without a deadline until the first has come.
    fn accept_main_inside(&mut self, reception: &Reception) -> Result<SocketStream, ChannelError> {
        let mut deadline = None;
        loop {
            if self.shared.stopped.load(Ordering::Acquire) {
                return Err(ChannelError::Stopped);
            }
            let now = Instant::now();
            let left = deadline.map_or(self.options.stall, |end: Instant| {
                end.saturating_duration_since(now)
            });
            match reception.next(left) {
                Some((stream, MAIN)) => return Ok(stream.with_head(MAIN.to_vec())),
                Some((stream, CHANNEL)) => {
                    self.channels.push_back(stream.with_head(CHANNEL.to_vec()));
                    deadline = deadline.or(Some(now + self.options.stall));
                }
                // Whoever it was proved to be somebody, and is no migration.
                Some((_, other)) => return Err(ChannelError::Peer(stranger(other))),
                None => {
                    let refused = reception.refused();
                    if let Some(error) = refused.filter(|_| Instant::now() >= now + left) {
                        return Err(error);
                    }
                    if deadline.is_some_and(|end| Instant::now() >= end) {
                        let stall = self.options.stall;
                        return Err(ChannelError::Peer(format!(
                            "no main connection of a migration came within {stall:?}, though channels did"
                        )));
                    }
                }
            }
        }
    }

    /// The next channel among connections that speak TLS.
    fn next_inside(
        &mut self,
        reception: &Reception,
        wait: bool,
    ) -> Result<Option<Box<dyn RecvChannel>>, ChannelError> {
        if let Some(channel) = self.channels.pop_front() {
            return Ok(Some(Box::new(channel)));
        }
        // Those that are there count, though the accepting thread may not have got to them.
        self.accept_pending()?;
        for (socket, _) in self.undecided.drain(..) {
            reception.take(socket)?;
        }
        let next = match reception.next_under_way() {
            None if wait => reception.next(self.options.connect),
            next => next,
        };
        match next {
            Some((stream, CHANNEL)) => Ok(Some(Box::new(stream.with_head(CHANNEL.to_vec())))),
            Some((_, MAIN)) => {
                let why = "a second main connection came: two migrations to one address";
                Err(ChannelError::Peer(why.into()))
            }
            Some((_, other)) => Err(ChannelError::Peer(stranger(other))),
            None => Ok(None),
        }
    }

    /// Takes in the connections that are there; returns how many.
    fn accept_pending(&mut self) -> Result<usize, ChannelError> {
        let mut taken = 0;
        loop {
            if self.shared.stopped.load(Ordering::Acquire) {
                return Err(ChannelError::Stopped);
            }
            let (socket, _) = match self.shared.socket.accept() {
                Ok(accepted) => accepted,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(taken),
                // A connection that was gone before we looked is none.
                Err(e)
                    if [io::ErrorKind::Interrupted, io::ErrorKind::ConnectionAborted].contains(&e.kind()) =>
                {
                    continue;
                }
                Err(_) if self.shared.stopped.load(Ordering::Acquire) => return Err(ChannelError::Stopped),
                Err(e) => return Err(e.into()),
            };
            self.undecided.push_back((socket, Vec::new()));
            taken += 1;
            if self.undecided.len() + self.channels.len() > MAX_WAITING {
                return Err(ChannelError::Peer(format!(
                    "more than {MAX_WAITING} connections came; a migration has at most 255 channels"
                )));
            }
        }
    }

    /// Waits for a connection, or for the first bytes of one.
    fn poll(&self, timeout: Option<Duration>) -> Result<(), ChannelError> {
        let mut fds = vec![self.shared.socket.as_fd()];
        fds.extend(self.undecided.iter().map(|(socket, _)| socket.as_fd()));
        sys::poll(&fds, libc::POLLIN, timeout)?;
        Ok(())
    }

    fn stream(&self, socket: Socket, head: Vec<u8>) -> Result<SocketStream, ChannelError> {
        Ok(SocketStream::new(socket, self.options.stall)?.with_head(head))
    }
}

/// What a connection's first bytes say.
enum Decision {
    /// It is QEMU's main one.
    Main(SocketStream),
    /// It is a multifd channel.
    Channel(SocketStream),
    /// Not all four are there.
    Waits,
    /// It has ended, and was nothing.
    Gone,
}

impl ChannelSource for SocketListener {
    /// The next connection, as a channel. One that has said nothing yet is taken too, its init packet will say what it is;
    /// one that has ended without a word is none.
    fn next_channel(&mut self, wait: bool) -> Result<Option<Box<dyn RecvChannel>>, ChannelError> {
        if let Some(reception) = self.tls.clone() {
            return self.next_inside(&reception, wait);
        }
        let deadline = Instant::now() + self.options.connect;
        loop {
            if let Some(channel) = self.channels.pop_front() {
                return Ok(Some(Box::new(channel)));
            }
            match self.decide(0)? {
                Decision::Channel(channel) => return Ok(Some(Box::new(channel))),
                Decision::Main(_) => {
                    let why = "a second main connection came: two migrations to one address";
                    return Err(ChannelError::Peer(why.into()));
                }
                Decision::Gone => continue,
                Decision::Waits => {}
            }
            if let Some((socket, head)) = self.undecided.pop_front() {
                return Ok(Some(Box::new(self.stream(socket, head)?)));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if self.accept_pending()? > 0 {
                continue;
            }
            if !wait || left.is_zero() {
                return Ok(None);
            }
            self.poll(Some(left))?;
        }
    }
}

impl Drop for SocketListener {
    fn drop(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            // Wakes the accepting thread, which ends all handshakes.
            Handle(Arc::clone(&self.shared)).unblock();
            let _ = accepting.join();
        }
        if let Some(path) = &self.path {
            // Somebody may have removed it already.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn listen(target: &SockAddr, address: &Address) -> io::Result<Socket> {
    let socket = stream_socket(target)?;
    if let Address::Tcp { .. } = address {
        // A port whose last connections still linger can be used again at once.
        socket.set_reuse_address(true)?;
    }
    match (socket.bind(target), address) {
        (Err(e), Address::Unix(path))
            if e.kind() == io::ErrorKind::AddrInUse && is_abandoned(path, target) =>
        {
            std::fs::remove_file(path)?;
            socket.bind(target)?;
        }
        (result, _) => result?,
    }
    // All channels of a source may connect before the first is accepted.
    socket.listen(512)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Whether a path is a socket that nobody listens on.
fn is_abandoned(path: &Path, target: &SockAddr) -> bool {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|data| data.file_type().is_socket());
    let refused = || stream_socket(target)?.connect(target);
    is_socket && matches!(refused(), Err(e) if e.kind() == io::ErrorKind::ConnectionRefused)
}

/// What a connection with these first bytes is likely to be.
fn stranger(head: [u8; 4]) -> String {
    let guess = match head {
        [0x16, 3, ..] => " (a TLS handshake: switch TLS off on the source)",
        [b'G', b'E', b'T', b' '] | [b'P', b'O', b'S', b'T'] => " (an HTTP request)",
        _ => "",
    };
    let value = u32::from_be_bytes(head);
    format!(
        "a connection starts with {value:#010x}{guess}, which is neither a migration's main connection nor a multifd channel"
    )
}
