//! The two main connections of a relay, passed through unchanged.

use super::copies::Copies;
use super::options::{ChannelsRelayed, RelayOptions};
use crate::{Error, Limits, follow};
use multifd_core::sync::lock;
use multifd_core::{
    CancelHandle, ChannelError, Error as EngineError, MainConnection, MemoryBudget, Progress,
};
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Bytes of the main connection that pass at once.
const PIECE: usize = 64 << 10;
/// Pieces of the main connection that may wait to be followed.
const FOLLOWED: usize = 16;
/// Most bytes of the main connection before the first packet on a channel: the list of RAM blocks
/// is far smaller.
const MAX_HELD: usize = 1 << 20;

/// The way to the destination. The source's bytes are held back until the outgoing channels are
/// open: a destination may count those that have connected when it is told to join a round.
struct Way {
    destination: Box<dyn MainConnection>,
    held: Option<Vec<u8>>,
    /// The source has ended its side while it was held back: a small migration is all said before
    /// its channels' handshakes are done.
    ended: bool,
    /// Bytes passed on.
    offset: u64,
}

impl Way {
    fn open(&mut self) -> Result<(), Error> {
        match self.held.take() {
            Some(held) => self.pass(&held)?,
            None => return Ok(()),
        }
        if self.ended { self.end() } else { Ok(()) }
    }

    fn pass(&mut self, bytes: &[u8]) -> Result<(), Error> {
        match &mut self.held {
            Some(held) if held.len() + bytes.len() > MAX_HELD => Err(Error::Refused {
                offset: self.offset + held.len() as u64,
                what: format!(
                    "more than {MAX_HELD} bytes on the main connection and nothing on a channel"
                ),
                advice: "switch the multifd capability on".into(),
            }),
            Some(held) => {
                held.extend(bytes);
                Ok(())
            }
            None => {
                write(
                    self.destination.as_mut(),
                    bytes,
                    self.offset,
                    "writing to the destination",
                )?;
                self.offset += bytes.len() as u64;
                Ok(())
            }
        }
    }

    fn end(&mut self) -> Result<(), Error> {
        if self.held.is_some() {
            self.ended = true;
            return Ok(());
        }
        let ended = self.destination.end_writing();
        ended.map_err(|cause| Error::Connection {
            doing: "ending the migration",
            cause,
        })
    }
}

/// What the threads of a relay share.
pub(super) struct Mains {
    cancel: CancelHandle,
    progress: Arc<Progress>,
    /// How long the destination may take when all has been sent.
    finish: Duration,
    way: Mutex<Way>,
    first_error: Mutex<Option<Error>>,
    budget: MemoryBudget,
    /// When the source has said that its guest has stopped.
    stopped: Mutex<Option<Instant>>,
    source_done: AtomicBool,
    bytes: AtomicU64,
}

impl Mains {
    /// Nothing has passed yet but `seen`, which is held back.
    pub(super) fn new(
        options: &RelayOptions,
        destination: &mut dyn MainConnection,
        seen: Vec<u8>,
    ) -> Result<Self, Error> {
        let already = seen.len() as u64;
        Ok(Self {
            cancel: options.receiver.common.cancel.clone(),
            progress: Arc::clone(&options.receiver.common.progress),
            finish: options.finish,
            way: Mutex::new(Way {
                destination: destination.second().map_err(setting_up)?,
                held: Some(seen),
                ended: false,
                offset: 0,
            }),
            first_error: Mutex::new(None),
            budget: options.receiver.memory_budget.clone(),
            stopped: Mutex::new(None),
            source_done: AtomicBool::new(false),
            bytes: AtomicU64::new(already),
        })
    }

    /// The outgoing channels are open: what was held back passes.
    pub(super) fn open(&self) {
        self.keep(lock(&self.way).open());
    }

    /// Bytes that have come from the source.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// How long ago the source has said that its guest has stopped.
    pub(super) fn pause(&self) -> Option<Duration> {
        lock(&self.stopped).map(|stopped| stopped.elapsed())
    }

    /// Passes both directions on while `channels` does the rest; all of it must end well.
    pub(super) fn pass(
        &self,
        source: &mut dyn MainConnection,
        destination: &mut dyn MainConnection,
        channels: impl FnOnce() -> Result<ChannelsRelayed, EngineError>,
    ) -> Result<ChannelsRelayed, Error> {
        let _guards = [
            self.cancel
                .also_unblock(source.read_unblock_handle().map_err(setting_up)?),
            // It may be blocked in a write.
            self.cancel
                .also_unblock(destination.unblock_handle().map_err(setting_up)?),
        ];
        let from_source = source.second().map_err(setting_up)?;
        let (copies, pieces) = sync_channel(FOLLOWED);
        let seen = lock(&self.way).held.clone().unwrap_or_default();
        let (from_destination, to_source) = (
            destination.second().map_err(setting_up)?,
            source.second().map_err(setting_up)?,
        );
        let relayed = std::thread::scope(|scope| {
            scope.spawn(|| self.follow(Copies::new(seen, pieces)));
            scope.spawn(|| self.keep(self.forward(from_source, copies)));
            scope.spawn(|| self.keep(self.back(from_destination, to_source)));
            let relayed = channels();
            if relayed.is_err() {
                self.cancel.cancel();
            }
            relayed
        });
        let first = lock(&self.first_error).take();
        match (relayed, first) {
            (Ok(relayed), None) => Ok(relayed),
            (Err(EngineError::Cancelled) | Ok(_), Some(first)) => Err(first),
            (Err(error), _) => Err(error.into()),
        }
    }

    /// Keeps an error, if it is the first, and ends everything.
    fn keep(&self, outcome: Result<(), Error>) {
        if let Err(error) = outcome {
            if self.cancel.error().is_none() {
                lock(&self.first_error).get_or_insert(error);
            }
            self.cancel.cancel();
        }
    }

    /// Looks for the moment at which the guest has stopped. What is not understood is for the
    /// destination to judge.
    fn follow(&self, copies: Copies) {
        let _ = follow(copies, &Limits::default(), &self.budget, |followed| {
            let mut stopped = lock(&self.stopped);
            *stopped = stopped.or(followed.stopped);
        });
    }

    /// From the source to the destination, to its end.
    fn forward(
        &self,
        mut source: Box<dyn MainConnection>,
        copies: SyncSender<Vec<u8>>,
    ) -> Result<(), Error> {
        // The follower stops at the first thing that it does not understand.
        let mut copies = Some(copies);
        source.set_progress(Arc::clone(&self.progress));
        let mut buffer = vec![0; PIECE];
        while let Some(bytes) =
            self.read(source.as_mut(), &mut buffer, "reading from the source")?
        {
            self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            lock(&self.way).pass(bytes)?;
            copies = copies.filter(|copies| copies.send(bytes.to_vec()).is_ok());
            self.progress.touch();
        }
        self.source_done.store(true, Ordering::Release);
        self.progress.touch();
        lock(&self.way).end()
    }

    /// From the destination to the source, to its end. With a return path the destination ends its
    /// side first, and does not say by that how the migration ended. The source sees an end when
    /// everything has ended well: it may take it for success.
    fn back(
        &self,
        mut destination: Box<dyn MainConnection>,
        mut source: Box<dyn MainConnection>,
    ) -> Result<(), Error> {
        destination.set_progress(Arc::clone(&self.progress));
        let mut buffer = vec![0; PIECE];
        let mut offset = 0;
        let doing = "reading from the destination";
        while let Some(bytes) = self.read(destination.as_mut(), &mut buffer, doing)? {
            write(source.as_mut(), bytes, offset, "writing to the source")?;
            offset += bytes.len() as u64;
        }
        Ok(())
    }

    /// The next bytes; `None` at the connection's end. Silence is a stall only if there is silence
    /// everywhere.
    fn read<'a>(
        &self,
        main: &mut dyn MainConnection,
        buffer: &'a mut [u8],
        what: &'static str,
    ) -> Result<Option<&'a [u8]>, Error> {
        loop {
            match main.read(buffer) {
                Ok(0) => return Ok(None),
                Ok(n) => return Ok(Some(buffer.get(..n).unwrap_or_default())),
                Err(e) if e.kind() == ErrorKind::TimedOut && !self.is_stalled() => {}
                Err(cause) => {
                    let offset = self.bytes();
                    return Err(Error::Io {
                        offset,
                        what,
                        cause,
                    });
                }
            }
        }
    }

    fn is_stalled(&self) -> bool {
        let done = self.source_done.load(Ordering::Acquire);
        self.progress.is_stalled() && !(done && self.progress.quiet() < self.finish)
    }
}

fn setting_up(cause: ChannelError) -> Error {
    Error::Connection {
        doing: "setting up the main connection",
        cause,
    }
}

fn write(
    main: &mut dyn MainConnection,
    bytes: &[u8],
    offset: u64,
    what: &'static str,
) -> Result<(), Error> {
    let written = main.write_all(bytes);
    written.map_err(|cause| Error::Io {
        offset,
        what,
        cause,
    })
}
