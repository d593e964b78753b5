//! `multifd recv`: the destination of a migration, into a file.

use crate::args::Recv;
use crate::failure::{Failure, doing};
use crate::options::Show;
use crate::progress::Slot;
use crate::report::{self, Transfer};
use crate::snapshot_file::Target;
use crate::{method, signals};
use multifd_core::{CancelHandle, Progress};
use multifd_qemu::{Limits, ReceiveOptions, Received, receive};
use multifd_transport_file::Written;
use multifd_transport_socket::SocketListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

pub(crate) fn run(args: &Recv) -> Result<(), Failure> {
    let cancel = signals::cancel_on_signal()?;
    let socket = args.tuning.options();
    let target = Target::create(&args.out, args.writing)?;
    let mut listener = args.entrance.open(socket, &args.tls, args.show)?;
    let options = ReceiveOptions {
        methods: method::decoders(args.compression),
        channels: args.channels,
        uuid: args.uuid.map(|uuid| uuid.0),
        require_checksums: args.require_checksum,
        need_vmdesc: !args.allow_no_vmdesc,
        limits: Limits {
            ram_bytes: args
                .max_ram
                .or_else(machine_memory)
                .unwrap_or(Limits::default().ram_bytes),
            ..Limits::default()
        },
        progress: Arc::new(Progress::new(socket.stall)),
        cancel: cancel.clone(),
        ..ReceiveOptions::default()
    };
    let (begun, received, written) = take(&mut listener, options, args.show, |received| {
        target.write(&received.snapshot, &cancel, args.show.quiet)
    })?;
    finish(&args.out, args.show, &received, written, begun);
    Ok(())
}

/// Receives one migration, and has `keep` put it where it is to stay. The source gets an orderly end of its main connection
/// only if that has worked: it may take it for our word that all is well.
pub(crate) fn take<T>(
    listener: &mut SocketListener,
    mut options: ReceiveOptions,
    show: Show,
    keep: impl FnOnce(&Received) -> Result<T, Failure>,
) -> Result<(Instant, Received, T), Failure> {
    let cancel = options.cancel.clone();
    let _listener_guard = cancel.also_unblock(listener.unblocker());
    let mut main = listener
        .accept_main()
        .map_err(|error| cancelled(&cancel, doing("waiting for a migration")(error)))?;
    let setting_up = doing("setting up the main connection");
    main.abort_on_close(true).map_err(setting_up)?;
    // QEMU's description at the end of the stream shows that nothing is missing.
    main.end_without_tls(options.need_vmdesc);
    let main_guard = cancel.also_unblock(main.read_unblocker());
    let begun = Instant::now();
    let watch = Slot::default();
    options.on_start = Some(watch.on_start("receiving", show.quiet));
    let outcome = receive(&mut main, listener, options)
        .map_err(Failure::from)
        .and_then(|received| {
            drop(watch);
            let kept = keep(&received)?;
            Ok((begun, received, kept))
        });
    drop(main_guard);
    if outcome.is_ok() {
        main.abort_on_close(false)
            .map_err(doing("ending the main connection"))?;
    } else if !main.can_abort() {
        main.refuse();
    }
    outcome
}

/// Bytes of memory this machine has: a guest with more could not be received.
fn machine_memory() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kib.checked_mul(1024)
}

/// The error, or that the transfer was cancelled, if that is why.
pub(crate) fn cancelled(cancel: &CancelHandle, error: Failure) -> Failure {
    cancel.error().map_or(error, Failure::Engine)
}

/// Prints what has been received.
pub(crate) fn finish(out: &Path, show: Show, received: &Received, written: Written, begun: Instant) {
    let snapshot = &received.snapshot;
    let result = Transfer {
        ok: true,
        machine: snapshot.configuration.machine.clone(),
        uuid: report::uuid(snapshot.uuid),
        compression: report::methods(&received.methods),
        sync: report::sync_name(received.sync),
        rounds: Some(received.rounds),
        seconds: begun.elapsed().as_secs_f64(),
        channel_seconds: received.stats.elapsed.as_secs_f64(),
        main_bytes: received.main_bytes,
        total: received.stats.total().into(),
        channels: report::channels(&received.stats),
        blocks: report::blocks(snapshot.blocks()),
        file: Some(out.display().to_string()),
        stored_pages: Some(written.pages),
        auto: None,
        zero_copy: None,
    };
    let text = format!(
        "{}\n{}: machine {}, {} pages stored",
        result.line("received"),
        out.display(),
        report::tame(&result.machine),
        written.pages
    );
    report::print(show.json, &result, &text);
}
