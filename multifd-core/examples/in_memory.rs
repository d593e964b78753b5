//! The walk-through: a transport of your own. This one moves bytes through memory; guest RAM crosses it below.

#![allow(clippy::wildcard_imports, clippy::unwrap_used, clippy::unit_arg)] // For brevity.
use multifd_core::*;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};

// ANCHOR: transport
#[derive(Default)]
struct State(VecDeque<u8>, bool);

#[derive(Clone, Default)]
struct Pipe(Arc<(Mutex<State>, Condvar)>);

impl Pipe {
    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.0.0.lock().unwrap());
        self.0.1.notify_all();
        result
    }
    fn read(&self, len: usize) -> Vec<u8> {
        let short = |state: &mut State| state.0.len() < len && !state.1;
        let mut state = self.0.1.wait_while(self.0.0.lock().unwrap(), short).unwrap();
        let len = len.min(state.0.len());
        state.0.drain(..len).collect()
    }
}
impl Unblock for Pipe {
    fn unblock(&self) {
        self.with(|state| state.1 = true);
    }
}
impl SendChannel for Pipe {
    fn send(&mut self, message: &Outgoing<'_>, _: WriteFlags) -> Result<(), ChannelError> {
        for iov in message.iovs() {
            let mut bytes = vec![0; iov.len()];
            iov.copy_to(&mut bytes);
            self.with(|state| state.0.extend(bytes));
        }
        Ok(())
    }
    fn flush(&mut self) -> Result<(), ChannelError> {
        Ok(())
    }
    fn close(&mut self) -> Result<(), ChannelError> {
        Ok(self.unblock())
    }
    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
        Ok(Box::new(self.clone()))
    }
}
impl RecvChannel for Pipe {
    fn recv_start(&mut self, buffer: &mut [u8]) -> Result<Arrival, ChannelError> {
        let bytes = self.read(buffer.len());
        if bytes.is_empty() {
            return Ok(Arrival::End);
        }
        let (received, expected) = (bytes.len(), buffer.len());
        if received < expected {
            return Err(ChannelError::Closed { received, expected });
        }
        Ok({
            buffer.copy_from_slice(&bytes);
            Arrival::Message
        })
    }
    fn recv(&mut self, buffer: &mut [u8]) -> Result<(), ChannelError> {
        let closed = ChannelError::Closed {
            received: 0,
            expected: buffer.len(),
        };
        if self.recv_start(buffer)? == Arrival::Message {
            Ok(())
        } else {
            Err(closed)
        }
    }
    fn recv_regions(&mut self, regions: &[Region<'_>]) -> Result<(), ChannelError> {
        regions.iter().try_for_each(|region| {
            let mut bytes = vec![0; region.len()];
            self.recv(&mut bytes).map(|()| {
                region.copy_from(&bytes);
            })
        })
    }
    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
        Ok(Box::new(self.clone()))
    }
}
struct InMemory(Vec<Pipe>);
impl Transport for InMemory {
    fn open(&self, id: u8) -> Result<Box<dyn SendChannel>, ChannelError> {
        Ok(Box::new(self.0[usize::from(id)].clone()))
    }
}
// ANCHOR_END: transport

fn guest(pages: u64) -> Result<RamMap, BlockError> {
    let mut map = RamMap::new();
    map.add(RamBlock::anonymous("pc.ram", pages * 4096, 4096)?)?;
    Ok(map)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (source, target) = (guest(1000)?, guest(1000)?);
    for page in (0..1000).step_by(3) {
        source.blocks()[0]
            .page(page * 4096)?
            .copy_from(format!("page {page}").as_bytes());
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
