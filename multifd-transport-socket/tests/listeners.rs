//! Who comes in, where, and who does not.
#![allow(clippy::unwrap_used, clippy::panic, unsafe_code)]

use multifd_core::{ChannelError, ChannelSource, MainListener, Transport};
use multifd_transport_socket::{
    Address, Admission, CongestionControl, Refusal, SocketListener, SocketOptions, SocketStream,
    SocketTransport, Source,
};
use socket2::{SockRef, Socket};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn options(stall_ms: u64) -> SocketOptions {
    SocketOptions::default()
        .connect(Duration::from_secs(5))
        .stall(Duration::from_millis(stall_ms))
}

fn patient() -> SocketOptions {
    options(20_000)
}

/// The number of a descriptor, which can be inherited from now on.
fn inheritable(fd: &dyn AsRawFd) -> i32 {
    // SAFETY: a plain call on a descriptor that is open.
    assert_eq!(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) }, 0);
    fd.as_raw_fd()
}

fn listeners() -> Vec<(SocketListener, SocketTransport, Option<tempfile::TempDir>)> {
    let folder = tempfile::tempdir().unwrap();
    let unix = Address::Unix(folder.path().join("socket"));
    let unnamed = format!(
        "unix:@multifd-{}-{:p}",
        std::process::id(),
        &raw const folder
    );
    let others = [
        "tcp:127.0.0.1:0",
        "tcp:[::1]:0",
        "tcp:localhost:0",
        &unnamed,
    ]
    .map(|text| (text.parse().unwrap(), None));
    std::iter::once((unix, Some(folder)))
        .chain(others)
        .map(|(address, folder)| {
            let listener = SocketListener::bind(&address, options(300)).unwrap();
            let transport = SocketTransport::new(listener.address().unwrap(), patient());
            (listener, transport, folder)
        })
        .collect()
}

#[test]
fn the_main_connection_is_found_among_channels_whatever_the_order() {
    for (mut listener, transport, _folder) in listeners() {
        let mut peers: Vec<_> = (0..4).map(|_| transport.connect().unwrap()).collect();
        // In pieces, the main one third.
        for (n, peer) in peers.iter_mut().enumerate() {
            let head: &[u8] = if n == 2 {
                b"QEVM main"
            } else {
                &[0x11, 0x22, 0x33, 0x44, n as u8]
            };
            peer.write_all(&head[..1]).unwrap();
            if n != 3 {
                peer.write_all(&head[1..]).unwrap();
            }
        }
        let mut main = listener.accept_main().unwrap();
        let mut head = [0; 9];
        main.read_exact(&mut head).unwrap();
        assert_eq!(&head, b"QEVM main");
        let mut found = Vec::new();
        for wait in [true, false] {
            let mut channel = listener.next_channel(wait).unwrap().unwrap();
            let mut head = [0; 5];
            channel.recv(&mut head).unwrap();
            assert_eq!(head[..4], [0x11, 0x22, 0x33, 0x44]);
            found.push(head[4]);
        }
        found.sort_unstable();
        assert_eq!(found, [0, 1]);
        // One that has connected, and not said all yet, is waited for.
        let mut slow = peers.pop().unwrap();
        let saying = std::thread::spawn(move || {
            slow.write_all(&[0x22, 0x33, 0x44, 3]).unwrap();
            slow
        });
        let mut late = listener.next_channel(false).unwrap().unwrap();
        let mut head = [0; 5];
        late.recv(&mut head).unwrap();
        assert_eq!(head, [0x11, 0x22, 0x33, 0x44, 3]);
        assert!(listener.next_channel(false).unwrap().is_none());
        drop(saying.join().unwrap());
    }
}

/// A listener that waits for a main connection no longer than `wait_ms`, and what it turned away.
fn waiting(
    wait_ms: u64,
    admission: Admission,
) -> (SocketListener, SocketTransport, Arc<Mutex<Vec<Refusal>>>) {
    let refusals = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&refusals);
    let admission = admission.on_refusal(Arc::new(move |refusal: &Refusal| {
        noted.lock().unwrap().push(refusal.clone());
    }));
    let options = options(300)
        .connect(Duration::from_millis(300))
        .wait(Some(Duration::from_millis(wait_ms)));
    let address = ["tcp:127.0.0.1:0".parse().unwrap()];
    let listener = SocketListener::bind_all(&address, options, admission).unwrap();
    let transport = SocketTransport::new(listener.address().unwrap(), patient());
    (listener, transport, refusals)
}

#[cfg(feature = "secret")]
fn secret(text: &str) -> multifd_transport_socket::Secret {
    multifd_transport_socket::Secret::new(text.as_bytes()).unwrap()
}

#[test]
fn strangers_and_silence_are_turned_away_and_named() {
    let (mut listener, transport, refusals) = waiting(300, Admission::default());
    let mut peer = transport.connect().unwrap();
    peer.write_all(&[0x16, 3, 1, 0]).unwrap();
    let _silent = transport.connect().unwrap();
    let error = listener.accept_main().unwrap_err().to_string();
    assert!(error.contains("0x16030100 (a TLS handshake"), "{error}");
    let refusals = refusals.lock().unwrap();
    assert_eq!(refusals.len(), 1, "{refusals:?}");
    assert!(refusals[0].peer.starts_with("127.0.0.1:"), "{refusals:?}");
    // A channel without a main connection is no migration; the deadline is another from there on.
    let (mut listener, transport, _) = waiting(20_000, Admission::default());
    let mut channel = transport.connect().unwrap();
    channel.write_all(&[0x11, 0x22, 0x33, 0x44]).unwrap();
    let error = listener.accept_main().unwrap_err().to_string();
    assert!(
        error.contains("within 300ms (1 multifd channels did)"),
        "{error}"
    );
}

#[cfg(feature = "secret")]
#[test]
fn a_flood_of_strangers_is_bounded_and_the_peer_still_gets_in() {
    for admission in [
        Admission::default(),
        Admission::default().secret(Some(secret("sixteen letters!"))),
    ] {
        let proves = admission.secret.is_some();
        let (mut listener, transport, refusals) = waiting(20_000, admission);
        let peer = if proves {
            transport.clone().with_secret(secret("sixteen letters!"))
        } else {
            transport.clone()
        };
        let taking = std::thread::spawn(move || {
            let main = listener.accept_main().unwrap();
            let mut channels = Vec::new();
            while channels.len() < 2 {
                channels.push(listener.next_channel(true).unwrap().unwrap());
            }
            (listener, main, channels)
        });
        // Silent ones stay, those that talk are nobody.
        let mut strangers = Vec::new();
        for n in 0..600 {
            let mut stranger = transport.connect().unwrap();
            match n % 3 {
                0 => drop(stranger),
                1 => strangers.push(stranger),
                _ => {
                    // It may have been turned away by then.
                    let _ = stranger.write_all(b"GET / HTTP/1.1");
                }
            }
        }
        let mut main = peer.connect().unwrap();
        main.write_all(b"QEVM").unwrap();
        // A second source is turned away, and does not end the first.
        let mut second = peer.connect().unwrap();
        second.write_all(b"QEVM").unwrap();
        let mut channels: Vec<_> = (0..2).map(|_| peer.connect().unwrap()).collect();
        for channel in &mut channels {
            channel.write_all(&[0x11, 0x22, 0x33, 0x44]).unwrap();
        }
        let (mut listener, _main, _channels) = taking.join().unwrap();
        assert!(listener.next_channel(false).unwrap().is_none());
        let refusals = refusals.lock().unwrap();
        let said = |text: &str| {
            refusals
                .iter()
                .filter(|refusal| refusal.why.contains(text))
                .count()
        };
        assert!(refusals.len() >= 400, "{}", refusals.len());
        assert_eq!(said("another migration is under way"), 1, "{proves}");
        drop(strangers);
    }
}

#[cfg(feature = "secret")]
#[test]
fn a_secret_lets_those_in_that_know_it() {
    use multifd_core::MainConnection;
    let admission = || Admission::default().secret(Some(secret("sixteen letters!")));
    let (mut listener, transport, refusals) = waiting(20_000, admission());
    let right = transport.clone().with_secret(secret("sixteen letters!"));
    let wrong = transport.clone().with_secret(secret("seventeen letters"));
    let mut unproved = wrong.connect().unwrap();
    // Not even at a second try, and not by the other half of the connection.
    for _ in 0..2 {
        let error = unproved.write_all(b"QEVM").unwrap_err().to_string();
        assert!(error.contains("does not know the shared secret"), "{error}");
    }
    assert!(unproved.second().unwrap().read(&mut [0]).is_err());
    drop(unproved);
    transport.connect().unwrap().write_all(b"QEVM").unwrap();
    let mut main = right.connect().unwrap();
    main.write_all(b"QEVM and more").unwrap();
    let mut channel = right.open(0).unwrap();
    let iovs = [multifd_core::Iov::from(&[0x11, 0x22, 0x33, 0x44, 5][..])];
    let message = multifd_core::Message::new(&iovs, None);
    channel
        .send(&message, multifd_core::WriteFlags::default())
        .unwrap();
    let mut came = [0; 13];
    listener
        .accept_main()
        .unwrap()
        .read_exact(&mut came)
        .unwrap();
    assert_eq!(&came, b"QEVM and more");
    let mut came = [0; 5];
    listener
        .next_channel(true)
        .unwrap()
        .unwrap()
        .recv(&mut came)
        .unwrap();
    assert_eq!(came[4], 5);
    let begun = std::time::Instant::now();
    while refusals.lock().unwrap().len() < 2 && begun.elapsed() < Duration::from_secs(20) {
        std::thread::yield_now();
    }
    drop(listener);
    let refusals: Vec<_> = refusals
        .lock()
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect();
    let all = refusals.join("\n");
    assert!(
        all.contains("starts with 0x5145564d, not by showing"),
        "{all}"
    );
    assert_eq!(refusals.len(), 2, "{all}");
    // A destination that was given none: said on both sides.
    let (mut listener, transport, _) = waiting(2_000, Admission::default());
    let source = transport.with_secret(secret("sixteen letters!"));
    let sending = std::thread::spawn(move || source.connect().unwrap().write_all(b"QEVM"));
    let error = listener.accept_main().unwrap_err().to_string();
    assert!(
        error.contains("a source that has a shared secret"),
        "{error}"
    );
    let error = sending.join().unwrap().unwrap_err().to_string();
    assert!(error.contains("has it been given one?"), "{error}");
}

/// A source whose connection is turned away must not take that for an orderly end, as of a
/// destination that has taken all.
#[cfg(feature = "secret")]
#[test]
fn who_is_turned_away_sees_no_orderly_end() {
    let with_secret = Admission::default().secret(Some(secret("sixteen letters!")));
    for (admission, said) in [(Admission::default(), b"GET "), (with_secret, b"QEVM")] {
        let (mut listener, transport, _) = waiting(20_000, admission);
        let stop = listener.unblock_handle().unwrap();
        let taking = std::thread::spawn(move || listener.accept_main().map(drop));
        let mut stranger = transport.connect().unwrap();
        stranger.write_all(said).unwrap();
        let read = stranger.read(&mut [0]);
        assert!(read.is_err(), "{read:?}");
        stop.unblock();
        assert!(taking.join().unwrap().is_err());
    }
    // Nor does a second source; who is taken, does.
    let (mut listener, transport, _) = waiting(20_000, Admission::default());
    let mut sources: Vec<_> = (0..2).map(|_| transport.connect().unwrap()).collect();
    for source in &mut sources {
        source.write_all(b"QEVM").unwrap();
    }
    let main = listener.accept_main().unwrap();
    assert!(listener.next_channel(false).unwrap().is_none());
    assert!(sources[1].read(&mut [0]).is_err());
    main.accept().unwrap();
    // The four bytes were read to tell it apart.
    assert_eq!(sources[0].read(&mut [0]).unwrap(), 0);
}

#[cfg(feature = "admission")]
#[test]
fn only_peers_of_the_networks_named_come_in() {
    let admission = |networks: &[&str]| {
        Admission::default().networks(networks.iter().map(|one| one.parse().unwrap()).collect())
    };
    let (mut listener, transport, refusals) = waiting(300, admission(&["10.0.0.0/8", "::1/128"]));
    let _ = transport.connect().unwrap().write_all(b"QEVM");
    let error = listener.accept_main().unwrap_err().to_string();
    assert!(
        error.contains("not among the addresses that may connect"),
        "{error}"
    );
    assert_eq!(refusals.lock().unwrap().len(), 1);
    // By way of a socket for both families, an IPv4 address is still one.
    let everywhere = ["tcp::0".parse().unwrap()];
    let admission = admission(&["127.0.0.0/8"]);
    let mut listener = SocketListener::bind_all(&everywhere, options(300), admission).unwrap();
    let Address::Tcp { port, .. } = listener.address().unwrap() else {
        panic!("{:?}", listener.address())
    };
    TcpStream::connect(("127.0.0.1", port))
        .unwrap()
        .write_all(b"QEVM")
        .unwrap();
    listener.accept_main().unwrap();
    assert!(listener.is_exposed());
    assert!(!waiting(1, Admission::default()).0.is_exposed());
}

/// Where a connection comes from, and where it goes.
fn ends(stream: &SocketStream) -> (String, String) {
    let socket = SockRef::from(stream);
    let [from, to] =
        [socket.local_addr(), socket.peer_addr()].map(|end| end.unwrap().as_socket().unwrap());
    (from.ip().to_string(), to.ip().to_string())
}

#[test]
fn channels_are_spread_over_addresses_and_sources() {
    let addresses = ["tcp:127.0.0.1:0", "tcp:127.0.0.2:0"].map(|text| text.parse().unwrap());
    let mut listener =
        SocketListener::bind_all(&addresses, patient(), Admission::default()).unwrap();
    let (one, other) = (
        listener.addresses()[0].clone(),
        listener.addresses()[1].clone(),
    );
    let transport = SocketTransport::new(one.clone(), patient())
        .and_to(other)
        .from_source("127.0.0.5".parse().unwrap())
        .from_source("127.0.0.6".parse().unwrap())
        .from_source(Source::Interface("lo".into()));
    let mut main = transport.connect().unwrap();
    main.write_all(b"QEVM").unwrap();
    assert_eq!(ends(&main), ("127.0.0.5".into(), "127.0.0.1".into()));
    for id in 0..6 {
        let mut channel = transport.open(id).unwrap();
        let bytes = [0x11, 0x22, 0x33, 0x44, id];
        let iovs = [multifd_core::Iov::from(&bytes[..])];
        let message = multifd_core::Message::new(&iovs, None);
        channel
            .send(&message, multifd_core::WriteFlags::default())
            .unwrap();
        channel.close().unwrap();
    }
    listener.accept_main().unwrap();
    for _ in 0..6 {
        let mut channel = listener.next_channel(true).unwrap().unwrap();
        channel.recv(&mut [0; 5]).unwrap();
    }
    let error = SocketTransport::new(one, patient())
        .from_source("192.0.2.1".parse().unwrap())
        .connect()
        .unwrap_err()
        .to_string();
    assert!(error.contains("from 192.0.2.1"), "{error}");
}

#[test]
fn options_reach_the_sockets_of_both_ends() {
    // What the system has for others: another than what is used within one host, on most.
    let untouched =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let name = untouched.tcp_congestion().unwrap();
    let name = std::str::from_utf8(&name).unwrap().trim_end_matches('\0');
    let congestion: CongestionControl = name.parse().unwrap();
    let options = patient()
        .send_buffer(Some(300_000))
        .recv_buffer(Some(200_000))
        .congestion(Some(congestion))
        .nodelay(false)
        .keepalive(Some(Duration::from_secs(7)))
        .user_timeout(Some(Duration::from_millis(4500)));
    // An accepted socket has the options of the one that listens, which is looked at here.
    let listening = TcpListener::bind("127.0.0.1:0").unwrap();
    let inherited = Address::Descriptors(vec![inheritable(&listening)]);
    let listener = SocketListener::bind(&inherited, options).unwrap();
    let transport = SocketTransport::new(listener.address().unwrap(), options);
    let near = transport.connect().unwrap();
    for socket in [SockRef::from(&near), SockRef::from(&listening)] {
        // The kernel doubles them, for its own use.
        assert_eq!(socket.send_buffer_size().unwrap(), 600_000);
        assert_eq!(socket.recv_buffer_size().unwrap(), 400_000);
        assert!(
            socket
                .tcp_congestion()
                .unwrap()
                .starts_with(name.as_bytes())
        );
        assert!(!socket.tcp_nodelay().unwrap());
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(7));
        assert_eq!(
            socket.tcp_user_timeout().unwrap(),
            Some(Duration::from_millis(4500))
        );
    }
    // Unless asked for others, a connection to this very host has a small buffer to send from, and
    // nothing that paces it.
    let near = SocketTransport::new(listener.address().unwrap(), patient())
        .connect()
        .unwrap();
    assert_eq!(SockRef::from(&near).send_buffer_size().unwrap(), 512 << 10);
    let congestion = SockRef::from(&near).tcp_congestion().unwrap();
    assert!(congestion.starts_with(b"reno"), "{congestion:?}");
    let processors = std::thread::available_parallelism().unwrap().get();
    let useful = |transport: &SocketTransport| transport.capabilities().useful_channels;
    assert_eq!(
        useful(&transport),
        None,
        "nothing is known before channels are open"
    );
    let _channel = transport.open(0).unwrap();
    assert_eq!(useful(&transport).unwrap().get(), 2 * processors);
    let options = patient().congestion(Some("no-such-thing".parse().unwrap()));
    let error = SocketTransport::new(listener.address().unwrap(), options)
        .connect()
        .unwrap_err();
    assert!(
        error.to_string().contains("no-such-thing cannot be had"),
        "{error}"
    );
}

#[test]
fn inherited_descriptors_are_listened_on_or_used_as_they_are() {
    let listening = TcpListener::bind("127.0.0.1:0").unwrap();
    let (near, far): (Vec<_>, Vec<_>) = (0..3).map(|_| UnixStream::pair().unwrap()).unzip();
    // As if they had been inherited.
    let mut numbers: Vec<i32> = far.iter().map(|stream| inheritable(stream)).collect();
    numbers.push(inheritable(&listening));
    let mut listener = SocketListener::bind(&Address::Descriptors(numbers), patient()).unwrap();
    assert_eq!(listener.addresses().len(), 1);
    // Ours are closed; what was inherited stays with whoever has it.
    let numbers = near.iter().map(|stream| inheritable(stream)).collect();
    let transport = SocketTransport::new(Address::Descriptors(numbers), patient());
    let mut main = transport.connect().unwrap();
    main.write_all(b"QEVM").unwrap();
    for id in 0..2 {
        let mut channel = transport.open(id).unwrap();
        let iovs = [multifd_core::Iov::from(&[0x11, 0x22, 0x33, 0x44][..])];
        let message = multifd_core::Message::new(&iovs, None);
        channel
            .send(&message, multifd_core::WriteFlags::default())
            .unwrap();
    }
    let error = transport.connect().unwrap_err().to_string();
    assert!(
        error.contains("it takes connection 4, and there are only 3"),
        "{error}"
    );
    listener.accept_main().unwrap();
    for _ in 0..2 {
        assert!(listener.next_channel(true).unwrap().is_some());
    }
    let mut late = TcpStream::connect(listening.local_addr().unwrap()).unwrap();
    late.write_all(&[0x11, 0x22, 0x33, 0x44]).unwrap();
    assert!(listener.next_channel(true).unwrap().is_some());
    drop(listener);
    assert!(
        Socket::from(OwnedFd::from(listening))
            .is_listener()
            .unwrap()
    );
    let folder = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(folder.path().join("file")).unwrap();
    let error = SocketListener::bind(&Address::Descriptors(vec![inheritable(&file)]), patient())
        .unwrap_err();
    assert!(error.to_string().starts_with("fd:"), "{error}");
}

#[test]
fn vsock_listens_and_what_is_not_there_is_an_error() {
    let address: Address = "vsock:any:0".parse().unwrap();
    // Where the kernel has no vsock, there is nothing to try.
    if std::path::Path::new("/dev/vsock").exists() {
        let listener =
            SocketListener::bind(&"vsock:any:4294967040".parse().unwrap(), patient()).unwrap();
        assert_eq!(
            listener.address().unwrap().to_string(),
            "vsock:any:4294967040"
        );
    }
    let options = patient().connect(Duration::from_millis(300));
    let error = SocketTransport::new(address, options)
        .connect()
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("vsock:any:0: "), "{error}");
}

#[test]
fn a_listener_that_waits_can_be_woken() {
    for (mut listener, _, _folder) in listeners() {
        let wake = listener.unblock_handle().unwrap();
        let waiting = std::thread::spawn(move || listener.accept_main().map(drop));
        wake.unblock();
        let error = waiting.join().unwrap().unwrap_err();
        assert!(matches!(error, ChannelError::Stopped), "{error}");
    }
}

#[test]
fn addresses_in_use_are_refused_and_abandoned_ones_taken_over() {
    for (listener, transport, _folder) in listeners() {
        let address = listener.address().unwrap();
        let error = SocketListener::bind(&address, patient())
            .unwrap_err()
            .to_string();
        assert!(error.starts_with(&address.to_string()), "{error}");
        drop(listener);
        let error = transport.connect().unwrap_err().to_string();
        assert!(error.starts_with(&address.to_string()), "{error}");
        if let Address::Unix(path) = &address {
            assert!(!path.exists());
            drop(std::os::unix::net::UnixListener::bind(path).unwrap());
            assert!(path.exists(), "left behind, as by a process that died");
            drop(SocketListener::bind(&address, patient()).unwrap());
            std::fs::write(path, "a file").unwrap();
            assert!(SocketListener::bind(&address, patient()).is_err());
            assert!(path.exists(), "somebody's file is not removed");
        }
    }
}

/// What listening at a path comes to, within a deadline of its own.
fn bind(path: &std::path::Path) -> Result<SocketListener, String> {
    let (sender, receiver) = std::sync::mpsc::channel();
    let address: Address = format!("unix:{}", path.display()).parse().unwrap();
    std::thread::spawn(move || {
        let bound = SocketListener::bind(&address, SocketOptions::default());
        let _ = sender.send(bound.map_err(|error| error.to_string()));
    });
    receiver
        .recv_timeout(Duration::from_secs(30))
        .unwrap_or_else(|_| panic!("binding waits for somebody"))
}

#[test]
fn a_path_that_somebody_uses_is_not_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("somebody's");
    let address = socket2::SockAddr::unix(&path).unwrap();
    let socket =
        || socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    let theirs = socket();
    theirs.bind(&address).unwrap();
    // Bound, and not listening yet: a connection is refused as it is where nobody is.
    assert!(bind(&path).unwrap_err().contains("in use"));
    // Listening with a full backlog: a connection would have to wait.
    theirs.listen(0).unwrap();
    let waiting = socket();
    waiting.connect(&address).unwrap();
    assert!(bind(&path).unwrap_err().contains("in use"));
    drop((theirs, waiting));
    bind(&path).unwrap();
}

#[test]
fn a_path_that_is_anothers_by_now_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let first = bind(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let second = std::os::unix::net::UnixListener::bind(&path).unwrap();
    drop(first);
    std::os::unix::net::UnixStream::connect(&path).unwrap();
    drop(second);
}
