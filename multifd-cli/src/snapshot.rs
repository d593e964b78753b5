//! `multifd snapshot`: a running QEMU into a file, by its monitor.

use crate::failure::{Failure, doing};
use crate::method::Choice;
use crate::monitor_args::Snapshot;
use crate::network::warn_if_exposed;
use crate::options::{Show, Via};
use crate::output::Output;
use crate::private_socket::MeetingPlace;
use crate::progress::{ByQemu, Rounds, Slot};
use crate::report::{self, Transfer};
use crate::{method, monitor, recv, signals, threads};
use multifd_core::packet::Compression;
use multifd_core::{BoxError, CancelHandle, Progress, ReceiverConfig};
use multifd_qemu::file::Target;
use multifd_qemu::qmp::{
    Qmp, QmpError, SnapshotOptions, SnapshotTaken, cannot_use_files, snapshot, snapshot_to_file,
};
use multifd_qemu::{BlockInfo, MappedFile, ReceiveOptions, Received};
use multifd_transport_socket::SocketListener;
use std::sync::Arc;
use std::time::Duration;

pub(crate) fn run(args: &Snapshot) -> Result<(), Failure> {
    args.threads.apply()?;
    let cancel = signals::cancel_on_signal()?;
    let how = (args.writing, &args.storing);
    let mut output = Output::create(&args.out, how, &cancel, args.show)?;
    let timeout = Duration::from_secs(args.deadlines.timeout);
    let mut qmp = monitor::connect(&args.control.qmp, timeout)?;
    // Only on request: QEMU 10.0 may crash if it fails.
    let by_file = args.control.via == Via::File;
    if by_file && let Some(why) = cannot_be_written_by_qemu(args, &mut qmp)? {
        return Err(Failure::Other(format!("--via file: {why}")));
    }
    output.write_back_early();
    if by_file {
        through_file(args, output, &mut qmp, &cancel)
    } else {
        over_sockets(args, output, &mut qmp, &cancel)
    }
}

/// Why QEMU cannot write the file by itself, if it cannot.
fn cannot_be_written_by_qemu(
    args: &Snapshot,
    qmp: &mut Qmp,
) -> Result<Option<&'static str>, Failure> {
    Ok(if args.background {
        Some("a snapshot in the background goes over a socket")
    } else if args.control.compression != Compression::None {
        Some("compressed pages have no place in the file: they go over sockets")
    } else if args.writing.preallocate {
        Some("--preallocate goes over sockets: QEMU does not do it")
    } else {
        cannot_use_files(qmp)?
    })
}

/// What both ways have in common.
fn common(args: &Snapshot, target: &Target, cancel: &CancelHandle) -> SnapshotOptions {
    let control = &args.control;
    let mut options = SnapshotOptions::default()
        .channels(control.channels())
        .compression(control.compression)
        .resume(control.resume)
        .stop(control.stop)
        .background(args.background)
        .max_rounds(args.max_rounds)
        .cancel(cancel.clone())
        .hooks(monitor::hooks());
    if !args.writing.no_space_check {
        let check = target.space_check();
        options = options.check(Some(Box::new(move |blocks: &[BlockInfo]| check(blocks))));
    }
    options
}

fn over_sockets(
    args: &Snapshot,
    output: Output,
    qmp: &mut Qmp,
    cancel: &CancelHandle,
) -> Result<(), Failure> {
    let place = MeetingPlace::new(args.control.via.address())?;
    let socket = args.deadlines.socket();
    let listener = SocketListener::bind(&place.address, socket).map_err(doing("listening"))?;
    warn_if_exposed(&listener);
    let uri = listener.address().map_err(doing("listening"))?.to_string();
    let budget = args.memory.budget();
    let choice = Choice::One(args.control.compression);
    let engine = ReceiverConfig::default()
        .methods(method::decoders(Some(choice), &budget))
        .memory_budget(budget)
        .progress(Arc::new(Progress::new(socket.stall)))
        .thread_start(Some(threads::receiving()));
    let rounds = Rounds::counted_by_qemu();
    let watch = Slot::default();
    let receive = ReceiveOptions::default()
        .engine(engine)
        .sink(Some(output.target.sink()?))
        .on_start(Some(watch.on_start("receiving", args.show.quiet, &rounds)));
    let options = common(args, &output.target, cancel)
        .receive(receive)
        .on_progress(Some(Box::new(move |progress| rounds.set(progress.rounds))));
    let taken = snapshot(qmp, listener, &uri, options);
    drop(watch);
    let SnapshotTaken::<Received> {
        vm: received,
        took,
        guest,
        layout,
        put_back,
        ..
    } = taken?;
    recv::warn_of_sections(&received.snapshot.tail);
    note_layout(args.show, &layout);
    let layout = layout.as_ref().ok();
    let kept = output.keep(&received.snapshot, layout)?;
    check_put_back(args, put_back)?;
    let arrival = (&received, took);
    recv::finish(args.show, arrival, kept, Some(guest.into()))
}

fn through_file(
    args: &Snapshot,
    output: Output,
    qmp: &mut Qmp,
    cancel: &CancelHandle,
) -> Result<(), Failure> {
    let direct = args.writing.direct_io.of(output.target.file());
    let (seen, watch) = (ByQemu::default(), Slot::default());
    let (told, shown) = (seen.clone(), watch.clone());
    let mut options = common(args, &output.target, cancel)
        .direct(direct)
        .on_progress(Some(Box::new(move |progress| told.set(progress))));
    let (check, quiet) = (options.check.take(), args.show.quiet);
    options = options.check(Some(Box::new(move |blocks: &[BlockInfo]| {
        let bytes = blocks.iter().map(|block| block.used_length).sum();
        check.map_or(Ok::<(), BoxError>(()), |check| check(blocks))?;
        seen.show(&shown, "saving", bytes, quiet);
        Ok(())
    })));
    let taken = snapshot_to_file(qmp, output.target.file(), options);
    watch.end();
    let SnapshotTaken::<MappedFile> {
        vm,
        took,
        uuid,
        guest,
        layout,
        put_back,
        ..
    } = taken?;
    recv::warn_of_sections(&vm.tail);
    note_layout(args.show, &layout);
    let kept = output.adopt(&vm, uuid, layout.as_ref().ok())?;
    check_put_back(args, put_back)?;
    let result = Transfer {
        ok: true,
        machine: vm.configuration.machine.clone(),
        uuid: uuid.to_string(),
        compression: Compression::None.name().into(),
        sync: "none",
        seconds: took.as_secs_f64(),
        write_seconds: Some(kept.took.as_secs_f64()),
        blocks: report::blocks(vm.block_infos()),
        file: Some(kept.name),
        stored: kept.stored,
        stored_pages: Some(kept.saved.written.pages),
        device_sections_fit: Some(vm.tail.sections().is_some()),
        has_layout: Some(kept.saved.has_layout),
        guest: Some(guest.into()),
        by_qemu: true,
        ..Transfer::default()
    };
    let text = format!(
        "QEMU wrote {} of guest memory in {:.2} s\n{}",
        report::bytes(kept.saved.written.bytes),
        took.as_secs_f64(),
        recv::written(&result)
    );
    report::print(args.show.json, &result, &text)
}

/// What has arrived is kept, whatever became of QEMU.
fn check_put_back(args: &Snapshot, put_back: Result<(), QmpError>) -> Result<(), Failure> {
    put_back.map_err(|error| {
        Failure::Other(format!(
            "the snapshot is whole, and in {}; but QEMU: {error}",
            args.out.display()
        ))
    })
}

fn note_layout<T>(show: Show, layout: &Result<T, multifd_qemu::LayoutError>) {
    if let Err(why) = layout {
        let text = format!("where memory lies is not kept (for extract --elf): {why}");
        note(show, &text);
    }
}

fn note(show: Show, text: &str) {
    if !show.quiet {
        report::note(text);
    }
}
