//! `multifd relay`: a migration passes through, its packets encoded anew.

use crate::args::Relay;
use crate::encoding::Chosen;
use crate::failure::{Failure, doing};
use crate::progress::{Rounds, Watch};
use crate::recv::cancelled;
use crate::report::{self, Counts};
use crate::{method, signals};
use indicatif::HumanBytes;
use multifd_core::{CancelHandle, MemoryBudget, Progress, RecvChannel, RelayConfig, Relayed, relay};
use multifd_qemu::{Limits, follow, read_configuration};
use multifd_transport_socket::SocketStream;
use serde::Serialize;
use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes of the main connection that pass at once.
const ROOM: usize = 64 << 10;
/// Pieces of the main connection that may wait to be followed.
const FOLLOWED: usize = 16;
/// Most bytes of the main connection that come before the first packet on a channel: the list of RAM blocks is far smaller.
const MAX_HELD: usize = 1 << 20;

#[derive(Serialize)]
struct Shown {
    ok: bool,
    seconds: f64,
    rounds: u64,
    /// From the source's word that its guest has stopped to the destination's end: no shorter than
    /// the guest's pause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pause_seconds: Option<f64>,
    main_bytes: u64,
    incoming_compression: String,
    outgoing_compression: &'static str,
    incoming: Counts,
    outgoing: Counts,
    /// Bytes that came in over channels, for each that went out.
    ratio: f64,
    incoming_channels: usize,
    outgoing_channels: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    auto: Option<Chosen>,
}

pub(crate) fn run(args: &Relay) -> Result<(), Failure> {
    let cancel = signals::cancel_on_signal()?;
    let encoder = args.encoding.encoder(args.channels)?;
    let options = args.tuning.options();
    let transport = args.exit.transport(options, &args.tls.connecting())?;
    let mut listener = args.entrance.open(options, &args.tls.listening(), args.show)?;
    let _listener_guard = cancel.also_unblock(listener.unblocker());
    let mut source = listener
        .accept_main()
        .map_err(|error| cancelled(&cancel, doing("waiting for a migration")(error)))?;
    let progress = Arc::new(Progress::new(options.stall));
    let mut tee = Tee {
        inner: &mut source,
        seen: Vec::new(),
    };
    let source_guard = cancel.also_unblock(tee.inner.read_unblocker());
    let configuration = read_configuration(&mut tee, &Limits::default(), Arc::clone(&progress))?;
    let seen = tee.seen;
    let already = seen.len() as u64;
    drop(source_guard);
    let mut destination = transport
        .connect()
        .map_err(doing("connecting to the destination"))?;
    for main in [&mut source, &mut destination] {
        // Whoever reads the stream at its end knows whether it is whole.
        main.end_without_tls(true);
    }
    let budget = MemoryBudget::new(args.max_memory);
    let begun = Instant::now();
    let mains = Arc::new(Mains {
        cancel: cancel.clone(),
        progress: Arc::clone(&progress),
        finish: Duration::from_secs(args.finish_timeout),
        way: Mutex::new(Way {
            destination: destination.second(),
            held: Some(seen),
            ended: false,
        }),
        first_error: Mutex::new(None),
        budget: budget.clone(),
        stopped: Mutex::new(None),
        source_done: AtomicBool::new(false),
        bytes: AtomicU64::new(already),
    });
    let watch = Arc::new(Mutex::new(None));
    let config = RelayConfig {
        methods: method::decoders(None, &budget),
        memory_budget: budget,
        page_size: configuration.page_size(),
        incoming: args.from_channels,
        outgoing: args.channels,
        checksums: args.encoding.checksums(),
        require_checksums: args.require_checksum,
        progress,
        cancel: cancel.clone(),
        on_start: Some({
            let (watch, mains, quiet) = (Arc::clone(&watch), Arc::clone(&mains), args.show.quiet);
            Box::new(move |incoming, _| {
                mains.keep(lock(&mains.way).open());
                let started = Watch::new(
                    "passing through",
                    incoming,
                    0,
                    quiet,
                    &Rounds::counted_by_channels(),
                );
                *lock(&watch) = Some(started);
            })
        }),
        ..RelayConfig::default()
    };
    let passed = mains.pass(&mut source, &mut destination, || {
        relay(&mut listener, &transport, encoder.method.as_ref(), config)
    });
    drop(lock(&watch).take());
    match &passed {
        Ok(_) => {
            source
                .abort_on_close(false)
                .map_err(doing("ending the main connection"))?;
        }
        // Its end would say nothing else.
        Err(_) if !source.can_abort() => source.refuse(),
        Err(_) => {}
    }
    let passed = passed?;
    let pause = lock(&mains.stopped).map(|stopped| stopped.elapsed());
    let shown = Shown {
        ok: true,
        seconds: begun.elapsed().as_secs_f64(),
        rounds: passed.rounds,
        pause_seconds: pause.map(|pause| pause.as_secs_f64()),
        main_bytes: mains.bytes.load(Ordering::Relaxed),
        incoming_compression: report::methods(&passed.methods),
        outgoing_compression: encoder.name(),
        incoming: passed.incoming.total().into(),
        outgoing: passed.outgoing.total().into(),
        ratio: ratio(&passed),
        incoming_channels: passed.incoming.channels.len(),
        outgoing_channels: passed.outgoing.channels.len(),
        auto: encoder.chosen(),
    };
    report::print(args.show.json, &shown, &line(&shown))
}

#[allow(clippy::cast_precision_loss)] // A figure for people to read.
fn ratio(passed: &Relayed) -> f64 {
    let [incoming, outgoing] = [&passed.incoming, &passed.outgoing].map(|stats| stats.total().wire_bytes);
    incoming as f64 / outgoing.max(1) as f64
}

fn line(shown: &Shown) -> String {
    let [incoming, outgoing] =
        [&shown.incoming, &shown.outgoing].map(|counts| HumanBytes(counts.wire_bytes()));
    let mut line = format!(
        "passed on {} rounds in {:.2} s: {incoming} in over {} channels ({}), {outgoing} out over {} ({}), ratio {:.2}",
        shown.rounds,
        shown.seconds,
        shown.incoming_channels,
        shown.incoming_compression,
        shown.outgoing_channels,
        shown.outgoing_compression,
        shown.ratio,
    );
    if let Some(pause) = shown.pause_seconds {
        // Writing to a String does not fail.
        let _ = write!(
            line,
            "\nthe guest stood still for at most {:.0} ms, as seen from here",
            pause * 1000.0
        );
    }
    if let Some(auto) = &shown.auto {
        line.push('\n');
        line.push_str(auto.line());
    }
    line
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps what is read through it.
struct Tee<'a> {
    inner: &'a mut SocketStream,
    seen: Vec<u8>,
}

impl Read for Tee<'_> {
    fn read(&mut self, room: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(room)?;
        self.seen.extend(room.get(..n).unwrap_or_default());
        Ok(n)
    }
}

/// What has passed on the main connection, to be read once more.
struct Copies {
    now: Vec<u8>,
    at: usize,
    more: Receiver<Vec<u8>>,
}

impl Copies {
    fn new(now: Vec<u8>, more: Receiver<Vec<u8>>) -> Self {
        Self { now, at: 0, more }
    }
}

impl Read for Copies {
    fn read(&mut self, room: &mut [u8]) -> std::io::Result<usize> {
        if self.at == self.now.len() {
            let Ok(next) = self.more.recv() else { return Ok(0) };
            (self.now, self.at) = (next, 0);
        }
        let n = self.now.get(self.at..).unwrap_or_default().read(room)?;
        self.at += n;
        Ok(n)
    }
}

/// The way to the destination. What the source says is held back until the outgoing channels are open: a destination may count
/// those that have connected when it is told to join a round.
struct Way {
    destination: SocketStream,
    held: Option<Vec<u8>>,
    /// The source has ended its side while it was held back: a small migration is all said before its channels' handshakes are done.
    ended: bool,
}

impl Way {
    fn open(&mut self) -> Result<(), Failure> {
        match self.held.take() {
            Some(held) => self.pass(&held)?,
            None => return Ok(()),
        }
        if self.ended { self.end() } else { Ok(()) }
    }

    fn pass(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        match &mut self.held {
            Some(held) if held.len() + bytes.len() > MAX_HELD => Err(Failure::Other(format!(
                "the source has sent more than {MAX_HELD} bytes on the main connection and nothing on a channel: switch the \
                 multifd capability on"
            ))),
            Some(held) => {
                held.extend(bytes);
                Ok(())
            }
            None => write(
                &mut self.destination,
                bytes,
                "writing to the destination's main connection",
            ),
        }
    }

    fn end(&mut self) -> Result<(), Failure> {
        if self.held.is_some() {
            self.ended = true;
            return Ok(());
        }
        self.destination
            .end_writing()
            .map_err(doing("ending the migration"))
    }
}

/// The two main connections, passed through as they are.
struct Mains {
    cancel: CancelHandle,
    progress: Arc<Progress>,
    /// How long the destination may take when all has been sent.
    finish: Duration,
    way: Mutex<Way>,
    first_error: Mutex<Option<Failure>>,
    /// What is held for following the main connection counts there.
    budget: MemoryBudget,
    /// When the source has said that its guest has stopped.
    stopped: Mutex<Option<Instant>>,
    source_done: AtomicBool,
    bytes: AtomicU64,
}

impl Mains {
    /// Passes both directions on while `channels` does the rest; all of it must end well.
    fn pass(
        &self,
        source: &mut SocketStream,
        destination: &mut SocketStream,
        channels: impl FnOnce() -> Result<Relayed, multifd_core::Error>,
    ) -> Result<Relayed, Failure> {
        for main in [&*source, &*destination] {
            // Neither must take our failure for an orderly end.
            main.abort_on_close(true)
                .map_err(doing("setting up the main connection"))?;
        }
        let _guards = [
            self.cancel.also_unblock(source.read_unblocker()),
            // It may be blocked in a write.
            self.cancel.also_unblock(destination.unblocker()),
        ];
        let from_source = source.second();
        let (copies, pieces) = sync_channel(FOLLOWED);
        let seen = lock(&self.way).held.clone().unwrap_or_default();
        let (from_destination, to_source) = (destination.second(), source.second());
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
            (Ok(relayed), None) => {
                destination
                    .abort_on_close(false)
                    .map_err(doing("ending the migration"))?;
                Ok(relayed)
            }
            (Err(multifd_core::Error::Cancelled) | Ok(_), Some(first)) => Err(first),
            (Err(error), _) => Err(error.into()),
        }
    }

    /// Keeps an error, if it is the first, and ends everything.
    fn keep(&self, outcome: Result<(), Failure>) {
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
    fn forward(&self, mut source: SocketStream, copies: SyncSender<Vec<u8>>) -> Result<(), Failure> {
        // The follower stops at the first thing that it does not understand.
        let mut copies = Some(copies);
        source.set_progress(Arc::clone(&self.progress));
        let mut room = vec![0; ROOM];
        let doing = "reading from the source's main connection";
        while let Some(bytes) = self.read(&mut source, &mut room, doing)? {
            self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            lock(&self.way).pass(bytes)?;
            copies = copies.filter(|copies| copies.send(bytes.to_vec()).is_ok());
            self.progress.touch();
        }
        self.source_done.store(true, Ordering::Release);
        self.progress.touch();
        lock(&self.way).end()
    }

    /// From the destination to the source, to its end.
    fn back(&self, mut destination: SocketStream, mut source: SocketStream) -> Result<(), Failure> {
        destination.set_progress(Arc::clone(&self.progress));
        let mut room = vec![0; ROOM];
        let doing = "reading from the destination's main connection";
        while let Some(bytes) = self.read(&mut destination, &mut room, doing)? {
            write(&mut source, bytes, "writing to the source's main connection")?;
        }
        // With a return path it ends its side first, and says nothing of how the migration ended by that. The source sees an end when
        // everything has ended well: it may take it for success.
        Ok(())
    }

    /// What has come; `None` at the connection's end. Silence is a stall only if there is silence everywhere.
    fn read<'a>(
        &self,
        main: &mut SocketStream,
        room: &'a mut [u8],
        doing: &'static str,
    ) -> Result<Option<&'a [u8]>, Failure> {
        loop {
            match main.read(room) {
                Ok(0) => return Ok(None),
                Ok(n) => return Ok(Some(room.get(..n).unwrap_or_default())),
                Err(e) if e.kind() == ErrorKind::TimedOut && !self.is_stalled() => {}
                Err(source) => return Err(Failure::System { doing, source }),
            }
        }
    }

    fn is_stalled(&self) -> bool {
        let done = self.source_done.load(Ordering::Acquire);
        self.progress.is_stalled() && !(done && self.progress.quiet() < self.finish)
    }
}

fn write(main: &mut SocketStream, bytes: &[u8], doing: &'static str) -> Result<(), Failure> {
    main.write_all(bytes)
        .map_err(|source| Failure::System { doing, source })
}
