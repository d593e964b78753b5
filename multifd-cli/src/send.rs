//! `multifd send`: the source of a migration, from a file.

use crate::args::Send;
use crate::failure::{Failure, doing};
use crate::progress::Slot;
use crate::report::{self, Transfer};
use crate::{method, signals, snapshot_file};
use multifd_core::{CancelHandle, ChannelError, Method, SenderConfig};
use multifd_qemu::{SendOptions, Sent, Snapshot, send};
use multifd_transport_socket::{SocketStream, SocketTransport};
use std::time::{Duration, Instant};

pub(crate) fn run(args: &Send) -> Result<(), Failure> {
    let cancel = signals::cancel_on_signal()?;
    let method = method::method(args.compression, args.level)?;
    let mut snapshot = match (&args.file, &args.raw) {
        (Some(file), _) => snapshot_file::read(file)?,
        (None, Some(raw)) => snapshot_file::read_raw(raw, &args.block)?,
        (None, None) => return Err(Failure::Other("there is nothing to send".into())),
    };
    if let Some(uuid) = args.uuid {
        snapshot.uuid = uuid.0;
    }
    let transport = SocketTransport::new(args.to.clone(), args.deadlines.socket());
    let mut main = transport.connect().map_err(doing("connecting"))?;
    let _guard = cancel.also_unblock(main.unblocker());
    let begun = Instant::now();
    main.abort_on_close(true)
        .map_err(doing("setting up the main connection"))?;
    let sent = go(args, &snapshot, &mut main, method.as_ref(), &transport, &cancel)?;
    main.abort_on_close(false)
        .map_err(doing("ending the migration"))?;
    let seconds = begun.elapsed().as_secs_f64();
    main.end_writing().map_err(doing("ending the migration"))?;
    wait_closed(&mut main, Duration::from_secs(args.finish_timeout)).map_err(|source| {
        match cancel.error() {
            Some(cancelled) => Failure::Engine(cancelled),
            None => doing("all is sent, but the destination does not seem to have taken it")(source),
        }
    })?;
    let result = Transfer {
        ok: true,
        machine: snapshot.configuration.machine.clone(),
        uuid: report::uuid(snapshot.uuid),
        compression: method.kind().name(),
        sync: report::sync_name(sent.sync),
        rounds: None,
        seconds,
        main_bytes: sent.main_bytes,
        total: sent.stats.total().into(),
        channels: report::channels(&sent.stats),
        blocks: report::blocks(snapshot.blocks()),
        file: None,
        stored_pages: None,
    };
    report::print(args.show.json, &result, &result.line("sent"));
    Ok(())
}

fn go(
    args: &Send,
    snapshot: &Snapshot,
    main: &mut SocketStream,
    method: &dyn Method,
    transport: &SocketTransport,
    cancel: &CancelHandle,
) -> Result<Sent, Failure> {
    let watch = Slot::default();
    let options = SendOptions {
        sender: SenderConfig {
            channels: args.channels,
            cancel: cancel.clone(),
            ..SenderConfig::default()
        },
        on_start: Some(watch.on_start("sending", args.show.quiet)),
        ..SendOptions::default()
    };
    Ok(send(snapshot, main, method, transport, options)?)
}

/// Waits for the destination to close the main connection; a destination that writes a file may take its time.
fn wait_closed(main: &mut SocketStream, timeout: Duration) -> Result<(), ChannelError> {
    let deadline = Instant::now() + timeout;
    loop {
        match main.wait_closed() {
            Err(ChannelError::Stalled { .. }) if Instant::now() < deadline => {}
            Err(ChannelError::Stalled { .. }) => return Err(ChannelError::Stalled { deadline: timeout }),
            other => return other,
        }
    }
}
