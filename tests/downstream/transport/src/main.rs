//! One generic function moves a guest's memory over whatever transport it is given.

mod queue;

use multifd_core::{
    ChannelSource, Gathering, Plain, RamBlock, RamMap, Receiver, ReceiverConfig, Sender,
    SenderConfig, SyncScope, Transport,
};
use multifd_transport_socket::{SocketListener, SocketOptions, SocketTransport};
use std::error::Error;

const PAGES: u64 = 5000;

fn guest() -> Result<RamMap, Box<dyn Error>> {
    let mut map = RamMap::new();
    map.add(RamBlock::anonymous("pc.ram", PAGES * 4096, 4096)?)?;
    Ok(map)
}

/// Moves a guest over four channels; returns its pages that were not zero.
fn migrate<T: Transport, S: ChannelSource>(
    transport: &T,
    mut source: S,
) -> Result<u64, Box<dyn Error>> {
    let (from, to) = (guest()?, guest()?);
    for page in (0..PAGES).step_by(3) {
        from.blocks()[0]
            .page(page * 4096)?
            .copy_from(&page.to_be_bytes());
    }
    let config = SenderConfig::default().channels(4);
    let mut sender = Sender::start(from, &Plain, transport, &config)?;
    let mut receiver = Receiver::new(to.clone(), ReceiverConfig::default())?;
    receiver.attach_all(&mut source, Some(4), Gathering::Awaited)?;
    sender.queue_range(0, 0, PAGES * 4096)?;
    sender.sync(SyncScope::Peer)?;
    receiver.wait_sync()?;
    let sent = sender.finish()?.total();
    receiver.finish()?;
    for page in (0..PAGES).step_by(3) {
        let mut number = [0; 8];
        to.blocks()[0].page(page * 4096)?.copy_to(&mut number);
        assert_eq!(u64::from_be_bytes(number), page);
    }
    Ok(sent.normal_pages)
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = SocketOptions::default();
    let listener = SocketListener::bind(&"tcp:127.0.0.1:0".parse()?, options)?;
    let tcp = SocketTransport::new(listener.address()?, options);
    println!("{} pages over TCP", migrate(&tcp, listener)?);
    let (queues, end) = queue::queues();
    println!("{} pages over queues", migrate(&queues, end)?);
    Ok(())
}
