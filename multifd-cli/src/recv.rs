//! `multifd recv`: the destination of a migration, into a file.

use crate::args::Recv;
use crate::failure::{Failure, doing};
use crate::progress::Slot;
use crate::report::{self, Transfer};
use crate::{method, signals, snapshot_file};
use multifd_core::{CancelHandle, Progress};
use multifd_qemu::{ReceiveOptions, Received, receive};
use multifd_transport_file::{AtomicFile, Written};
use multifd_transport_socket::{SocketListener, SocketStream};
use std::sync::Arc;
use std::time::Instant;

pub(crate) fn run(args: &Recv) -> Result<(), Failure> {
    let cancel = signals::cancel_on_signal()?;
    snapshot_file::check_target(&args.out, args.force)?;
    // A path that can not be written to is known before anything is received.
    let file = AtomicFile::create(&args.out)?;
    let mut listener =
        SocketListener::bind(&args.listen, args.deadlines.socket()).map_err(doing("listening"))?;
    if !args.show.quiet {
        eprintln!("listening on {}", listener.address().map_err(doing("listening"))?);
    }
    let _listener_guard = cancel.also_unblock(listener.unblocker());
    let mut main = listener.accept_main().map_err(|error| match cancel.error() {
        Some(cancelled) => Failure::Engine(cancelled),
        None => doing("waiting for a migration")(error),
    })?;
    // The source may take an orderly end for our word that all is well: it gets one then, and not before.
    main.abort_on_close(true)
        .map_err(doing("setting up the main connection"))?;
    let main_guard = cancel.also_unblock(main.read_unblocker());
    let begun = Instant::now();
    let (received, written) = take(args, &mut main, &mut listener, &cancel, file)?;
    drop(main_guard);
    main.abort_on_close(false)
        .map_err(doing("ending the main connection"))?;
    drop(main);
    finish(args, &received, written, begun);
    Ok(())
}

fn take(
    args: &Recv,
    main: &mut SocketStream,
    listener: &mut SocketListener,
    cancel: &CancelHandle,
    file: AtomicFile,
) -> Result<(Received, Written), Failure> {
    let watch = Slot::default();
    let options = ReceiveOptions {
        methods: method::decoders(args.compression)?,
        channels: args.channels,
        uuid: args.uuid.map(|uuid| uuid.0),
        need_vmdesc: !args.allow_no_vmdesc,
        progress: Arc::new(Progress::new(args.deadlines.socket().stall)),
        cancel: cancel.clone(),
        on_start: Some(watch.on_start("receiving", args.show.quiet)),
        ..ReceiveOptions::default()
    };
    let received = receive(main, listener, options);
    drop(watch);
    let received = received?;
    let written = snapshot_file::write(file, &received.snapshot, cancel, args.show.quiet)?;
    Ok((received, written))
}

fn finish(args: &Recv, received: &Received, written: Written, begun: Instant) {
    let snapshot = &received.snapshot;
    let result = Transfer {
        ok: true,
        machine: snapshot.configuration.machine.clone(),
        uuid: report::uuid(snapshot.uuid),
        compression: received.method.name(),
        sync: report::sync_name(received.sync),
        rounds: Some(received.rounds),
        seconds: begun.elapsed().as_secs_f64(),
        main_bytes: received.main_bytes,
        total: received.stats.total().into(),
        channels: report::channels(&received.stats),
        blocks: report::blocks(snapshot.blocks()),
        file: Some(args.out.display().to_string()),
        stored_pages: Some(written.pages),
    };
    let text = format!(
        "{}\n{}: machine {}, {} pages stored",
        result.line("received"),
        args.out.display(),
        result.machine,
        written.pages
    );
    report::print(args.show.json, &result, &text);
}
