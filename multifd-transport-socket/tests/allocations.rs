//! Steady state allocates nothing per packet, on either end of real sockets.
#![allow(clippy::unwrap_used)]

use multifd_core::{
    ChannelSource, Plain, Receiver, ReceiverConfig, Sender, SenderConfig, SyncScope,
};
use multifd_testing::{CountingAllocator, guest};
use multifd_transport_socket::{SocketListener, SocketOptions, SocketTransport};

#[global_allocator]
static ALLOCATIONS: CountingAllocator = CountingAllocator::new();

const PAGES: u64 = 128 * 20;

#[test]
fn ten_thousand_packets_allocate_nothing_on_either_end() {
    let (source, target) = (guest("pc.ram", PAGES), guest("pc.ram", PAGES));
    for page in (0..PAGES).filter(|page| page % 5 != 0 && page % 64 < 50) {
        source.blocks()[0]
            .page(page * 4096)
            .unwrap()
            .copy_from(&[1]);
    }
    let options = SocketOptions::default();
    let mut listener = SocketListener::bind(&"tcp:127.0.0.1:0".parse().unwrap(), options).unwrap();
    let transport = SocketTransport::new(listener.address().unwrap(), options);
    let config = SenderConfig::default().channels(2);
    let mut sender = Sender::start(source, &Plain, &transport, &config).unwrap();
    let mut receiver = Receiver::new(target, ReceiverConfig::default()).unwrap();
    while receiver.channels() < 2 {
        receiver
            .attach(listener.next_channel(true).unwrap().unwrap())
            .unwrap();
    }
    let mut rounds = |count: u32| {
        for _ in 0..count {
            sender.queue_range(0, 0, PAGES * 4096).unwrap();
            sender.sync(SyncScope::Peer).unwrap();
            receiver.wait_sync().unwrap();
        }
        sender.stats_handle()
    };
    // Rooms grow to their working size first: which channel gets a packet is for the scheduler to
    // say.
    let stats = rounds(30);
    let packets = stats.read().total().packets;
    let before = ALLOCATIONS.count();
    let stats = rounds(460);
    let after = ALLOCATIONS.count();
    let sent = stats.read().total().packets - packets;
    assert!(sent > 10_000, "{sent}");
    assert_eq!(after - before, 0, "allocations over {sent} packets");
    sender.finish().unwrap();
    receiver.finish().unwrap();
}
