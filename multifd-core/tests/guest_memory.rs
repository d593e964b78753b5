//! One `vm-memory` guest memory into another.
#![cfg(feature = "vm-memory")]
#![allow(clippy::unwrap_used)]

use multifd_core::{Plain, RamMap, Receiver, ReceiverConfig, Sender, SenderConfig, SyncScope};
use multifd_testing::Pipes;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

#[test]
fn a_guest_memory_moves_into_another() {
    let ranges = [(GuestAddress(0), 3 << 20), (GuestAddress(1 << 32), 1 << 20)];
    let source = GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap();
    let target = GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap();
    let places = [
        0,
        4096 * 5 + 17,
        (3 << 20) - 300,
        1 << 32,
        (1 << 32) + (1 << 20) - 300,
    ];
    for (n, &at) in places.iter().enumerate() {
        source
            .write_slice(&[n as u8 + 1; 300], GuestAddress(at))
            .unwrap();
    }
    target
        .write_slice(&[0xff; 300], GuestAddress(4096 * 100))
        .unwrap();

    let pipes = Pipes::new(2);
    let map = RamMap::from_guest_memory(&target, 4096).unwrap();
    let mut receiver = Receiver::new(map, ReceiverConfig::default()).unwrap();
    for pipe in &pipes.0 {
        receiver.attach(Box::new(pipe.clone())).unwrap();
    }
    let map = RamMap::from_guest_memory(&source, 4096).unwrap();
    let mut sender = Sender::start(map.clone(), &Plain, &pipes, &SenderConfig::default()).unwrap();
    for (index, block) in map.blocks().iter().enumerate() {
        sender.queue_range(index, 0, block.len()).unwrap();
    }
    drop(map);
    sender.sync(SyncScope::Peer).unwrap();
    receiver.wait_sync().unwrap();
    sender.finish().unwrap();
    receiver.finish().unwrap();
    for (start, len) in ranges {
        let (mut a, mut b) = (vec![0; len], vec![0; len]);
        source.read_slice(&mut a, start).unwrap();
        target.read_slice(&mut b, start).unwrap();
        assert!(a == b, "the region at {start:?} differs");
    }
}
