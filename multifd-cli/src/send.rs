//! `multifd send`: the source of a migration, from a file.

use crate::args::Send;
use crate::encoding::Encoder;
use crate::failure::{Failure, doing};
use crate::options::{Dialect, Image, Show, Sync, ZeroCopy, ZeroPages};
use crate::progress::{Rounds, Slot};
use crate::recv::cancelled;
use crate::report::{self, Transfer};
use crate::{signals, snapshot_file};
use multifd_core::{CancelHandle, ChannelError, Checksums, SenderConfig, WriteFlags};
use multifd_qemu::{SendOptions, Sent, Snapshot, SyncStyle, ZeroPageStyle, send};
use multifd_transport_socket::{SocketOptions, SocketStream, SocketTransport};
use std::time::{Duration, Instant};

pub(crate) fn run(args: &Send) -> Result<(), Failure> {
    let cancel = signals::cancel_on_signal()?;
    let encoder = args.encoding.encoder(Some(args.channels))?;
    let mut snapshot = match (&args.file, &args.raw) {
        (Some(file), _) => {
            let image = Image {
                file: file.clone(),
                offset: args.offset,
            };
            snapshot_file::read(&image, args.direct_io)?
        }
        (None, Some(raw)) => snapshot_file::read_raw(raw, &args.block)?,
        (None, None) => return Err(Failure::Other("there is nothing to send".into())),
    };
    if let Some(uuid) = args.uuid {
        snapshot.uuid = uuid.0;
    }
    // Nobody changes it any more: a codec may read it in place.
    snapshot.ram = std::mem::take(&mut snapshot.ram).freeze()?;
    let socket = SocketOptions {
        zero_copy_fallback: args.zero_copy == ZeroCopy::Auto,
        ..args.tuning.options()
    };
    let transport = args.exit.transport(socket, &args.tls)?;
    let zero_copy = args.zero_copy != ZeroCopy::Off;
    let way = Way {
        encoder: &encoder,
        checksums: args.encoding.checksums(),
        transport: &transport,
        channels: args.channels,
        flags: WriteFlags { zero_copy },
        dialect: args.dialect,
        finish: Duration::from_secs(args.finish_timeout),
    };
    let begun = Instant::now();
    let sent = give(&snapshot, &way, &cancel, args.show);
    let sent = sent.map_err(|error| with_hints(error, &snapshot, args))?;
    let zero_copy = zero_copy.then(|| transport.zero_copy_counts().into());
    finish(args.show, &snapshot, &encoder, &sent, begun, (zero_copy, None))
}

/// A destination that refuses says nothing, it breaks off. What it may not have liked is added.
fn with_hints(error: Failure, snapshot: &Snapshot, args: &Send) -> Failure {
    let broke_off = match &error {
        Failure::Engine(multifd_core::Error::Channel { source, .. })
        | Failure::Migration(multifd_qemu::Error::Engine(multifd_core::Error::Channel { source, .. }))
        | Failure::Connection { source, .. } => Some(source),
        _ => None,
    };
    let hints = match broke_off {
        Some(ChannelError::Stalled { .. }) => format!(
            "a QEMU that was told of more channels waits for the others: {} were opened (--channels)",
            args.channels
        ),
        Some(ChannelError::Io(_) | ChannelError::Closed { .. }) => {
            let mut hints = format!(
                "a QEMU that breaks off says why on its standard error: another machine, another number of channels than {} \
                 (--channels), another compression",
                args.channels
            );
            if snapshot.uuid == [0; 16] {
                hints.push_str(", or it has a UUID (-uuid), which this file does not tell: --uuid says it");
            }
            hints
        }
        _ => match &error {
            Failure::Migration(multifd_qemu::Error::Io { .. }) if snapshot.uuid == [0; 16] => {
                "the destination broke off; a QEMU says why on its standard error. If it has a UUID (-uuid), which this file does \
                 not tell, --uuid says it"
                    .into()
            }
            Failure::Migration(multifd_qemu::Error::Io { .. }) => {
                "the destination broke off; a QEMU says why on its standard error".into()
            }
            _ => return error,
        },
    };
    Failure::Other(format!("{error}; {hints}"))
}

/// By which way a snapshot goes.
pub(crate) struct Way<'a> {
    pub(crate) encoder: &'a Encoder,
    pub(crate) checksums: Checksums,
    pub(crate) transport: &'a SocketTransport,
    pub(crate) channels: u8,
    pub(crate) flags: WriteFlags,
    pub(crate) dialect: Dialect,
    /// How long the destination may take when all is sent.
    pub(crate) finish: Duration,
}

/// Sends a snapshot, and waits until the destination has taken it.
pub(crate) fn give(
    snapshot: &Snapshot,
    way: &Way<'_>,
    cancel: &CancelHandle,
    show: Show,
) -> Result<Sent, Failure> {
    let mut main = way.transport.connect().map_err(doing("connecting"))?;
    let _guard = cancel.also_unblock(main.unblocker());
    // A destination must not take what we could not finish for the end.
    main.abort_on_close(true)
        .map_err(doing("setting up the main connection"))?;
    let watch = Slot::default();
    let options = SendOptions {
        sender: SenderConfig {
            channels: way.channels,
            flags: way.flags,
            checksums: way.checksums,
            cancel: cancel.clone(),
            ..SenderConfig::default()
        },
        sync: way.dialect.sync.map(|sync| match sync {
            Sync::Round => SyncStyle::EachRound,
            Sync::Section => SyncStyle::EachSection,
        }),
        zero_pages: way.dialect.zero_pages.map(|how| match how {
            ZeroPages::Multifd => ZeroPageStyle::Packets,
            ZeroPages::Legacy => ZeroPageStyle::Main,
            ZeroPages::None => ZeroPageStyle::Data,
        }),
        on_start: Some(watch.on_start("sending", show.quiet, &Rounds::default())),
    };
    let sent = send(
        snapshot,
        &mut main,
        way.encoder.method.as_ref(),
        way.transport,
        options,
    )?;
    drop(watch);
    main.abort_on_close(false)
        .map_err(doing("ending the migration"))?;
    main.end_writing().map_err(doing("ending the migration"))?;
    let not_taken = doing("all is sent, but the destination does not seem to have taken it");
    let waiting = || {
        if !show.quiet {
            report::note(&format!(
                "all is sent; the destination has not finished yet. A QEMU that was told of more channels than {} waits for the \
                 others",
                way.channels
            ));
        }
    };
    wait_closed(&mut main, way.finish, waiting).map_err(|source| {
        let known = way.dialect.sync.is_some() || snapshot.configuration.syncs_each_section().is_some();
        match source {
            ChannelError::Stalled { deadline } if !known => Failure::Other(format!(
                "all is sent, but nothing moved for {deadline:?}. The machine type {:?} does not tell when its channels \
                 sync: if the destination waits for more, try --sync section",
                snapshot.configuration.machine
            )),
            source => cancelled(cancel, not_taken(source)),
        }
    })?;
    Ok(sent)
}

/// Waits for the destination to close the main connection; a destination that writes a file may take its time.
fn wait_closed(
    main: &mut SocketStream,
    timeout: Duration,
    waiting: impl FnOnce(),
) -> Result<(), ChannelError> {
    let deadline = Instant::now() + timeout;
    let mut waiting = Some(waiting);
    loop {
        match main.wait_closed() {
            Err(ChannelError::Stalled { .. }) if Instant::now() < deadline => {
                waiting.take().into_iter().for_each(|waiting| waiting());
            }
            Err(ChannelError::Stalled { .. }) => return Err(ChannelError::Stalled { deadline: timeout }),
            other => return other,
        }
    }
}

/// Prints what has been sent.
pub(crate) fn finish(
    show: Show,
    snapshot: &Snapshot,
    encoder: &Encoder,
    sent: &Sent,
    begun: Instant,
    (zero_copy, state): (Option<report::ZeroCopy>, Option<String>),
) -> Result<(), Failure> {
    let result = Transfer {
        ok: true,
        machine: snapshot.configuration.machine.clone(),
        uuid: report::uuid(snapshot.uuid),
        compression: encoder.name().into(),
        sync: report::sync_name(sent.sync),
        rounds: None,
        seconds: begun.elapsed().as_secs_f64(),
        channel_seconds: sent.stats.elapsed.as_secs_f64(),
        main_bytes: sent.main_bytes,
        total: sent.stats.total().into(),
        main: sent.stats.main.into(),
        channels: report::channels(&sent.stats),
        blocks: report::blocks(snapshot.blocks()),
        auto: encoder.chosen(),
        zero_copy,
        state,
        ..Transfer::default()
    };
    let mut line = result.line("sent");
    if let Some(auto) = &result.auto {
        line.push('\n');
        line.push_str(auto.line());
    }
    if let Some(zero_copy) = &result.zero_copy {
        line.push('\n');
        line.push_str(&zero_copy.line());
    }
    if let Some(state) = &result.state {
        line.push_str("\nthe guest is ");
        line.push_str(state);
    }
    report::print(show.json, &result, &line)
}
