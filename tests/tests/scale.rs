//! From one channel to sixty-four: all arrives, the work is shared, and a channel costs the memory
//! it is said to.
#![allow(clippy::unwrap_used, clippy::panic, unsafe_code)]

use multifd_core::RamMap;
use multifd_testing::Authority;
use multifd_testing::CountingAllocator;
use multifd_tests::guest::contents;
use multifd_tests::pair::{Pair, ram};
use multifd_tests::qemu::seeded;
use multifd_transport_socket::{
    Admission, SocketListener, SocketOptions, SocketTransport, TlsClient, TlsServer,
};
use std::path::Path;

#[global_allocator]
static HEAP: CountingAllocator = CountingAllocator::new();

/// What the documentation says that a channel takes on the heap, at both ends together; with TLS,
/// and without.
const A_CHANNEL: [isize; 2] = [384 << 10, 32 << 10];

/// The most heap a transfer over so many channels takes, both ends together.
fn most(guest: &RamMap, image: &[u8], channels: u8, certificates: Option<&Path>) -> isize {
    let options = SocketOptions::default();
    let admission = Admission::default()
        .tls(certificates.map(|folder| TlsServer::from_folder(folder, true).unwrap()));
    let address = ["tcp:127.0.0.1:0".parse().unwrap()];
    let mut listener = SocketListener::bind_all(&address, options, admission).unwrap();
    let mut transport = SocketTransport::new(listener.address().unwrap(), options);
    if let Some(folder) = certificates {
        transport = transport.with_tls(TlsClient::from_folder(folder, "127.0.0.1").unwrap());
    }
    let pair = Pair {
        channels,
        ..Pair::default()
    };
    let ((sent, received), most) = HEAP.most_during(|| pair.run(guest, &transport, &mut listener));
    let (sent, received) = (sent.unwrap(), received.unwrap());
    assert_eq!(received.stats.channels.len(), usize::from(channels));
    assert_eq!(
        sent.stats.total().wire_bytes,
        received.stats.total().wire_bytes
    );
    assert!(
        contents(&received.snapshot.ram.blocks()[0]) == image,
        "{channels} channels"
    );
    most
}

#[test]
fn sixty_four_channels_share_the_work_and_cost_what_is_said() {
    let folder = tempfile::tempdir().unwrap();
    Authority::new().fill(folder.path(), &["127.0.0.1"]);
    let image = seeded(64 << 20, 21);
    let guest = ram(&image);
    for (certificates, expected) in [Some(folder.path()), None].into_iter().zip(A_CHANNEL) {
        let took =
            [1, 2, 4, 8, 16, 32, 64].map(|channels| most(&guest, &image, channels, certificates));
        let each = (took[6] - took[0]) / 63;
        println!(
            "TLS: {}; heap, both ends: {took:?}; {each} bytes for each channel more",
            certificates.is_some()
        );
        assert!(
            each <= expected,
            "a channel takes {each} bytes, expected at most {expected}: {took:?}"
        );
    }
}
