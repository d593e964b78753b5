//! The engine's rules for transports, over real sockets.
#![allow(clippy::unwrap_used)]

use multifd_testing::{endings_conformance, transport_conformance};
use multifd_transport_socket::{Admission, SocketListener, SocketOptions, SocketTransport};
use std::path::Path;
use std::time::Duration;

/// Short enough that silence shows soon, and long enough for a busy machine.
fn options() -> SocketOptions {
    SocketOptions::default().stall(Duration::from_secs(1))
}

/// Both ends at `address`.
fn ends(
    address: &str,
    admission: Admission,
    options: SocketOptions,
) -> (SocketTransport, SocketListener) {
    let addresses = [address.parse().unwrap()];
    let listener = SocketListener::bind_all(&addresses, options, admission).unwrap();
    (
        SocketTransport::new(listener.address().unwrap(), options),
        listener,
    )
}

/// Another address whenever it is called.
fn unix_addresses(folder: &Path) -> impl FnMut() -> String {
    let mut number = 0;
    move || {
        number += 1;
        format!("unix:{}/{number}", folder.display())
    }
}

const TCP: &str = "tcp:127.0.0.1:0";

#[test]
fn tcp_keeps_the_rules() {
    transport_conformance(|_| {
        let (transport, listener) = ends(TCP, Admission::default(), options());
        (Box::new(transport), Box::new(listener))
    });
}

#[test]
fn migrations_over_tcp_end_right() {
    endings_conformance(|| {
        let (transport, listener) = ends(TCP, Admission::default(), options());
        (Box::new(transport), Box::new(listener))
    });
}

#[test]
fn unix_keeps_the_rules() {
    let folder = tempfile::tempdir().unwrap();
    let mut next = unix_addresses(folder.path());
    transport_conformance(|_| {
        let (transport, listener) = ends(&next(), Admission::default(), options());
        (Box::new(transport), Box::new(listener))
    });
}

#[test]
fn migrations_over_unix_sockets_end_right() {
    let folder = tempfile::tempdir().unwrap();
    let mut next = unix_addresses(folder.path());
    endings_conformance(|| {
        let (transport, listener) = ends(&next(), Admission::default(), options());
        (Box::new(transport), Box::new(listener))
    });
}

#[cfg(feature = "secret")]
mod secret {
    use super::*;
    use multifd_transport_socket::Secret;

    fn ends() -> (SocketTransport, SocketListener) {
        let secret = || Secret::new(b"sixteen letters!").unwrap();
        let admission = Admission::default().secret(Some(secret()));
        let (transport, listener) = super::ends(TCP, admission, options());
        (transport.with_secret(secret()), listener)
    }

    #[test]
    fn a_shared_secret_keeps_the_rules() {
        transport_conformance(|_| {
            let (transport, listener) = ends();
            (Box::new(transport), Box::new(listener))
        });
    }

    #[test]
    fn migrations_with_a_shared_secret_end_right() {
        endings_conformance(|| {
            let (transport, listener) = ends();
            (Box::new(transport), Box::new(listener))
        });
    }
}

#[cfg(feature = "tls")]
mod tls {
    use super::*;
    use multifd_testing::Authority;
    use multifd_transport_socket::{TlsClient, TlsServer};

    fn ends(folder: &Path, address: &str) -> (SocketTransport, SocketListener) {
        let server = TlsServer::from_folder(folder, true).unwrap();
        let client = TlsClient::from_folder(folder, "localhost").unwrap();
        let admission = Admission::default().tls(Some(server));
        // A handshake takes a while without optimization.
        let options = options().stall(Duration::from_secs(3));
        let (transport, listener) = super::ends(address, admission, options);
        (transport.with_tls(client), listener)
    }

    #[test]
    fn tls_keeps_the_rules() {
        let folder = tempfile::tempdir().unwrap();
        Authority::new().fill(folder.path(), &["localhost"]);
        transport_conformance(|_| {
            let (transport, listener) = ends(folder.path(), TCP);
            (Box::new(transport), Box::new(listener))
        });
    }

    #[test]
    fn migrations_under_tls_end_right() {
        let folder = tempfile::tempdir().unwrap();
        Authority::new().fill(folder.path(), &["localhost"]);
        let mut next = unix_addresses(folder.path());
        for address in [TCP.to_owned(), next()] {
            endings_conformance(|| {
                let _ = std::fs::remove_file(address.trim_start_matches("unix:"));
                let (transport, listener) = ends(folder.path(), &address);
                (Box::new(transport), Box::new(listener))
            });
        }
    }
}

/// A source that waits for the destination no longer: over TCP the destination learns of it when it
/// accepts.
#[test]
fn a_migration_that_its_source_gave_up_cannot_be_accepted() {
    use multifd_core::{ChannelError, MainListener, MainTransport};
    use std::io::{Read, Write};
    let (transport, mut listener) = ends(TCP, Admission::default(), options());
    let mut outgoing = transport.connect_main().unwrap();
    outgoing.write_all(b"QEVM, whole").unwrap();
    let mut incoming = listener.accept_main().unwrap();
    let gave_up = outgoing.finish(Duration::ZERO);
    assert!(
        matches!(gave_up, Err(ChannelError::Stalled { .. })),
        "{gave_up:?}"
    );
    let _ = incoming.read_to_end(&mut Vec::new());
    assert!(incoming.accept().is_err());
}

/// A listener that is patient by itself still keeps to the transfer's clock.
#[test]
fn silence_is_told_by_the_transfers_clock() {
    use multifd_core::{Arrival, ChannelSource, Progress, Transport};
    use std::sync::Arc;
    use std::time::Instant;
    let patient = SocketOptions::default().stall(Duration::from_secs(600));
    let (transport, mut listener) = ends(TCP, Admission::default(), patient);
    let mut sending = transport.open(0).unwrap();
    let head = [multifd_core::Iov::from(&[0x11, 0x22, 0x33, 0x44][..])];
    sending
        .send(
            &multifd_core::Message::new(&head, None),
            multifd_core::WriteFlags::default(),
        )
        .unwrap();
    let mut channel = listener.next_channel(true).unwrap().unwrap();
    channel.set_progress(Arc::new(Progress::new(Duration::from_millis(200))));
    let begun = Instant::now();
    assert_eq!(channel.recv_start(&mut [0; 4]).unwrap(), Arrival::Message);
    let idle = channel.recv_start(&mut [0; 4]).unwrap();
    assert!(matches!(idle, Arrival::Idle { .. }), "{idle:?}");
    assert!(begun.elapsed() < Duration::from_secs(150));
}
