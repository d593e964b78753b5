//! `multifd send`: the source of a migration, from a file.

use crate::args::Send;
use crate::encoding::Encoder;
use crate::failure::Failure;
use crate::image_file::Opened;
use crate::options::{Dialect, Show, Sync, ZeroCopy, ZeroPages};
use crate::progress::{Rounds, Slot};
use crate::report::{self, Transfer};
use crate::signals;
use multifd_core::{
    CancelHandle, ChannelError, Checksums, Error as EngineError, SenderConfig, WriteFlags,
};
use multifd_qemu::file::{SnapshotFile, map_raw};
use multifd_qemu::{
    Error, OutgoingMigration, SendOptions, Sent, Snapshot, SyncStyle, ZeroPageStyle,
};
use multifd_transport_socket::SocketTransport;
use std::time::{Duration, Instant};

pub(crate) fn run(args: &Send) -> Result<(), Failure> {
    args.threads.apply()?;
    let cancel = signals::cancel_on_signal()?;
    let encoder = args.encoding.encoder(Some(args.channels))?;
    let (mut snapshot, _mount) = match (&args.file, &args.raw) {
        (Some(file), _) => {
            let opened = Opened::open(file, args.offset, &args.key)?;
            opened.map_by(|file| mapped(file, args.dialect))?
        }
        (None, Some(raw)) => (map_raw(raw, &args.block)?, None),
        (None, None) => return Err(Failure::Other("there is nothing to send".into())),
    };
    if let Some(uuid) = args.uuid {
        snapshot.uuid = uuid;
    }
    let socket = args
        .tuning
        .options()
        .zero_copy_fallback(args.zero_copy == ZeroCopy::Auto);
    let transport = args.exit.transport(socket, &args.tls)?;
    let zero_copy = args.zero_copy != ZeroCopy::Off;
    let way = Way {
        encoder: &encoder,
        checksums: args.encoding.checksums(),
        transport: &transport,
        channels: args.channels,
        flags: WriteFlags { zero_copy },
        dialect: args.dialect,
        finish: args.finishing.timeout(),
    };
    let begun = Instant::now();
    let sent = give(&snapshot, &way, &cancel, args.show);
    let sent = sent.map_err(|error| with_hints(error, &snapshot, args))?;
    let zero_copy = zero_copy.then(|| transport.zero_copy_counts().into());
    finish(
        args.show,
        &snapshot,
        &encoder,
        &sent,
        begun,
        (zero_copy, None),
    )
}

/// A snapshot's memory as a mapping of its file, as the other end wants its zero pages.
pub(crate) fn mapped(file: SnapshotFile, dialect: Dialect) -> Result<Snapshot, Error> {
    match dialect.zero_pages {
        Some(ZeroPages::None) => file.map_clean(),
        _ => file.map(),
    }
}

/// A destination that refuses breaks off without a word. The error gets what it may not have liked.
fn with_hints(error: Error, snapshot: &Snapshot, args: &Send) -> Failure {
    let broke_off = match &error {
        Error::Engine(EngineError::Channel { cause, .. }) | Error::Connection { cause, .. } => {
            Some(cause)
        }
        _ => None,
    };
    let hints = match broke_off {
        Some(ChannelError::Stalled { deadline }) if may_wait_for_more(&error, snapshot, args.dialect) => {
            return Failure::Other(format!(
                "all is sent, but nothing moved for {deadline:?}. The machine type {:?} does not tell when its channels \
                 sync: if the destination waits for more, try --sync section",
                snapshot.configuration.machine
            ));
        }
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
            if snapshot.uuid.is_nil() {
                hints.push_str(", or it has a UUID (-uuid), which this file does not tell: --uuid says it");
            }
            hints
        }
        _ => match &error {
            Error::Io { .. } if snapshot.uuid.is_nil() => {
                "the destination broke off; a QEMU says why on its standard error. If it has a UUID (-uuid), which this file does \
                 not tell, --uuid says it"
                    .into()
            }
            Error::Io { .. } => "the destination broke off; a QEMU says why on its standard error".into(),
            _ => return error.into(),
        },
    };
    Failure::Other(format!("{error}; {hints}"))
}

/// Whether a destination that does not end may wait for a sync it was not sent.
fn may_wait_for_more(error: &Error, snapshot: &Snapshot, dialect: Dialect) -> bool {
    let known = dialect.sync.is_some() || snapshot.configuration.syncs_each_section().is_some();
    matches!(error, Error::Connection { .. }) && !known
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
) -> Result<Sent, Error> {
    let watch = Slot::default();
    let sender = SenderConfig::default()
        .channels(way.channels)
        .flags(way.flags)
        .checksums(way.checksums)
        .cancel(cancel.clone());
    let options = SendOptions::default()
        .sender(sender)
        .sync(way.dialect.sync.map(|sync| match sync {
            Sync::Round => SyncStyle::EachRound,
            Sync::Section => SyncStyle::EachSection,
        }))
        .zero_pages(way.dialect.zero_pages.map(|how| match how {
            ZeroPages::Multifd => ZeroPageStyle::Packets,
            ZeroPages::Legacy => ZeroPageStyle::Main,
            ZeroPages::None => ZeroPageStyle::Data,
        }))
        .on_start(Some(watch.on_start(
            "sending",
            show.quiet,
            &Rounds::default(),
        )));
    let mut migration = OutgoingMigration::connect(way.transport, cancel)?;
    let sent = migration.send(snapshot, way.encoder.encode(), way.transport, options)?;
    drop(watch);
    migration.finish_noting(way.finish, || {
        if !show.quiet {
            report::note(&format!(
                "all is sent; the destination has not finished yet. A QEMU that was told of more channels than {} waits for the \
                 others",
                way.channels
            ));
        }
    })?;
    Ok(sent)
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
        uuid: snapshot.uuid.to_string(),
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
