//! `multifd demo`: the whole path over loopback, by every method, every byte compared.

use crate::args::Demo;
use crate::encoding::{Encoding, Level};
use crate::failure::{Failure, doing};
use crate::options::Compression;
use crate::progress::Slot;
use crate::{image, method, report, signals};
use indicatif::HumanBytes;
use multifd_core::{CancelHandle, MemoryBudget, Method, RamBlock, RamMap, SenderConfig};
use multifd_qemu::{ReceiveOptions, Received, SendOptions, Snapshot, receive, send};
use multifd_transport_socket::{Address, SocketListener, SocketOptions, SocketTransport};
use serde::Serialize;
use std::time::Instant;

const PAGE_SIZE: u32 = 4096;

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
            self.compression, self.channels, self.seconds, self.gib_per_second, self.wire_bytes, self.ratio
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
    let len = args.size.next_multiple_of(PAGE_SIZE.into()).max(PAGE_SIZE.into());
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
    compression: Compression,
    channels: u8,
    cancel: &CancelHandle,
) -> Result<Row, Failure> {
    let encoding = Encoding {
        compression,
        level: match (compression, args.level) {
            (Compression::Zstd, level) | (Compression::Zlib, level @ Level::Fixed(_)) => Some(level),
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
    let _guard = cancel.also_unblock(listener.unblocker());
    let begun = Instant::now();
    let (sent, received) = std::thread::scope(|scope| {
        let destination = scope.spawn(|| arrive(&mut listener, cancel));
        let sent = depart(
            args,
            snapshot,
            encoder.method.as_ref(),
            channels,
            &transport,
            cancel,
        );
        if sent.is_err() {
            // Nothing more will arrive.
            cancel.cancel();
        }
        let received = destination.join();
        (sent, received)
    });
    let seconds = begun.elapsed().as_secs_f64();
    // What the receiver has to say comes first: the sender only sees that it is gone.
    let received = received.map_err(|_| Failure::Other("the receiving thread panicked".into()))??;
    sent?;
    for (ours, theirs) in snapshot.ram.blocks().iter().zip(received.snapshot.ram.blocks()) {
        if let Some(offset) = image::first_difference(ours, theirs)? {
            return Err(Failure::Other(format!(
                "RAM block {:?} differs at offset {offset:#x} after {compression:?} over {channels} channels",
                ours.name()
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

fn arrive(listener: &mut SocketListener, cancel: &CancelHandle) -> Result<Received, Failure> {
    let mut main = listener
        .accept_main()
        .map_err(doing("waiting for the migration"))?;
    let _guard = cancel.also_unblock(main.read_unblocker());
    let options = ReceiveOptions {
        methods: method::decoders(None, &MemoryBudget::default()),
        cancel: cancel.clone(),
        ..ReceiveOptions::default()
    };
    Ok(receive(&mut main, listener, options)?)
}

fn depart(
    args: &Demo,
    snapshot: &Snapshot,
    method: &dyn Method,
    channels: u8,
    transport: &SocketTransport,
    cancel: &CancelHandle,
) -> Result<(), Failure> {
    let mut main = transport.connect().map_err(doing("connecting"))?;
    let _guard = cancel.also_unblock(main.unblocker());
    let watch = Slot::default();
    let label = format!("{} over {channels}", method.kind());
    let options = SendOptions {
        sender: SenderConfig {
            channels,
            cancel: cancel.clone(),
            ..SenderConfig::default()
        },
        on_start: Some(watch.on_start(&label, args.show.quiet, &crate::progress::Rounds::default())),
        ..SendOptions::default()
    };
    send(snapshot, &mut main, method, transport, options)?;
    main.end_writing().map_err(doing("ending the migration"))?;
    main.wait_closed().map_err(doing("waiting for the destination"))
}
