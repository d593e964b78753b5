//! `multifd snapshot`: a running QEMU into a file, by its monitor.

use crate::args::Snapshot;
use crate::failure::{Failure, doing};
use crate::method::Choice;
use crate::network::warn_if_exposed;
use crate::options::{Control, Show};
use crate::private_socket::MeetingPlace;
use crate::progress::{Rounds, Slot};
use crate::{method, recv, report, signals, threads};
use multifd_core::{Progress, ReceiverConfig};
use multifd_qemu::file::Target;
use multifd_qemu::qmp::{Hooks, Qmp, SnapshotOptions, snapshot};
use multifd_qemu::{BlockInfo, ReceiveOptions};
use multifd_transport_socket::{SocketListener, SocketOptions, SocketTransport};
use std::sync::Arc;
use std::time::Duration;

/// How often a wait at the monitor looks again.
const TICK: Duration = Duration::from_millis(100);

/// Connects to a QEMU's monitor.
pub(crate) fn monitor(control: &Control, deadline: Duration) -> Result<Qmp, Failure> {
    let options = SocketOptions::default().connect(deadline).stall(TICK);
    let stream = SocketTransport::new(control.qmp.clone(), options).connect();
    let stream = stream.map_err(doing("connecting to QMP"))?;
    Ok(Qmp::over(
        Box::new(stream),
        &control.qmp.to_string(),
        deadline,
    )?)
}

/// What a person is told, and signals that wait.
pub(crate) fn hooks() -> Hooks {
    Hooks::default()
        .on_note(Arc::new(report::note))
        .on_changed(Arc::new(signals::changed))
}

pub(crate) fn run(args: &Snapshot) -> Result<(), Failure> {
    args.threads.apply()?;
    let Control {
        channels,
        compression,
        ..
    } = args.control;
    let cancel = signals::cancel_on_signal()?;
    let saving = args.writing.options().cancel(cancel.clone());
    let target = Target::create(&args.out, &saving)?;
    let mut qmp = monitor(&args.control, Duration::from_secs(args.deadlines.timeout))?;
    let place = MeetingPlace::new(args.control.via.as_ref())?;
    let socket = args.deadlines.socket();
    let listener = SocketListener::bind(&place.address, socket).map_err(doing("listening"))?;
    warn_if_exposed(&listener);
    let uri = listener.address().map_err(doing("listening"))?.to_string();
    let budget = args.memory.budget();
    let engine = ReceiverConfig::default()
        .methods(method::decoders(Some(Choice::One(compression)), &budget))
        .memory_budget(budget)
        .progress(Arc::new(Progress::new(socket.stall)))
        .thread_start(Some(threads::receiving()));
    let rounds = Rounds::counted_by_qemu();
    let watch = Slot::default();
    let receive = ReceiveOptions::default()
        .engine(engine)
        .on_start(Some(watch.on_start("receiving", args.show.quiet, &rounds)));
    let mut options = SnapshotOptions::default()
        .receive(receive)
        .channels(channels)
        .compression(compression)
        .resume(args.control.resume)
        .stop(args.control.stop)
        .max_rounds(args.max_rounds)
        .cancel(cancel)
        .on_round(Some(Box::new(move |round| rounds.set(round))))
        .hooks(hooks());
    if !args.writing.no_space_check {
        let check = target.space_check();
        options = options.check(Some(Box::new(move |blocks: &[BlockInfo]| check(blocks))));
    }
    let taken = snapshot(&mut qmp, listener, &uri, options);
    drop(watch);
    let taken = taken?;
    recv::warn_of_sections(&taken.received);
    if let Err(why) = &taken.layout {
        note(
            args.show,
            &format!("where memory lies is not kept (for extract --elf): {why}"),
        );
    }
    let kept = recv::keep(target, saving, args.show, |target, saving| {
        Ok(target.save(&taken.received.snapshot, taken.layout.as_ref().ok(), saving)?)
    })?;
    // What has arrived is kept, whatever became of QEMU.
    taken.put_back.map_err(|error| {
        Failure::Other(format!(
            "the snapshot is whole, and in {}; but QEMU: {error}",
            args.out.display()
        ))
    })?;
    let arrival = (&taken.received, taken.took);
    recv::finish(
        &args.out,
        args.show,
        arrival,
        &kept,
        Some(taken.guest.into()),
    )
}

fn note(show: Show, text: &str) {
    if !show.quiet {
        report::note(text);
    }
}
