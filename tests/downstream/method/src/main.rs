//! A guest's memory over TCP, by a method of one's own.

mod trimmed;

use multifd_core::{
    Gathering, RamBlock, RamMap, Receiver, ReceiverConfig, Sender, SenderConfig, SyncScope,
};
use multifd_transport_socket::{SocketListener, SocketOptions, SocketTransport};
use std::error::Error;
use std::sync::Arc;
use trimmed::Trimmed;

const PAGES: u64 = 1000;

fn guest() -> Result<RamMap, Box<dyn Error>> {
    let mut map = RamMap::new();
    map.add(RamBlock::anonymous("pc.ram", PAGES * 4096, 4096)?)?;
    Ok(map)
}

fn main() -> Result<(), Box<dyn Error>> {
    let (from, to) = (guest()?, guest()?);
    for page in 0..PAGES {
        from.blocks()[0]
            .page(page * 4096)?
            .copy_from(&(page + 1).to_be_bytes());
    }
    let options = SocketOptions::default();
    let mut listener = SocketListener::bind(&"tcp:127.0.0.1:0".parse()?, options)?;
    let transport = SocketTransport::new(listener.address()?, options);
    let mut sender = Sender::start(from, &Trimmed, &transport, &SenderConfig::default())?;
    let config = ReceiverConfig::default().methods(vec![Arc::new(Trimmed)]);
    let mut receiver = Receiver::new(to.clone(), config)?;
    receiver.attach_all(&mut listener, Some(2), Gathering::Awaited)?;
    sender.queue_range(0, 0, PAGES * 4096)?;
    sender.sync(SyncScope::Peer)?;
    receiver.wait_sync()?;
    let sent = sender.finish()?.total();
    receiver.finish()?;
    for page in 0..PAGES {
        let mut number = [0; 8];
        to.blocks()[0].page(page * 4096)?.copy_to(&mut number);
        assert_eq!(u64::from_be_bytes(number), page + 1);
    }
    println!("{} pages in {} bytes", sent.normal_pages, sent.wire_bytes);
    Ok(())
}
