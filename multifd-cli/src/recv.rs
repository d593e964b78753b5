//! `multifd recv`: the destination of a migration, into a file.

use crate::args::Recv;
use crate::failure::Failure;
use crate::options::Show;
use crate::output::{Kept, Output};
use crate::progress::{Rounds, Slot};
use crate::report::{self, Guest, Transfer};
use crate::{method, signals, threads};
use multifd_core::{Progress, ReceiverConfig};
use multifd_qemu::{IncomingMigration, Limits, ReceiveOptions, Received, Tail};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) fn run(args: &Recv) -> Result<(), Failure> {
    args.threads.apply()?;
    let cancel = signals::cancel_on_signal()?;
    let socket = args.tuning.options();
    let how = (args.writing, &args.storing);
    let mut output = Output::create(&args.out, how, &cancel, args.show)?;
    let mut listener = args.entrance.open(socket, &args.tls, args.show)?;
    let budget = args.memory.budget();
    let engine = ReceiverConfig::default()
        .methods(method::decoders(args.compression, &budget))
        .uuid(args.uuid)
        .require_checksums(args.trust.require_checksum)
        .memory_budget(budget)
        .progress(Arc::new(Progress::new(socket.stall)))
        .thread_start(Some(threads::receiving()))
        .cancel(cancel.clone());
    let limits = Limits::default();
    let most = args
        .max_ram
        .or_else(machine_memory)
        .unwrap_or(limits.ram_bytes);
    let watch = Slot::default();
    output.write_back_early();
    let mut options = ReceiveOptions::default()
        .engine(engine)
        .sink(Some(output.target.sink()?))
        .channels(args.channels)
        .need_vmdesc(!args.allow_no_vmdesc)
        .limits(limits.ram_bytes(most))
        .on_start(Some(watch.on_start(
            "receiving",
            args.show.quiet,
            &Rounds::counted_by_channels(),
        )));
    if !args.writing.no_space_check {
        options = options.check(Some(output.target.space_check()));
    }
    let mut migration = IncomingMigration::wait(&mut listener, &cancel)?;
    let begun = Instant::now();
    let received = migration.receive(&mut listener, options);
    drop(watch);
    let received = received?;
    let took = begun.elapsed();
    warn_of_sections(&received.snapshot.tail);
    let kept = output.keep(&received.snapshot, None)?;
    // The source may take this for our word that all is well.
    migration.accept()?;
    finish(args.show, (&received, took), kept, None)
}

/// Says what `verify` would say of the device sections.
pub(crate) fn warn_of_sections(tail: &Tail) {
    if tail.sections().is_none() {
        report::note(
            "WARNING: the device sections and QEMU's description of them do not fit, or it is missing; multifd verify will say the \
             same of the file",
        );
    }
}

/// Bytes of memory this machine has: a guest with more could not be received.
fn machine_memory() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kib.checked_mul(1024)
}

/// Prints what has been received.
pub(crate) fn finish(
    show: Show,
    (received, took): (&Received, Duration),
    kept: Kept,
    guest: Option<Guest>,
) -> Result<(), Failure> {
    let snapshot = &received.snapshot;
    let result = Transfer {
        ok: true,
        machine: snapshot.configuration.machine.clone(),
        uuid: snapshot.uuid.to_string(),
        compression: report::methods(&received.methods),
        sync: if received.over_main {
            "none"
        } else {
            report::sync_name(received.sync)
        },
        rounds: Some(received.rounds),
        seconds: took.as_secs_f64(),
        write_seconds: Some(kept.took.as_secs_f64()),
        channel_seconds: received.stats.elapsed.as_secs_f64(),
        main_bytes: received.main_bytes,
        total: received.stats.total().into(),
        main: received.stats.main.into(),
        channels: report::channels(&received.stats),
        blocks: report::blocks(snapshot.blocks()),
        file: Some(kept.name),
        stored: kept.stored,
        stored_pages: Some(kept.saved.written.pages),
        device_sections_fit: Some(snapshot.tail.sections().is_some()),
        has_layout: Some(kept.saved.has_layout),
        guest,
        ..Transfer::default()
    };
    let text = format!("{}\n{}", result.line("received"), written(&result));
    report::print(show.json, &result, &text)
}

/// What has been written, and what became of the guest.
pub(crate) fn written(result: &Transfer) -> String {
    let mut text = format!(
        "{}: machine {}, {} pages stored, on the disk after {:.2} s more",
        result.file.as_deref().unwrap_or_default(),
        report::tame(&result.machine),
        result.stored_pages.unwrap_or(0),
        result.write_seconds.unwrap_or(0.0)
    );
    if let Some(guest) = &result.guest {
        text.push('\n');
        text.push_str(&guest.line());
    }
    text
}
