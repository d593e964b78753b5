//! The walk-through: a transport of your own. This one moves bytes through memory; guest RAM crosses it below.
#![allow(clippy::unwrap_used)] // A lock here is never poisoned.

use multifd_core::{
    Arrival, ChannelError, Outgoing, RecvChannel, SendChannel, Transport, Unblock, WriteFlags,
};
use multifd_core::{Plain, RamBlock, RamMap, Receiver, ReceiverConfig, Sender, SenderConfig, SyncScope};
use std::error::Error;

// ANCHOR: transport
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};

#[derive(Default)]
struct Bytes {
    queue: VecDeque<u8>,
    ended: bool,
}

#[derive(Clone, Default)]
struct Pipe(Arc<(Mutex<Bytes>, Condvar)>);

impl Unblock for Pipe {
    fn unblock(&self) {
        self.0.0.lock().unwrap().ended = true;
        self.0.1.notify_all();
    }
}

impl SendChannel for Pipe {
    fn send(&mut self, message: &Outgoing<'_>, _: WriteFlags) -> Result<(), ChannelError> {
        let mut all = vec![0; message.len()];
        let mut at = 0;
        for iov in message.iovs() {
            at += iov.copy_to(&mut all[at..]);
        }
        self.0.0.lock().unwrap().queue.extend(all);
        self.0.1.notify_all();
        Ok(())
    }
    fn close(&mut self) -> Result<(), ChannelError> {
        self.unblock();
        Ok(())
    }
    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
        Ok(Box::new(self.clone()))
    }
}

impl RecvChannel for Pipe {
    fn recv_start(&mut self, buffer: &mut [u8]) -> Result<Arrival, ChannelError> {
        let expected = buffer.len();
        let short = |bytes: &mut Bytes| bytes.queue.len() < expected && !bytes.ended;
        let mut bytes = self.0.1.wait_while(self.0.0.lock().unwrap(), short).unwrap();
        match bytes.queue.len() {
            0 => return Ok(Arrival::End),
            received if received < expected => return Err(ChannelError::Closed { received, expected }),
            _ => buffer.fill_with(|| bytes.queue.pop_front().unwrap_or_default()),
        }
        Ok(Arrival::Message)
    }
    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
        Ok(Box::new(self.clone()))
    }
}
// ANCHOR_END: transport

/// Opens channel `i` as pipe `i`.
struct InMemory(Vec<Pipe>);

impl Transport for InMemory {
    fn open(&self, id: u8) -> Result<Box<dyn SendChannel>, ChannelError> {
        Ok(Box::new(self.0[usize::from(id)].clone()))
    }
}

fn guest(pages: u64) -> Result<RamMap, Box<dyn Error>> {
    let mut map = RamMap::new();
    map.add(RamBlock::anonymous("pc.ram", pages * 4096, 4096)?)?;
    Ok(map)
}

fn main() -> Result<(), Box<dyn Error>> {
    let (source, target) = (guest(1000)?, guest(1000)?);
    for page in (0..1000).step_by(3) {
        let text = format!("page {page}");
        source.blocks()[0].page(page * 4096)?.copy_from(text.as_bytes());
    }

    let pipes: Vec<Pipe> = (0..4).map(|_| Pipe::default()).collect();
    let mut receiver = Receiver::new(target.clone(), ReceiverConfig::default())?;
    for pipe in &pipes {
        receiver.attach(Box::new(pipe.clone()))?;
    }
    let config = SenderConfig {
        channels: 4,
        ..SenderConfig::default()
    };
    let mut sender = Sender::start(source.clone(), &Plain, &InMemory(pipes), &config)?;
    sender.queue_range(0, 0, 1000 * 4096)?;
    sender.sync(SyncScope::Peer)?;
    receiver.wait_sync()?;
    let sent = sender.finish()?.total();
    receiver.finish()?;

    for page in 0..1000 {
        let (mut a, mut b) = ([0; 4096], [0; 4096]);
        source.blocks()[0].page(page * 4096)?.copy_to(&mut a);
        target.blocks()[0].page(page * 4096)?.copy_to(&mut b);
        assert_eq!(a, b, "page {page}");
    }
    println!(
        "{} pages and {} zero pages in {} bytes",
        sent.normal_pages, sent.zero_pages, sent.wire_bytes
    );
    Ok(())
}
