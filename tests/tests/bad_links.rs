//! Connections that break, stall, crawl or lie, between our two engines: each ends in a named error
//! on both sides, within its deadline, and nothing is left. One test, as it counts the process's
//! threads and descriptors.
#![allow(clippy::unwrap_used, clippy::panic)]

use multifd_testing::Authority;
use multifd_tests::guest::contents;
use multifd_tests::pair::{Pair, ram};
use multifd_tests::proxy::{Fault, Proxy};
use multifd_tests::qemu::seeded;
use multifd_transport_socket::{
    Admission, SocketListener, SocketOptions, SocketTransport, TlsClient, TlsServer,
};
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

const STALL: Duration = Duration::from_millis(500);

fn options(stall: Duration) -> SocketOptions {
    SocketOptions::default()
        .connect(STALL)
        .stall(stall)
        .wait(Some(Duration::from_secs(5)))
}

fn entries(folder: &str) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

/// A listener, and a transport to it by way of a proxy.
fn ends(
    stall: Duration,
    certificates: Option<&Path>,
    fault: impl Fn(usize) -> Fault + Send + 'static,
) -> (SocketListener, SocketTransport, Proxy) {
    let admission = Admission::default()
        .tls(certificates.map(|folder| TlsServer::from_folder(folder, true).unwrap()));
    let address = ["tcp:127.0.0.1:0".parse().unwrap()];
    let listener = SocketListener::bind_all(&address, options(stall), admission).unwrap();
    let proxy = Proxy::start(&listener.address().unwrap().to_string(), fault);
    let mut transport = SocketTransport::new(proxy.address.parse().unwrap(), options(stall));
    if let Some(folder) = certificates {
        transport = transport.with_tls(TlsClient::from_folder(folder, "127.0.0.1").unwrap());
    }
    (listener, transport, proxy)
}

/// What is done to which connection (0 is the main one), and what each end must say; several words:
/// one of them.
type Case = (&'static str, usize, Fault, &'static str, &'static str);

/// Every channel: which of them gets that far is up to them, as idle ones pull.
const ANY: usize = usize::MAX;

/// Bytes of a channel before its first payload, and of a packet with 128 pages.
const HEADERS: u64 = 64 + 1344;

/// A source that has sent everything notices at the end, one that has not is told by a full or a
/// broken connection. A destination whose channel fails while the source's deadline runs, too, may
/// find that the source has given up: "not complete", under TLS "has broken off".
const GONE: &str = "all is sent|sending:|closing:|onnect|Broken pipe";

const PLAIN: [Case; 15] = [
    (
        "main is never accepted",
        0,
        Fault::Unaccepted,
        GONE,
        "no main connection",
    ),
    (
        "main stalls in its header",
        0,
        Fault::Stall(5),
        GONE,
        "nothing",
    ),
    (
        "main stalls in the block list",
        0,
        Fault::Stall(40),
        GONE,
        "nothing",
    ),
    ("main is reset", 0, Fault::Reset(60), GONE, "reset"),
    (
        "main ends early",
        0,
        Fault::HalfClose(60),
        GONE,
        "ended|ends",
    ),
    (
        "a channel is never accepted",
        2,
        Fault::Unaccepted,
        GONE,
        "1 multifd channels connected, expected 2",
    ),
    (
        "a channel stalls in its init packet",
        1,
        Fault::Stall(30),
        GONE,
        "nothing moved",
    ),
    (
        "a channel ends in its init packet",
        2,
        Fault::HalfClose(30),
        GONE,
        "after 30 of 64 bytes",
    ),
    (
        "a channel stalls in a header",
        1,
        Fault::Stall(64 + 700),
        GONE,
        "nothing moved",
    ),
    (
        "a channel ends in a header",
        1,
        Fault::HalfClose(64 + 700),
        GONE,
        "closed the connection after",
    ),
    (
        "a channel stalls in a payload",
        ANY,
        Fault::Stall(HEADERS + 5000),
        GONE,
        "nothing moved|not complete",
    ),
    (
        "a channel ends in a payload",
        ANY,
        Fault::HalfClose(HEADERS + 5000),
        GONE,
        "closed the connection after",
    ),
    (
        "a channel is reset in a payload",
        ANY,
        Fault::Reset(HEADERS + 5000),
        GONE,
        // Both ends are reset at once: the source's may have ended the main connection before this
        // end's channel is told.
        "reset|closed the connection|not complete",
    ),
    (
        "a channel stalls before its first packet",
        1,
        Fault::Stall(64),
        GONE,
        "nothing moved",
    ),
    (
        "a channel ends before its first packet",
        1,
        Fault::HalfClose(64),
        GONE,
        "ended before the round did|ended within",
    ),
];

const TLS: [Case; 7] = [
    (
        "main stalls in its handshake",
        0,
        Fault::Stall(100),
        "nothing moved",
        "no main connection",
    ),
    (
        "a channel stalls in its handshake",
        1,
        Fault::Stall(100),
        "nothing moved|all is sent|the TLS handshake",
        "1 multifd channels connected, expected 2|nothing came for|not complete|has broken off",
    ),
    (
        "a channel ends in its handshake",
        2,
        Fault::HalfClose(100),
        GONE,
        "1 multifd channels connected, expected 2|nothing came for|not complete|has broken off|reset",
    ),
    (
        "a channel is cut off",
        ANY,
        Fault::HalfClose(300_000),
        GONE,
        "without TLS's own end",
    ),
    (
        "a channel stalls",
        ANY,
        Fault::Stall(300_000),
        GONE,
        "nothing moved|not complete|has broken off",
    ),
    (
        "a channel is reset",
        ANY,
        Fault::Reset(300_000),
        GONE,
        "reset|without TLS's own end|not complete|has broken off",
    ),
    (
        "main ends in its handshake",
        0,
        Fault::HalfClose(100),
        GONE,
        "no main connection",
    ),
];

#[test]
fn every_fault_ends_both_sides_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    Authority::new().fill(folder.path(), &["127.0.0.1"]);
    let image = ram(&seeded(16 << 20, 3));
    let pair = Pair {
        stall: STALL,
        ..Pair::default()
    };
    // The proxy of a case is gone with it.
    let count = || (entries("/proc/self/task"), entries("/proc/self/fd"));
    let before = count();
    let cases = PLAIN.map(|case| (None, case)).into_iter();
    let cases = cases.chain(TLS.map(|case| (Some(folder.path()), case)));
    for (certificates, (name, which, fault, source, destination)) in cases {
        let begun = Instant::now();
        let (mut listener, transport, proxy) = ends(STALL, certificates, move |n| {
            if n == which || (which == ANY && n > 0) {
                fault
            } else {
                Fault::None
            }
        });
        let (sent, received) = pair.run(&image, &transport, &mut listener);
        drop((listener, proxy));
        for (side, outcome, expected) in [
            ("source", sent.map(drop), source),
            ("destination", received.map(drop), destination),
        ] {
            let Err(error) = outcome else {
                panic!(
                    "{name} (TLS: {}): the {side} noticed nothing",
                    certificates.is_some()
                )
            };
            let named = expected.split('|').any(|one| error.contains(one));
            assert!(
                named,
                "{name}: the {side} says {error:?}, expected {expected:?}"
            );
        }
        // Ten times the deadline, and time for a busy machine: a hang would be for ever.
        assert!(begun.elapsed() < Duration::from_secs(30), "{name}: hung");
        while count() != before && begun.elapsed() < Duration::from_secs(30) {
            std::thread::yield_now();
        }
        assert_eq!(count(), before, "{name}: threads or descriptors are left");
    }
    what_is_only_slow_arrives();
    silent_strangers_delay_nothing_but_the_first_round();
}

/// Byte by byte, over every connection; and one channel of eight that crawls.
fn what_is_only_slow_arrives() {
    let small = seeded(128 << 10, 5);
    let (mut listener, transport, _proxy) = ends(Duration::from_secs(20), None, |_| Fault::Trickle);
    let (sent, received) = Pair::default().run(&ram(&small), &transport, &mut listener);
    let (received, _) = (received.unwrap(), sent.unwrap());
    assert!(contents(&received.snapshot.ram.blocks()[0]) == small);

    let image = seeded(256 << 20, 6);
    let (mut listener, _, proxy) = ends(Duration::from_secs(20), None, |n| match n {
        3 => Fault::Pace(256),
        _ => Fault::None,
    });
    // What the kernel holds of a connection is not for others to send.
    let small_buffers = options(Duration::from_secs(20)).send_buffer(Some(64 << 10));
    let transport = SocketTransport::new(proxy.address.parse().unwrap(), small_buffers);
    let eight = Pair {
        channels: 8,
        ..Pair::default()
    };
    let (sent, received) = eight.run(&ram(&image), &transport, &mut listener);
    assert!(contents(&received.unwrap().snapshot.ram.blocks()[0]) == image);
    let channels = sent.unwrap().stats.channels;
    let slow = channels[2].wire_bytes;
    let mean = channels
        .iter()
        .map(|channel| channel.wire_bytes)
        .sum::<u64>()
        / 8;
    assert!(
        slow < mean / 2,
        "the slow channel took {slow} bytes, the mean is {mean}"
    );
}

/// Somebody who connects and says nothing is no channel, and does not keep the others from being
/// one.
fn silent_strangers_delay_nothing_but_the_first_round() {
    let image = seeded(4 << 20, 7);
    let (mut listener, transport, _proxy) = ends(Duration::from_secs(20), None, |_| Fault::None);
    let target = listener.address().unwrap().to_string();
    let target = target.trim_start_matches("tcp:");
    let mut strangers: Vec<_> = (0..5)
        .map(|_| TcpStream::connect(target).unwrap())
        .collect();
    strangers[4].write_all(b"GET /").unwrap();
    let unpinned = Pair {
        pinned: false,
        ..Pair::default()
    };
    let (sent, received) = unpinned.run(&ram(&image), &transport, &mut listener);
    let (received, _) = (received.unwrap(), sent.unwrap());
    assert!(contents(&received.snapshot.ram.blocks()[0]) == image);
    drop(strangers);
}
