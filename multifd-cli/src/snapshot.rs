//! `multifd snapshot`: a running QEMU into a file, by its monitor.

use crate::args::Snapshot;
use crate::failure::{Failure, doing};
use crate::monitor::journal::Step;
use crate::monitor::machine;
use crate::monitor::qmp::Qmp;
use crate::monitor::run_state::{self, Rule};
use crate::monitor::settings::{Changed, recover};
use crate::network::warn_if_exposed;
use crate::private_socket::MeetingPlace;
use crate::progress::Rounds;
use crate::report::Guest;
use crate::snapshot_file::Target;
use crate::{method, recv, report, signals};
use multifd_core::{CancelHandle, MemoryBudget, Progress};
use multifd_qemu::{Limits, ReceiveOptions};
use multifd_transport_socket::SocketListener;
use serde_json::json;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

/// How long our connections stay open for a QEMU that has been told to cancel.
const CALLING_OFF: Duration = Duration::from_secs(2);

/// How long QEMU may take to clean up after an earlier migration.
const CLEANING_UP: Duration = Duration::from_secs(5);

pub(crate) fn run(args: &Snapshot) -> Result<(), Failure> {
    let cancel = signals::cancel_on_signal()?;
    let target = Target::create(&args.out, args.writing)?;
    let mut qmp = Qmp::connect(&args.control.qmp, Duration::from_secs(args.deadlines.timeout))?;
    recover(&mut qmp)?;
    let (was_running, status) = qmp.guest()?;
    let rule = check(&mut qmp, args, &status)?;
    if let Some(blocks) = machine::blocks(&mut qmp) {
        target.check_space(blocks.iter().map(|block| block.used).sum())?;
    }
    let resume = args.control.resume || (rule == Rule::GoesOn && !args.control.stop);
    let how = (args.control.channels, args.control.compression);
    let changed = Changed::set_up(&mut qmp, how, was_running)?;
    let mut guest = Guest {
        found: status,
        ..Guest::default()
    };
    let outcome = transfer(args, &mut qmp, &cancel, (&changed, &mut guest));
    // The guest stands still: its memory lies where it lay when it was copied.
    let flat_view = outcome.is_ok().then(|| machine::flat_view(&mut qmp)).flatten();
    // Whatever happened, QEMU is put back first; the guest does not wait for the file to be
    // written.
    let run_on = match &outcome {
        Ok(arrival) => may_run_on(&guest, arrival, args) && resume,
        Err(_) => was_running,
    };
    let settled = settle(&mut qmp, changed, run_on, &mut guest);
    let arrival = match (outcome, &settled) {
        (Ok(arrival), _) => arrival,
        (Err(Failure::QemuGone { .. }), Err(_)) => return settled,
        (Err(error), _) => return Err(error),
    };
    let layout = flat_view.map_or_else(
        || Err("QEMU's monitor does not show it".into()),
        |text| machine::layout(&text, &arrival.received.snapshot),
    );
    if let Err(why) = &layout
        && !args.show.quiet
    {
        report::note(&format!(
            "where memory lies is not kept (for extract --elf): {why}"
        ));
    }
    let snapshot = &arrival.received.snapshot;
    let kept = target.write(snapshot, layout.ok().as_ref(), &cancel, args.show.quiet)?;
    // What has arrived is kept, whatever became of QEMU.
    settled.map_err(|error| {
        Failure::Other(format!(
            "the snapshot is whole, and in {}; but QEMU: {error}",
            args.out.display()
        ))
    })?;
    recv::finish(&args.out, args.show, &arrival, &kept, Some(guest))
}

/// Whether the guest can be let run: it may have gone to sleep or panicked while its memory was
/// copied.
fn may_run_on(guest: &Guest, arrival: &recv::Arrival, args: &Snapshot) -> bool {
    let tail = &arrival.received.snapshot.tail;
    let Some(state) = run_state::saved(tail).filter(|state| *state != guest.found) else {
        return true;
    };
    if guest.stopped_early_after_seconds.is_some() && state == "paused" {
        // That was us.
        return true;
    }
    let may = run_state::check(&state, args.control.resume, args.control.stop);
    if let Err(why) = &may {
        report::note(&format!(
            "the guest is not let run: while it was copied, it came to be {state:?} ({why})"
        ));
    }
    may.is_ok_and(|rule| rule == Rule::GoesOn || args.control.resume)
}

/// Checks that this QEMU can be migrated, and its guest left as it was asked for. Nothing has been
/// changed.
fn check(qmp: &mut Qmp, args: &Snapshot, status: &str) -> Result<Rule, Failure> {
    let migration = qmp.migration()?;
    if !migration.is_over() {
        return Err(Failure::Other(format!(
            "QEMU is busy with a migration ({status}, {}): nothing was changed",
            migration.status
        )));
    }
    let rule = run_state::check(status, args.control.resume, args.control.stop)?;
    if !migration.blockers.is_empty() {
        return Err(Failure::Other(format!(
            "this QEMU cannot be migrated, and so no snapshot be taken of it: {}. Nothing was changed",
            migration.blockers.join("; ")
        )));
    }
    Ok(rule)
}

/// Has QEMU migrate to us, and watches over it.
fn transfer(
    args: &Snapshot,
    qmp: &mut Qmp,
    cancel: &CancelHandle,
    (changed, guest): (&Changed, &mut Guest),
) -> Result<recv::Arrival, Failure> {
    let place = MeetingPlace::new(args.control.via.as_ref())?;
    let options = args.deadlines.socket();
    let mut listener = SocketListener::bind(&place.address, options).map_err(doing("listening"))?;
    warn_if_exposed(&listener);
    let address = listener.address().map_err(doing("listening"))?.to_string();
    // Not the one a signal trips: QEMU is to be told first.
    let broken_off = CancelHandle::default();
    let budget = MemoryBudget::new(args.max_memory);
    let receiving = ReceiveOptions {
        methods: method::decoders(Some(args.control.compression), &budget),
        channels: Some(args.control.channels),
        progress: Arc::new(Progress::new(options.stall)),
        cancel: broken_off.clone(),
        memory_budget: budget,
        limits: Limits::default(),
        ..ReceiveOptions::default()
    };
    let rounds = Rounds::counted_by_qemu();
    let (told, called_off) = channel::<()>();
    std::thread::scope(|scope| {
        let (show, listener, broken_off, rounds) = (args.show, &mut listener, &broken_off, &rounds);
        let patience = options.stall * 2;
        let arrival = scope.spawn(move || {
            recv::take(listener, receiving, show, rounds, |arrival| {
                if arrival.is_none() {
                    // Our connections stay open until QEMU has been told: it may die of one that
                    // breaks off.
                    broken_off.cancel();
                    let _ = called_off.recv_timeout(patience);
                }
                Ok(())
            })
        });
        let watched = watch(
            args,
            qmp,
            &address,
            [cancel, broken_off],
            (rounds, changed, guest),
        );
        if watched.is_err() {
            // Nothing more will come.
            broken_off.cancel();
        }
        drop(told);
        let outcome = arrival.join();
        let outcome = outcome.map_err(|_| Failure::Other("the receiving thread panicked".into()))?;
        match (watched, outcome) {
            (Ok(()), Ok((arrival, ()))) => Ok(arrival),
            // What was wrong here is why QEMU's side failed, too.
            (_, Err(error)) if cancel.error().is_none() && is_a_cause(&error) => Err(error),
            // QEMU's own words say more than a connection that broke off.
            (Err(error), _) | (Ok(()), Err(error)) => Err(error),
        }
    })
}

/// Whether the receiving half failed by itself, and not because the connections broke off.
fn is_a_cause(error: &Failure) -> bool {
    use multifd_core::Error as Engine;
    use multifd_qemu::Error;
    let follows = match error {
        Failure::Connection { .. }
        | Failure::Migration(Error::Io { .. } | Error::Truncated { .. } | Error::Stalled { .. }) => true,
        Failure::Engine(engine) | Failure::Migration(Error::Engine(engine)) => matches!(
            engine,
            Engine::Channel { .. }
                | Engine::Cancelled
                | Engine::EndedEarly { .. }
                | Engine::EndedInRound { .. }
                | Engine::ChannelCount { .. }
        ),
        _ => false,
    };
    !follows
}

/// Starts the migration and waits for its end. A guest that dirties memory faster than it is copied is stopped.
fn watch(
    args: &Snapshot,
    qmp: &mut Qmp,
    address: &str,
    cancel: [&CancelHandle; 2],
    (rounds, changed, guest): (&Rounds, &Changed, &mut Guest),
) -> Result<(), Failure> {
    changed.about_to(Step::Migrate);
    start(qmp, address)?;
    let begun = Instant::now();
    loop {
        if let Some(error) = cancel.iter().find_map(|handle| handle.error()) {
            qmp.call_off_within(CALLING_OFF)?;
            return Err(error.into());
        }
        let migration = qmp.migration()?;
        guest.rounds = migration.rounds;
        rounds.set(migration.rounds);
        match migration.status.as_str() {
            "completed" => {
                guest.downtime_seconds = migration.downtime.map(|time| time.as_secs_f64());
                return Ok(());
            }
            "failed" | "cancelled" => {
                let why = migration.error.unwrap_or_else(|| migration.status.clone());
                return Err(Failure::Other(format!("QEMU's migration has failed: {why}")));
            }
            _ if migration.rounds > args.max_rounds && guest.stopped_early_after_seconds.is_none() => {
                changed.about_to(Step::Stop);
                qmp.execute("stop", &json!({}))?;
                guest.stopped_early_after_seconds = Some(begun.elapsed().as_secs_f64());
            }
            _ if qmp.guest()?.1 == "suspended" => {
                qmp.call_off_within(CALLING_OFF)?;
                let refused = run_state::check("suspended", false, false);
                return Err(refused
                    .err()
                    .unwrap_or_else(|| Failure::Other("the guest is suspended".into())));
            }
            _ => {}
        }
        qmp.pause()?;
    }
}

/// Starts the migration, once QEMU has cleaned up after an earlier one. A QEMU 10.0 whose migration
/// failed while its connections were being made never does.
fn start(qmp: &mut Qmp, address: &str) -> Result<(), Failure> {
    let end = Instant::now() + CLEANING_UP;
    while qmp.is_migrating()? {
        if Instant::now() >= end {
            return Err(Failure::Other(
                "QEMU still holds the connections of an earlier migration that failed (query-yank), and \
                 would be stuck for ever if it were told to migrate again: it has to be started anew for \
                 that. Its guest is unharmed"
                    .into(),
            ));
        }
        qmp.pause()?;
    }
    qmp.execute("migrate", &json!({ "uri": address })).map(drop)
}

/// Ends what is still under way, puts QEMU's settings back, and has the guest run on if it is to.
fn settle(qmp: &mut Qmp, changed: Changed, run_on: bool, guest: &mut Guest) -> Result<(), Failure> {
    if let Err(error) = qmp.call_off() {
        if matches!(error, Failure::QemuGone { .. }) {
            changed.forget();
        }
        return Err(error);
    }
    // The guest first: it stands still meanwhile. One that sleeps, or has panicked, is left so.
    let mut resumed = Ok(());
    if run_on && ["paused", "postmigrate"].contains(&qmp.guest_afterwards()?.as_str()) {
        resumed = qmp.execute("cont", &json!({})).map(drop);
    }
    let put_back = changed.put_back(qmp);
    let (running, status) = qmp.guest()?;
    guest.left = status;
    if running {
        guest.pause_seconds = qmp.stops.pause().map(|pause| pause.as_secs_f64());
    }
    resumed.and(put_back)
}
