//! A transport through shared memory: bytes go through a ring in a memfd that both ends map, as
//! over an ivshmem device; a socket only says how far each end has come.
//!
//! `cargo run -p multifd-core --example shared_memory` runs the conformance test for transports
//! over it.
#![allow(clippy::unwrap_used)] // An example.

use multifd_core::sync::lock;
use multifd_core::{
    Arrival, ChannelError, ChannelSource, Message, Progress, RamBlock, RecvChannel, SendChannel,
    Transport, Unblock, WriteFlags,
};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Bytes of the ring.
const RING: u64 = 1 << 20;
/// How long a message that has begun may take, and a channel to come.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long a reader waits before it says that nothing comes.
const TICK: Duration = Duration::from_millis(50);
/// The word that ends a channel in order.
const END: u64 = u64::MAX;

/// One end of a channel: the ring, and the socket that carries counts of bytes.
struct End {
    ring: RamBlock,
    counts: Arc<UnixStream>,
    stopped: Arc<AtomicBool>,
    /// Bytes written, or read, so far.
    at: u64,
    /// Bytes that may be written, or read, now.
    available: u64,
    /// Bytes written, or read, that the other end has not been told of.
    untold: u64,
    ended: bool,
}

impl End {
    fn pair() -> (Self, Self) {
        let file = rustix::fs::memfd_create("ring", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = std::fs::File::from(file);
        file.set_len(RING).unwrap();
        let (near, far) = UnixStream::pair().unwrap();
        let end = |counts: UnixStream, available| Self {
            // Two mappings, as two processes would have.
            ring: RamBlock::shared("ring", &file, 4096).unwrap(),
            counts: Arc::new(counts),
            stopped: Arc::default(),
            at: 0,
            available,
            untold: 0,
            ended: false,
        };
        (end(near, RING), end(far, 0))
    }

    fn check(&self) -> Result<(), ChannelError> {
        if self.stopped.load(Ordering::Acquire) {
            Err(ChannelError::Stopped)
        } else {
            Ok(())
        }
    }

    /// Waits for a count from the other end; `false` if none comes for `patience`.
    fn wait(&mut self, patience: Option<Duration>) -> Result<bool, ChannelError> {
        self.check()?;
        // An end that is gone shows when its word is read.
        let _ = self.tell();
        self.counts.set_read_timeout(patience)?;
        let mut word = [0; 8];
        let outcome = (&*self.counts).read_exact(&mut word);
        self.check()?;
        match outcome {
            Ok(()) if u64::from_be_bytes(word) == END => self.ended = true,
            Ok(()) => self.available += u64::from_be_bytes(word),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Ok(false);
            }
            Err(e) => return Err(e.into()),
        }
        Ok(true)
    }

    fn write_word(&self, word: u64) -> Result<(), ChannelError> {
        Ok((&*self.counts).write_all(&word.to_be_bytes())?)
    }

    /// Tells the other end how far this one has come.
    fn tell(&mut self) -> Result<(), ChannelError> {
        match std::mem::take(&mut self.untold) {
            0 => Ok(()),
            count => self.write_word(count),
        }
    }

    /// The next piece of the ring, of at most `len` bytes, as offset and length.
    fn piece(&self, len: usize) -> (u64, usize) {
        let offset = self.at % RING;
        let most = self.available.min(RING - offset);
        (offset, len.min(usize::try_from(most).unwrap_or(usize::MAX)))
    }

    fn advance(&mut self, len: usize) {
        self.at += len as u64;
        self.available -= len as u64;
        self.untold += len as u64;
    }

    fn handle(&self) -> Box<dyn Unblock> {
        Box::new(Stop(Arc::clone(&self.counts), Arc::clone(&self.stopped)))
    }
}

struct Stop(Arc<UnixStream>, Arc<AtomicBool>);

impl Unblock for Stop {
    fn unblock(&self) {
        self.1.store(true, Ordering::Release);
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// Closing the socket without `END` looks like a failure to the other end.
struct Sending(End);

impl SendChannel for Sending {
    fn send(&mut self, message: &Message<'_>, _: WriteFlags) -> Result<(), ChannelError> {
        let end = &mut self.0;
        let mut room = [0; 4096];
        for iov in message.iovs() {
            let mut left = *iov;
            while !left.is_empty() {
                while end.available == 0 {
                    end.wait(None)?;
                }
                end.check()?;
                let (offset, len) = end.piece(left.len().min(room.len()));
                let bytes = &mut room[..len];
                left.copy_to(bytes);
                end.ring.region(offset, len).unwrap().copy_from(bytes);
                left = left.advanced(len);
                end.advance(len);
            }
        }
        end.tell()
    }

    fn close(&mut self) -> Result<(), ChannelError> {
        self.0.write_word(END)
    }

    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
        Ok(self.0.handle())
    }
}

struct Receiving {
    end: End,
    progress: Option<Arc<Progress>>,
}

impl RecvChannel for Receiving {
    fn recv_start(&mut self, buffer: &mut [u8]) -> Result<Arrival, ChannelError> {
        let end = &mut self.end;
        let expected = buffer.len();
        let (mut received, mut silent) = (0, Duration::ZERO);
        while received < expected {
            if end.available == 0 && end.ended {
                return match received {
                    0 => Ok(Arrival::End),
                    _ => Err(ChannelError::Closed { received, expected }),
                };
            }
            if end.available == 0 && !end.wait(Some(TICK))? {
                if received == 0 {
                    return Ok(Arrival::Idle { waited: TICK });
                }
                silent += TICK;
                if silent >= DEADLINE {
                    return Err(ChannelError::Stalled { deadline: DEADLINE });
                }
            }
            let (offset, len) = end.piece(expected - received);
            end.ring
                .region(offset, len)
                .unwrap()
                .copy_to(&mut buffer[received..]);
            received += len;
            if len > 0 {
                silent = Duration::ZERO;
                end.advance(len);
                if end.untold >= RING / 4 {
                    // A sender that is gone needs no space; whether it ended in order shows next.
                    let _ = end.tell();
                }
                if let Some(progress) = &self.progress {
                    progress.touch();
                }
            }
        }
        Ok(Arrival::Message)
    }

    fn set_progress(&mut self, progress: Arc<Progress>) {
        self.progress = Some(progress);
    }

    fn progress(&self) -> Option<&Progress> {
        self.progress.as_deref()
    }

    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
        Ok(self.end.handle())
    }
}

/// Both sides of a connection of several channels.
#[derive(Clone, Default)]
struct Rings(Arc<Mutex<VecDeque<End>>>);

impl Transport for Rings {
    fn open(&self, _: u8) -> Result<Box<dyn SendChannel>, ChannelError> {
        let (near, far) = End::pair();
        lock(&self.0).push_back(far);
        Ok(Box::new(Sending(near)))
    }
}

impl ChannelSource for Rings {
    fn next_channel(&mut self, wait: bool) -> Result<Option<Box<dyn RecvChannel>>, ChannelError> {
        let begun = Instant::now();
        loop {
            if let Some(end) = lock(&self.0).pop_front() {
                return Ok(Some(Box::new(Receiving {
                    end,
                    progress: None,
                })));
            }
            if !wait || begun.elapsed() >= DEADLINE {
                return Ok(None);
            }
            std::thread::yield_now();
        }
    }
}

fn main() {
    multifd_testing::transport_conformance(|_| {
        let rings = Rings::default();
        (Box::new(rings.clone()), Box::new(rings))
    });
    println!("guest memory went through shared memory, and the transport keeps the engine's rules");
}
