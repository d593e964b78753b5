//! Steady state allocates nothing per packet.
#![allow(clippy::unwrap_used, unsafe_code)]

use multifd_core::{ChannelError, Outgoing, Plain, RamBlock, RamMap, SendChannel, Sender, SenderConfig};
use multifd_core::{SyncScope, Transport, Unblock, WriteFlags};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Takes everything and keeps nothing.
struct Sink;

impl Unblock for Sink {
    fn unblock(&self) {}
}

impl SendChannel for Sink {
    fn send(&mut self, message: &Outgoing<'_>, _: WriteFlags) -> Result<(), ChannelError> {
        assert!(message.len() >= 64);
        Ok(())
    }

    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
        Ok(Box::new(Self))
    }
}

impl Transport for Sink {
    fn open(&self, _: u8) -> Result<Box<dyn SendChannel>, ChannelError> {
        Ok(Box::new(Self))
    }
}

#[test]
fn ten_thousand_packets_allocate_nothing() {
    const PAGES: u64 = 128 * 100;
    let mut ram = RamMap::new();
    ram.add(RamBlock::anonymous("pc.ram", PAGES * 4096, 4096).unwrap())
        .unwrap();
    // Every packet has runs of one page, longer runs, and zero pages.
    for page in (0..PAGES).filter(|page| page % 5 != 0 && page % 64 < 50) {
        ram.blocks()[0].page(page * 4096).unwrap().copy_from(&[1]);
    }
    let config = SenderConfig {
        channels: 2,
        ..SenderConfig::default()
    };
    let mut sender = Sender::start(ram, &Plain, &Sink, &config).unwrap();
    let rounds = |sender: &mut Sender, count: u32| {
        for _ in 0..count {
            sender.queue_range(0, 0, PAGES * 4096).unwrap();
            sender.sync(SyncScope::Peer).unwrap();
        }
    };
    // Rooms grow to their working size first: which channel gets a packet is for the scheduler to say.
    rounds(&mut sender, 10);
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    let packets = sender.stats().total().packets;
    let between = ALLOCATIONS.load(Ordering::SeqCst);
    rounds(&mut sender, 100);
    let after = ALLOCATIONS.load(Ordering::SeqCst);
    let sent = sender.finish().unwrap().total();
    assert_eq!(sent.packets - packets, 100 * (100 + 2));
    assert!(between > before, "the counter counts");
    assert_eq!(
        after - between,
        0,
        "allocations over {} packets",
        sent.packets - packets
    );
}
