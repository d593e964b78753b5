//! Channels over the standard library's queues: whole messages, from thread to thread.

use multifd_core::{
    Arrival, ChannelError, ChannelSource, Message, RecvChannel, SendChannel, Transport, Unblock,
    WriteFlags,
};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const TICK: Duration = Duration::from_millis(20);
/// Messages under way, a channel.
const DEPTH: usize = 8;

/// `None` is the end in order; a queue that ends without it has broken off.
type Item = Option<Vec<u8>>;

pub struct Queues(Mutex<Sender<Incoming>>);
pub struct QueuesEnd(Receiver<Incoming>);

pub fn queues() -> (Queues, QueuesEnd) {
    let (to, from) = channel();
    (Queues(Mutex::new(to)), QueuesEnd(from))
}

impl Transport for Queues {
    fn open(&self, _: u8) -> Result<Box<dyn SendChannel>, ChannelError> {
        let (queue, from) = sync_channel(DEPTH);
        let incoming = Incoming {
            queue: from,
            message: Vec::new(),
            at: 0,
            ended: false,
            stopped: Arc::default(),
        };
        let stopped = Arc::clone(&incoming.stopped);
        let listener = self.0.lock().map_err(|_| gone())?;
        listener.send(incoming).map_err(|_| gone())?;
        Ok(Box::new(Outgoing { queue, stopped }))
    }
}

impl ChannelSource for QueuesEnd {
    fn next_channel(&mut self, wait: bool) -> Result<Option<Box<dyn RecvChannel>>, ChannelError> {
        let next = if wait {
            self.0.recv().ok()
        } else {
            self.0.try_recv().ok()
        };
        Ok(next.map(|incoming| Box::new(incoming) as Box<dyn RecvChannel>))
    }
}

fn gone() -> ChannelError {
    ChannelError::Peer("the other end has gone away".into())
}

/// Both ends of a channel stop together.
struct Stop(Arc<AtomicBool>);

impl Unblock for Stop {
    fn unblock(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

struct Outgoing {
    queue: SyncSender<Item>,
    stopped: Arc<AtomicBool>,
}

impl Outgoing {
    fn put(&self, mut item: Item) -> Result<(), ChannelError> {
        use std::sync::mpsc::TrySendError;
        while !self.stopped.load(Ordering::SeqCst) {
            match self.queue.try_send(item) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Disconnected(_)) => return Err(gone()),
                Err(TrySendError::Full(back)) => item = back,
            }
            std::thread::yield_now();
        }
        Err(ChannelError::Stopped)
    }
}

impl SendChannel for Outgoing {
    fn send(&mut self, message: &Message<'_>, _: WriteFlags) -> Result<(), ChannelError> {
        let (mut bytes, mut at) = (vec![0; message.len()], 0);
        for iov in message.iovs() {
            at += iov.copy_to(&mut bytes[at..]);
        }
        self.put(Some(bytes))
    }

    fn close(&mut self) -> Result<(), ChannelError> {
        self.put(None)
    }

    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
        Ok(Box::new(Stop(Arc::clone(&self.stopped))))
    }
}

struct Incoming {
    queue: Receiver<Item>,
    message: Vec<u8>,
    at: usize,
    ended: bool,
    stopped: Arc<AtomicBool>,
}

impl RecvChannel for Incoming {
    fn recv_start(&mut self, buffer: &mut [u8]) -> Result<Arrival, ChannelError> {
        let (expected, mut received) = (buffer.len(), 0);
        loop {
            let part = self.message.get(self.at..).unwrap_or_default();
            let count = part.len().min(expected - received);
            buffer[received..received + count].copy_from_slice(&part[..count]);
            (self.at, received) = (self.at + count, received + count);
            if received == expected {
                return Ok(Arrival::Message);
            }
            if self.stopped.load(Ordering::SeqCst) {
                return Err(ChannelError::Stopped);
            }
            if self.ended {
                return match received {
                    0 => Ok(Arrival::End),
                    _ => Err(ChannelError::Closed { received, expected }),
                };
            }
            match self.queue.recv_timeout(TICK) {
                Ok(Some(message)) => (self.message, self.at) = (message, 0),
                Ok(None) => self.ended = true,
                Err(RecvTimeoutError::Disconnected) => return Err(gone()),
                Err(RecvTimeoutError::Timeout) if received == 0 => {
                    return Ok(Arrival::Idle { waited: TICK });
                }
                // Messages are whole: the rest of one that has begun is on its way.
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
        Ok(Box::new(Stop(Arc::clone(&self.stopped))))
    }
}
