//! Steady state allocates nothing per packet.
#![allow(clippy::unwrap_used)]

use multifd_core::{ChannelError, Message, Plain, SendChannel, Sender, SenderConfig};
use multifd_core::{SyncScope, Transport, Unblock, WriteFlags};
use multifd_testing::{CountingAllocator, guest};

#[global_allocator]
static ALLOCATIONS: CountingAllocator = CountingAllocator::new();

/// Takes everything and keeps nothing.
struct Sink;

impl Unblock for Sink {
    fn unblock(&self) {}
}

impl SendChannel for Sink {
    fn send(&mut self, message: &Message<'_>, _: WriteFlags) -> Result<(), ChannelError> {
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
    let ram = guest("pc.ram", PAGES);
    // Every packet has runs of one page, longer runs, and zero pages.
    for page in (0..PAGES).filter(|page| page % 5 != 0 && page % 64 < 50) {
        ram.blocks()[0].page(page * 4096).unwrap().copy_from(&[1]);
    }
    let config = SenderConfig::default().channels(2);
    let mut sender = Sender::start(ram, &Plain, &Sink, &config).unwrap();
    let rounds = |sender: &mut Sender, count: u32| {
        for _ in 0..count {
            sender.queue_range(0, 0, PAGES * 4096).unwrap();
            sender.sync(SyncScope::Peer).unwrap();
        }
    };
    // Rooms grow to their working size first: which channel gets a packet is for the scheduler to
    // say.
    rounds(&mut sender, 10);
    let before = ALLOCATIONS.count();
    let packets = sender.stats().total().packets;
    let between = ALLOCATIONS.count();
    rounds(&mut sender, 100);
    let after = ALLOCATIONS.count();
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
