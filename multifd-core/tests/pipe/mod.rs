//! Channels through memory, for this crate's tests: bounded, and with a peer that can be made to misbehave.
#![allow(dead_code, unreachable_pub)] // Each test binary uses a part.

use multifd_core::{
    Arrival, ChannelError, Outgoing, RecvChannel, SendChannel, Transport, Unblock, WriteFlags,
};
use multifd_core::{RamBlock, RamMap};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// How many bytes may be under way.
const ROOM: usize = 1 << 20;

#[derive(Default)]
struct State {
    bytes: VecDeque<u8>,
    ended: bool,
    stopped: bool,
}

/// One direction of one channel.
#[derive(Clone, Default)]
pub struct Pipe {
    shared: Arc<(Mutex<State>, Condvar)>,
    /// Sending fails with this message number.
    pub fail_at: Option<usize>,
    sent: usize,
}

impl Pipe {
    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.0.lock().unwrap()
    }

    /// A channel whose peer sends exactly these bytes, then ends it.
    pub fn script(bytes: &[u8]) -> Self {
        let pipe = Self::default();
        pipe.feed(bytes);
        pipe.end();
        pipe
    }

    /// The peer sends these bytes.
    pub fn feed(&self, bytes: &[u8]) {
        self.state().bytes.extend(bytes);
        self.shared.1.notify_all();
    }

    /// All bytes that have been sent and not received.
    pub fn taken(&self) -> Vec<u8> {
        self.state().bytes.iter().copied().collect()
    }

    /// The peer ends the channel.
    pub fn end(&self) {
        self.state().ended = true;
        self.shared.1.notify_all();
    }

    /// Handles of this pipe that are alive, this one included.
    pub fn handles(&self) -> usize {
        Arc::strong_count(&self.shared)
    }
}

impl Unblock for Pipe {
    fn unblock(&self) {
        self.state().stopped = true;
        self.shared.1.notify_all();
    }
}

impl SendChannel for Pipe {
    fn send(&mut self, message: &Outgoing<'_>, _: WriteFlags) -> Result<(), ChannelError> {
        self.sent += 1;
        if self.fail_at == Some(self.sent) {
            return Err(ChannelError::Peer("the cable is cut".into()));
        }
        for iov in message.iovs() {
            let mut bytes = vec![0; iov.len()];
            iov.copy_to(&mut bytes);
            let full = |state: &mut State| state.bytes.len() > ROOM && !state.stopped;
            let mut state = self.shared.1.wait_while(self.state(), full).unwrap();
            if state.stopped {
                return Err(ChannelError::Stopped);
            }
            state.bytes.extend(bytes);
            self.shared.1.notify_all();
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), ChannelError> {
        self.end();
        Ok(())
    }

    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
        Ok(Box::new(self.clone()))
    }
}

impl RecvChannel for Pipe {
    fn recv_start(&mut self, buffer: &mut [u8]) -> Result<Arrival, ChannelError> {
        let expected = buffer.len();
        let waiting = |state: &mut State| state.bytes.len() < expected && !state.ended && !state.stopped;
        let tick = Duration::from_millis(20);
        let (mut state, waited) = self
            .shared
            .1
            .wait_timeout_while(self.state(), tick, waiting)
            .unwrap();
        if state.stopped {
            return Err(ChannelError::Stopped);
        }
        match state.bytes.len() {
            0 if state.ended => return Ok(Arrival::End),
            _ if waited.timed_out() => return Ok(Arrival::Idle { waited: tick }),
            received if received < expected => return Err(ChannelError::Closed { received, expected }),
            _ => buffer.fill_with(|| state.bytes.pop_front().unwrap()),
        }
        self.shared.1.notify_all();
        Ok(Arrival::Message)
    }

    fn recv(&mut self, buffer: &mut [u8]) -> Result<(), ChannelError> {
        // Within a message a peer may be slow: the machine is busy with other tests.
        for _ in 0..100 {
            match self.recv_start(buffer)? {
                Arrival::Message => return Ok(()),
                Arrival::End => break,
                Arrival::Idle { .. } => {}
            }
        }
        let ended = self.state().ended;
        Err(if ended {
            ChannelError::Closed {
                received: 0,
                expected: buffer.len(),
            }
        } else {
            ChannelError::Stalled {
                deadline: Duration::from_secs(2),
            }
        })
    }

    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
        Ok(Box::new(self.clone()))
    }
}

/// Opens channel `i` as pipe `i`.
pub struct Pipes(pub Vec<Pipe>);

impl Pipes {
    pub fn new(channels: u8) -> Self {
        Self((0..channels).map(|_| Pipe::default()).collect())
    }
}

impl Transport for Pipes {
    fn open(&self, id: u8) -> Result<Box<dyn SendChannel>, ChannelError> {
        Ok(Box::new(self.0[usize::from(id)].clone()))
    }
}

/// A guest of one block.
pub fn guest(name: &str, pages: u64) -> RamMap {
    let mut map = RamMap::new();
    map.add(RamBlock::anonymous(name, pages * 4096, 4096).unwrap())
        .unwrap();
    map
}

/// Writes `text` at the start of a page of the first block.
pub fn write(map: &RamMap, page: u64, text: &str) {
    map.blocks()[0]
        .page(page * 4096)
        .unwrap()
        .copy_from(text.as_bytes());
}

/// All bytes of a map, block after block.
pub fn bytes(map: &RamMap) -> Vec<u8> {
    let mut all = Vec::new();
    for block in map.blocks() {
        let mut part = vec![0; block.len() as usize];
        block.region(0, part.len()).unwrap().copy_to(&mut part);
        all.extend(part);
    }
    all
}
