//! Receiving zero pages leaves memory alone that is zero already: it stays without a page of its
//! own.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic)]

use multifd_core::{Plain, Receiver, ReceiverConfig, Sender, SenderConfig, SyncScope};
use multifd_testing::{Pipes, guest, write};

/// KiB of memory of its own that the mapping with this address has.
fn own_kib(address: usize) -> u64 {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    for line in maps.lines() {
        let range = line.split(' ').next().unwrap_or_default().split_once('-');
        let ends = range.and_then(|(from, to)| {
            Some((
                usize::from_str_radix(from, 16).ok()?,
                usize::from_str_radix(to, 16).ok()?,
            ))
        });
        if let Some((from, to)) = ends {
            inside = (from..to).contains(&address);
        }
        if inside && let Some(size) = line.strip_prefix("Anonymous:") {
            return size.trim().trim_end_matches(" kB").parse().unwrap();
        }
    }
    panic!("no mapping at {address:#x}");
}

#[test]
fn zero_pages_take_no_memory_at_the_destination() {
    const PAGES: u64 = 128 * 128;
    let (source, target) = (guest("pc.ram", PAGES), guest("pc.ram", PAGES));
    for page in 0..256 {
        write(&source, page, "something");
    }
    let pipes = Pipes::new(2);
    let mut receiver = Receiver::new(target.clone(), ReceiverConfig::default()).unwrap();
    for pipe in &pipes.0 {
        receiver.attach(Box::new(pipe.clone())).unwrap();
    }
    let config = SenderConfig::default();
    let mut sender = Sender::start(source, &Plain, &pipes, &config).unwrap();
    sender.queue_range(0, 0, PAGES * 4096).unwrap();
    sender.sync(SyncScope::Peer).unwrap();
    receiver.wait_sync().unwrap();
    assert_eq!(sender.finish().unwrap().total().zero_pages, PAGES - 256);
    receiver.finish().unwrap();
    let base = target.blocks()[0].page(0).unwrap().as_mut_ptr() as usize;
    let own = own_kib(base);
    // 1 MiB of 64 came with contents; huge pages may round that up.
    assert!((1024..=4096).contains(&own), "{own} KiB");
}
