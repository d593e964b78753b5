//! From one channel to sixty-four: all arrives, the work is shared, and a channel costs the memory it is said to.
#![allow(clippy::unwrap_used, clippy::panic, unsafe_code)]

use multifd_tests::guest::contents;
use multifd_tests::pair::{Pair, ram};
use multifd_tests::qemu::seeded;
use multifd_transport_socket::{SocketListener, SocketOptions, SocketTransport};
use std::alloc::{GlobalAlloc, Layout, System};
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

/// What the documentation says that a channel takes on the heap, at both ends together.
const A_CHANNEL: isize = 32 << 10;

#[test]
fn sixty_four_channels_share_the_work_and_cost_what_is_said() {
    let image = seeded(64 << 20, 21);
    let guest = ram(&image);
    let mut most = Vec::new();
    for channels in [1, 2, 4, 8, 16, 32, 64] {
        let options = SocketOptions::default();
        let mut listener = SocketListener::bind(&"tcp:127.0.0.1:0".parse().unwrap(), options).unwrap();
        let transport = SocketTransport::new(listener.address().unwrap(), options);
        let before = NOW.load(Ordering::Relaxed);
        MOST.store(before, Ordering::Relaxed);
        let pair = Pair {
            channels,
            ..Pair::default()
        };
        let (sent, received) = pair.run(&guest, &transport, &mut listener);
        most.push((isize::from(channels), MOST.load(Ordering::Relaxed) - before));
        let (sent, received) = (sent.unwrap(), received.unwrap());
        assert_eq!(received.stats.channels.len(), usize::from(channels));
        assert_eq!(sent.stats.total().wire_bytes, received.stats.total().wire_bytes);
        assert!(
            contents(&received.snapshot.ram.blocks()[0]) == image,
            "{channels} channels"
        );
    }
    let (first, last) = (most[0], most[most.len() - 1]);
    let each = (last.1 - first.1) / (last.0 - first.0);
    println!("heap, both ends: {most:?}; {each} bytes for each channel more");
    assert!(
        each <= A_CHANNEL,
        "a channel takes {each} bytes, expected at most {A_CHANNEL}: {most:?}"
    );
}
