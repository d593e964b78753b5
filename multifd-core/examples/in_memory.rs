//! The walk-through: a transport of your own. This one moves bytes through memory; guest RAM
//! crosses it below.
#![allow(clippy::unwrap_used)] // A lock here is never poisoned.

use multifd_core::{
    Arrival, ChannelError, Iov, Message, RecvChannel, SendChannel, Transport, Unblock, WriteFlags,
};
use multifd_core::{
    Plain, RamBlock, RamMap, Receiver, ReceiverConfig, Sender, SenderConfig, SyncScope,
};
use std::collections::VecDeque;
use std::error::Error;
use std::io::Read;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

const TICK: Duration = Duration::from_millis(50);

// ANCHOR: transport
#[derive(Default)]
struct Bytes {
    queue: VecDeque<u8>,
    ended: bool,
    stopped: bool,
}

#[derive(Clone, Default)]
struct Pipe(Arc<(Mutex<Bytes>, Condvar)>);

impl Pipe {
    fn change(&self, how: impl FnOnce(&mut Bytes)) -> Result<(), ChannelError> {
        let mut bytes = self.0.0.lock().unwrap();
        how(&mut bytes);
        self.0.1.notify_all();
        (!bytes.stopped).then_some(()).ok_or(ChannelError::Stopped)
    }
}

impl Unblock for Pipe {
    fn unblock(&self) {
        let _ = self.change(|bytes| bytes.stopped = true);
    }
}

impl SendChannel for Pipe {
    fn send(&mut self, message: &Message<'_>, _: WriteFlags) -> Result<(), ChannelError> {
        let all: Vec<u8> = message.iovs().iter().flat_map(copy).collect();
        self.change(|bytes| bytes.queue.extend(all))
    }
    fn close(&mut self) -> Result<(), ChannelError> {
        self.change(|bytes| bytes.ended = true)
    }
    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
        Ok(Box::new(self.clone()))
    }
}

impl RecvChannel for Pipe {
    fn recv_start(&mut self, buffer: &mut [u8]) -> Result<Arrival, ChannelError> {
        let expected = buffer.len();
        let wait = |b: &mut Bytes| b.queue.len() < expected && !b.ended && !b.stopped;
        let guard = self.0.0.lock().unwrap();
        let (mut bytes, timeout) = self.0.1.wait_timeout_while(guard, TICK, wait).unwrap();
        match bytes.queue.len() {
            _ if bytes.stopped => Err(ChannelError::Stopped),
            _ if timeout.timed_out() => Ok(Arrival::Idle { waited: TICK }),
            0 => Ok(Arrival::End),
            received if received < expected => Err(ChannelError::Closed { received, expected }),
            _ => Ok(bytes.queue.read_exact(buffer).map(|()| Arrival::Message)?),
        }
    }
    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
        Ok(Box::new(self.clone()))
    }
}
// ANCHOR_END: transport

/// An IOV's bytes as they are now.
fn copy(iov: &Iov<'_>) -> Vec<u8> {
    let mut bytes = vec![0; iov.len()];
    iov.copy_to(&mut bytes);
    bytes
}

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
        source.blocks()[0]
            .page(page * 4096)?
            .copy_from(text.as_bytes());
    }

    let pipes: Vec<Pipe> = (0..4).map(|_| Pipe::default()).collect();
    let mut receiver = Receiver::new(target.clone(), ReceiverConfig::default())?;
    for pipe in &pipes {
        receiver.attach(Box::new(pipe.clone()))?;
    }
    let config = SenderConfig::default().channels(4);
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
