//! From one channel to sixty-four: all arrives, the work is shared, and a channel costs the memory it is said to.
#![allow(clippy::unwrap_used, clippy::panic, unsafe_code)]

use multifd_core::RamMap;
use multifd_tests::certificates::Authority;
use multifd_tests::guest::contents;
use multifd_tests::pair::{Pair, ram};
use multifd_tests::qemu::seeded;
use multifd_transport_socket::{
    Admission, SocketListener, SocketOptions, SocketTransport, TlsClient, TlsServer,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicIsize, Ordering};

/// Counts bytes in use, and the most there were.
struct Counting;

static NOW: AtomicIsize = AtomicIsize::new(0);
static MOST: AtomicIsize = AtomicIsize::new(0);

fn add(bytes: isize) {
    let now = NOW.fetch_add(bytes, Ordering::Relaxed) + bytes;
    MOST.fetch_max(now, Ordering::Relaxed);
}

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size().cast_signed());
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        add(-layout.size().cast_signed());
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// What the documentation says that a channel takes on the heap, at both ends together; with TLS, and without.
const A_CHANNEL: [isize; 2] = [384 << 10, 32 << 10];

/// The most heap a transfer over so many channels takes, both ends together.
fn most(guest: &RamMap, image: &[u8], channels: u8, certificates: Option<&Path>) -> isize {
    let options = SocketOptions::default();
    let admission = Admission {
        tls: certificates.map(|folder| TlsServer::from_folder(folder, true).unwrap()),
        ..Admission::default()
    };
    let address = ["tcp:127.0.0.1:0".parse().unwrap()];
    let mut listener = SocketListener::bind_all(&address, options, admission).unwrap();
    let mut transport = SocketTransport::new(listener.address().unwrap(), options);
    if let Some(folder) = certificates {
        transport = transport.with_tls(TlsClient::from_folder(folder, "127.0.0.1").unwrap());
    }
    let before = NOW.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let pair = Pair {
        channels,
        ..Pair::default()
    };
    let (sent, received) = pair.run(guest, &transport, &mut listener);
    let most = MOST.load(Ordering::Relaxed) - before;
    let (sent, received) = (sent.unwrap(), received.unwrap());
    assert_eq!(received.stats.channels.len(), usize::from(channels));
    assert_eq!(sent.stats.total().wire_bytes, received.stats.total().wire_bytes);
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
        let took = [1, 2, 4, 8, 16, 32, 64].map(|channels| most(&guest, &image, channels, certificates));
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
