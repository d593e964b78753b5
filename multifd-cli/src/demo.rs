//! `multifd demo`: the whole path over loopback, by every method, every byte compared.

use crate::args::Demo;
use crate::encoding::{Encoder, Encoding, Level};
use crate::failure::{Failure, doing};
use crate::method::Choice;
use crate::progress::{Rounds, Slot};
use crate::{image, method, report, signals, threads};
use indicatif::HumanBytes;
use multifd_core::packet::Compression;
use multifd_core::{CancelHandle, MemoryBudget, RamBlock, RamMap, ReceiverConfig, SenderConfig};
use multifd_qemu::{
    Error, IncomingMigration, OutgoingMigration, ReceiveOptions, Received, SendOptions, Snapshot,
};
use multifd_transport_socket::{Address, SocketListener, SocketOptions, SocketTransport};
use serde::Serialize;
use std::time::{Duration, Instant};

const PAGE_SIZE: u32 = 4096;
/// How long the receiving half may take when all has been sent.
const FINISH: Duration = Duration::from_secs(60);

/// One row of the table.
#[derive(Debug, Serialize)]
struct Row {
    compression: String,
    channels: u8,
    seconds: f64,
    gib_per_second: f64,
    wire_bytes: u64,
    ratio: f64,
    verified: bool,
}

impl Row {
    fn line(&self) -> String {
        format!(
            "{:<6}  {:>8}  {:>7.3}  {:>11.2}  {:>12}  {:>5.2}",
            self.compression,
            self.channels,
            self.seconds,
            self.gib_per_second,
            self.wire_bytes,
            self.ratio
        )
    }
}

#[derive(Serialize)]
struct Shown {
    ok: bool,
    bytes: u64,
    rows: Vec<Row>,
}

pub(crate) fn run(args: &Demo) -> Result<(), Failure> {
    let cancel = signals::cancel_on_signal()?;
    let len = args
        .size
        .next_multiple_of(PAGE_SIZE.into())
        .max(PAGE_SIZE.into());
    if !args.show.quiet {
        report::note(&format!(
            "making {} of memory: zero, compressible and random pages",
            HumanBytes(len)
        ));
    }
    let mut ram = RamMap::new();
    ram.add(RamBlock::anonymous("demo.ram", len, PAGE_SIZE)?)?;
    for block in ram.blocks() {
        image::fill(block, args.seed)?;
    }
    let snapshot = Snapshot::of_ram(ram.freeze()?);
    let mut rows = Vec::new();
    if !args.show.json {
        report::say("method  channels  seconds  guest GiB/s    wire bytes  ratio")?;
    }
    for &compression in &args.compression {
        for &channels in &args.channels {
            let row = measure(args, &snapshot, compression, channels, &cancel)?;
            if !args.show.json {
                report::say(&row.line())?;
            }
            rows.push(row);
        }
    }
    let shown = Shown {
        ok: true,
        bytes: len,
        rows,
    };
    report::print(args.show.json, &shown, "every byte arrived, every time")
}

fn measure(
    args: &Demo,
    snapshot: &Snapshot,
    compression: Choice,
    channels: u8,
    cancel: &CancelHandle,
) -> Result<Row, Failure> {
    let encoding = Encoding {
        compression,
        level: match (compression, args.level) {
            (Choice::One(Compression::Zstd), level)
            | (Choice::One(Compression::Zlib), level @ Level::Fixed(_)) => Some(level),
            // What chooses levels itself, or has none, takes none.
            _ => None,
        },
        compress_threads: None,
        checksum: false,
    };
    let encoder = encoding.encoder(Some(channels))?;
    let loopback = Address::Tcp {
        host: "127.0.0.1".into(),
        port: 0,
    };
    let mut listener =
        SocketListener::bind(&loopback, SocketOptions::default()).map_err(doing("listening"))?;
    let transport = SocketTransport::new(
        listener.address().map_err(doing("listening"))?,
        SocketOptions::default(),
    );
    let begun = Instant::now();
    let (sent, received) = std::thread::scope(|scope| {
        let destination = scope.spawn(|| arrive(&mut listener, cancel));
        let sent = depart(args, snapshot, &encoder, channels, &transport, cancel);
        if sent.is_err() {
            // Nothing more will arrive.
            cancel.cancel();
        }
        let received = destination.join();
        (sent, received)
    });
    let seconds = begun.elapsed().as_secs_f64();
    // What the receiver has to say comes first: the sender only sees that it is gone.
    let received =
        received.map_err(|_| Failure::Other("the receiving thread panicked".into()))??;
    sent?;
    for (ours, theirs) in snapshot
        .ram
        .blocks()
        .iter()
        .zip(received.snapshot.ram.blocks())
    {
        if let Some(offset) = image::first_difference(ours, theirs)? {
            return Err(Failure::Other(format!(
                "RAM block {:?} differs at offset {offset:#x} after {} over {channels} channels",
                ours.name(),
                compression.name()
            )));
        }
    }
    let (wire_bytes, guest_bytes) = (
        received.stats.total().wire_bytes + received.main_bytes,
        snapshot.ram.total_len(),
    );
    #[allow(clippy::cast_precision_loss)] // Figures for people to read.
    Ok(Row {
        compression: report::methods(&received.methods),
        channels,
        seconds,
        gib_per_second: guest_bytes as f64 / seconds / f64::from(1 << 30),
        wire_bytes,
        ratio: guest_bytes as f64 / wire_bytes as f64,
        verified: true,
    })
}

fn arrive(listener: &mut SocketListener, cancel: &CancelHandle) -> Result<Received, Error> {
    let engine = ReceiverConfig::default()
        .methods(method::decoders(None, &MemoryBudget::default()))
        .thread_start(Some(threads::receiving()))
        .cancel(cancel.clone());
    let mut migration = IncomingMigration::wait(listener, cancel)?;
    let received = migration.receive(listener, ReceiveOptions::default().engine(engine))?;
    migration.accept()?;
    Ok(received)
}

fn depart(
    args: &Demo,
    snapshot: &Snapshot,
    encoder: &Encoder,
    channels: u8,
    transport: &SocketTransport,
    cancel: &CancelHandle,
) -> Result<(), Error> {
    let watch = Slot::default();
    let label = format!("{} over {channels}", encoder.name());
    let sender = SenderConfig::default()
        .channels(channels)
        .cancel(cancel.clone());
    let options = SendOptions::default()
        .sender(sender)
        .on_start(Some(watch.on_start(
            &label,
            args.show.quiet,
            &Rounds::default(),
        )));
    let mut migration = OutgoingMigration::connect(transport, cancel)?;
    migration.send(snapshot, encoder.encode(), transport, options)?;
    migration.finish(FINISH)
}
