//! `multifd snapshot`: a running QEMU into a file, by its monitor.

use crate::args::Snapshot;
use crate::failure::{Failure, doing};
use crate::migration_setup::Changed;
use crate::network::warn_if_exposed;
use crate::private_socket::MeetingPlace;
use crate::qmp::Qmp;
use crate::snapshot_file::Target;
use crate::{method, recv, signals};
use multifd_core::{CancelHandle, Progress};
use multifd_qemu::{ReceiveOptions, Received};
use multifd_transport_socket::SocketListener;
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) fn run(args: &Snapshot) -> Result<(), Failure> {
    let cancel = signals::cancel_on_signal()?;
    let target = Target::create(&args.out, args.writing)?;
    let mut qmp = Qmp::connect(&args.control.qmp, Duration::from_secs(args.deadlines.timeout))?;
    let (was_running, status) = qmp.guest()?;
    let migration = qmp.migration()?;
    if !migration.is_over() || status == "inmigrate" {
        return Err(Failure::Other(format!(
            "QEMU is busy with a migration ({status}, {}): nothing was changed",
            migration.status
        )));
    }
    if status == "postmigrate" {
        return Err(Failure::Other(
            "an earlier migration has stopped this guest, and QEMU does not migrate it again: let it run on first \
             (the monitor's command cont)"
                .into(),
        ));
    }
    let mut changed = Changed::default();
    let outcome = changed
        .set_up(&mut qmp, args.control.channels, args.control.compression)
        .and_then(|()| transfer(args, &mut qmp, &cancel));
    let run_on = if outcome.is_ok() {
        args.control.resume || (was_running && !args.control.stop)
    } else {
        was_running
    };
    // Whatever happened, QEMU is put back first; the guest does not wait for the file to be written.
    let put_back = settle(
        &mut qmp,
        changed,
        run_on,
        Duration::from_secs(args.deadlines.timeout),
    );
    let (begun, received) = outcome?;
    put_back?;
    let written = target.write(&received.snapshot, &cancel, args.show.quiet)?;
    recv::finish(&args.out, args.show, &received, written, begun);
    Ok(())
}

/// Has QEMU migrate to us, and watches over it.
fn transfer(args: &Snapshot, qmp: &mut Qmp, cancel: &CancelHandle) -> Result<(Instant, Received), Failure> {
    let place = MeetingPlace::new(args.control.via.as_ref())?;
    let options = args.deadlines.socket();
    let mut listener = SocketListener::bind(&place.address, options).map_err(doing("listening"))?;
    warn_if_exposed(&listener);
    let address = listener.address().map_err(doing("listening"))?.to_string();
    // Not the one a signal trips: QEMU is to be told first, see `call_off`.
    let broken_off = CancelHandle::default();
    let receiving = ReceiveOptions {
        methods: method::decoders(Some(args.control.compression)),
        channels: Some(args.control.channels),
        progress: Arc::new(Progress::new(options.stall)),
        cancel: broken_off.clone(),
        ..ReceiveOptions::default()
    };
    std::thread::scope(|scope| {
        let (show, listener) = (args.show, &mut listener);
        let arrival = scope.spawn(move || recv::take(listener, receiving, show, |_| Ok(())));
        let watched = watch(args, qmp, &address, [cancel, &broken_off]);
        if watched.is_err() {
            // Nothing more will come.
            broken_off.cancel();
        }
        let outcome = arrival.join();
        let outcome = outcome.map_err(|_| Failure::Other("the receiving thread panicked".into()))?;
        // QEMU's own words say more than a connection that broke off; ours more than that we have given up.
        if let Err(error) = watched
            && (outcome.is_ok() || !matches!(error, Failure::Engine(_)))
        {
            return Err(error);
        }
        let (begun, received, ()) = outcome?;
        Ok((begun, received))
    })
}

/// Starts the migration and waits for its end. A guest that dirties memory faster than it is copied is stopped.
fn watch(args: &Snapshot, qmp: &mut Qmp, address: &str, cancel: [&CancelHandle; 2]) -> Result<(), Failure> {
    qmp.execute("migrate", &json!({ "uri": address }))?;
    let mut stopped = false;
    loop {
        if let Some(error) = cancel.iter().find_map(|handle| handle.error()) {
            call_off(qmp, Duration::from_secs(args.deadlines.timeout))?;
            return Err(error.into());
        }
        let migration = qmp.migration()?;
        match migration.status.as_str() {
            "completed" => return Ok(()),
            "failed" | "cancelled" => {
                let why = migration.error.unwrap_or_else(|| migration.status.clone());
                return Err(Failure::Other(format!("QEMU's migration has failed: {why}")));
            }
            _ if migration.rounds > args.max_rounds && !stopped => {
                qmp.execute("stop", &json!({}))?;
                stopped = true;
            }
            _ => {}
        }
        qmp.pause()?;
    }
}

/// Cancels a migration, and waits until QEMU is done with it; our connections must stay open so long.
///
/// QEMU 10.0 dies of an assertion (`yank_unregister_instance`) if a connection breaks off, or it is told to cancel, while
/// its channels are being set up: it is given time to get over that.
fn call_off(qmp: &mut Qmp, timeout: Duration) -> Result<(), Failure> {
    let end = Instant::now() + timeout;
    while qmp.migration()?.status == "setup" && Instant::now() < end {
        qmp.pause()?;
    }
    if qmp.migration()?.is_over() {
        return Ok(());
    }
    qmp.execute("migrate_cancel", &json!({}))?;
    while !qmp.migration()?.is_over() && Instant::now() < end {
        qmp.pause()?;
    }
    Ok(())
}

/// Ends what is still under way, puts QEMU's settings back, and has the guest run on if it is to.
fn settle(qmp: &mut Qmp, changed: Changed, run_on: bool, timeout: Duration) -> Result<(), Failure> {
    call_off(qmp, timeout)?;
    let put_back = changed.put_back(qmp);
    if run_on && !qmp.guest()?.0 {
        qmp.execute("cont", &json!({}))?;
    }
    put_back
}
