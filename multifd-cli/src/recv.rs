//! `multifd recv`: the destination of a migration, into a file.

use crate::args::Recv;
use crate::failure::{Failure, doing};
use crate::options::Show;
use crate::progress::{Rounds, Slot};
use crate::report::{self, Guest, Transfer};
use crate::snapshot_file::{Kept, Target};
use crate::{method, signals};
use multifd_core::{CancelHandle, MemoryBudget, Progress};
use multifd_qemu::{Limits, ReceiveOptions, Received, receive};
use multifd_transport_socket::SocketListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) fn run(args: &Recv) -> Result<(), Failure> {
    let cancel = signals::cancel_on_signal()?;
    let socket = args.tuning.options();
    let target = Target::create(&args.out, args.writing)?;
    let mut listener = args.entrance.open(socket, &args.tls, args.show)?;
    let budget = MemoryBudget::new(args.max_memory);
    let options = ReceiveOptions {
        methods: method::decoders(args.compression, &budget),
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
        memory_budget: budget,
        progress: Arc::new(Progress::new(socket.stall)),
        cancel: cancel.clone(),
        check: Some(target.space_check()),
        ..ReceiveOptions::default()
    };
    let rounds = Rounds::counted_by_channels();
    let (arrival, kept) = take(&mut listener, options, args.show, &rounds, |arrival| {
        let Some(arrival) = arrival else {
            return Ok(None);
        };
        let kept = target.write(&arrival.received.snapshot, None, &cancel, args.show.quiet)?;
        Ok(Some(kept))
    })?;
    let kept = kept.ok_or_else(|| Failure::Other("nothing was kept".into()))?;
    finish(&args.out, args.show, &arrival, &kept, None)
}

/// A migration that has arrived.
pub(crate) struct Arrival {
    pub(crate) received: Received,
    /// How long it took, from the main connection on.
    pub(crate) took: Duration,
}

/// Receives one migration, and has `end` put it where it is to stay; if it fails, `end` is called
/// with `None` while the connections are still open. The source gets an orderly end of its main
/// connection only if all has worked: it may take it for our word that all is well.
pub(crate) fn take<T>(
    listener: &mut SocketListener,
    mut options: ReceiveOptions,
    show: Show,
    rounds: &Rounds,
    end: impl FnOnce(Option<&Arrival>) -> Result<T, Failure>,
) -> Result<(Arrival, T), Failure> {
    let cancel = options.cancel.clone();
    let _listener_guard = cancel.also_unblock(listener.unblocker());
    let accepted = listener
        .accept_main()
        .map_err(|error| cancelled(&cancel, doing("waiting for a migration")(error)));
    let mut main = match accepted {
        Ok(main) => main,
        Err(error) => {
            let _ = end(None);
            return Err(error);
        }
    };
    // QEMU's description at the end of the stream shows that nothing is missing.
    main.end_without_tls(options.need_vmdesc);
    let main_guard = cancel.also_unblock(main.read_unblocker());
    let begun = Instant::now();
    let watch = Slot::default();
    options.on_start = Some(watch.on_start("receiving", show.quiet, rounds));
    let received = main
        .abort_on_close(true)
        .map_err(doing("setting up the main connection"))
        .and_then(|()| Ok(receive(&mut main, listener, options)?));
    drop(watch);
    let outcome = match received {
        Ok(received) => {
            let arrival = Arrival {
                received,
                took: begun.elapsed(),
            };
            warn_of_sections(&arrival.received);
            end(Some(&arrival)).map(|kept| (arrival, kept))
        }
        Err(error) => {
            let _ = end(None);
            Err(error)
        }
    };
    drop(main_guard);
    if outcome.is_ok() {
        main.abort_on_close(false)
            .map_err(doing("ending the main connection"))?;
    } else if !main.can_abort() {
        main.refuse();
    }
    outcome
}

/// Says what `verify` would say of the device sections.
fn warn_of_sections(received: &Received) {
    if received.snapshot.tail.sections().is_none() {
        report::note(
            "WARNING: the device sections and QEMU's description of them do not fit, or it is missing; multifd verify will say the \
             same of the file",
        );
    }
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
pub(crate) fn finish(
    out: &Path,
    show: Show,
    arrival: &Arrival,
    kept: &Kept,
    guest: Option<Guest>,
) -> Result<(), Failure> {
    let received = &arrival.received;
    let snapshot = &received.snapshot;
    let result = Transfer {
        ok: true,
        machine: snapshot.configuration.machine.clone(),
        uuid: report::uuid(snapshot.uuid),
        compression: report::methods(&received.methods),
        sync: if received.over_main {
            "none"
        } else {
            report::sync_name(received.sync)
        },
        rounds: Some(received.rounds),
        seconds: arrival.took.as_secs_f64(),
        write_seconds: Some(kept.took.as_secs_f64()),
        channel_seconds: received.stats.elapsed.as_secs_f64(),
        main_bytes: received.main_bytes,
        total: received.stats.total().into(),
        main: received.stats.main.into(),
        channels: report::channels(&received.stats),
        blocks: report::blocks(snapshot.blocks()),
        file: Some(out.display().to_string()),
        stored_pages: Some(kept.written.pages),
        device_sections_fit: Some(snapshot.tail.sections().is_some()),
        has_layout: Some(kept.has_layout),
        guest,
        ..Transfer::default()
    };
    let mut text = format!(
        "{}\n{}: machine {}, {} pages stored, written in {:.2} s",
        result.line("received"),
        out.display(),
        report::tame(&result.machine),
        kept.written.pages,
        kept.took.as_secs_f64()
    );
    if let Some(guest) = &result.guest {
        text.push('\n');
        text.push_str(&guest.line());
    }
    report::print(show.json, &result, &text)
}
