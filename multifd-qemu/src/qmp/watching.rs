//! QEMU's side of a snapshot: started, watched to its end, put back.

use super::changes::Step;
use super::client::Qmp;
use super::run_state::{self, RunStateRule};
use super::settings::Changed;
use super::snapshot::{GuestReport, SnapshotOptions};
use crate::Tail;
use crate::qmp::QmpError;
use multifd_core::{CancelHandle, event};
use serde_json::json;
use std::time::{Duration, Instant};

/// How long our connections stay open for a QEMU that has been told to cancel.
const CALLING_OFF: Duration = Duration::from_secs(2);

/// How long QEMU may take to clean up after an earlier migration.
const CLEANING_UP: Duration = Duration::from_secs(5);

pub(super) fn unknown() -> QmpError {
    QmpError::Failed("QEMU has ended".into())
}

/// Whether the guest can be let run: it may have gone to sleep or panicked while its memory was
/// copied.
pub(super) fn may_run_on(guest: &GuestReport, tail: &Tail, options: &SnapshotOptions) -> bool {
    let Some(state) = tail.run_state().filter(|state| *state != guest.found) else {
        return true;
    };
    if guest.stopped_early_after.is_some() && state == "paused" {
        // That was us.
        return true;
    }
    let may = run_state::check(&state, options.resume, options.stop);
    if let Err(why) = &may {
        options.hooks.note(&format!(
            "the guest is not let run: while it was copied, it came to be {state:?} ({why})"
        ));
    }
    may.is_ok_and(|rule| rule == RunStateRule::GoesOn || options.resume)
}

/// Starts the migration and waits for its end. A guest that dirties memory faster than it is copied
/// is stopped. `broken_off` ends it, too.
pub(super) fn watch(
    options: &SnapshotOptions,
    (qmp, uri): (&mut Qmp, &str),
    broken_off: &CancelHandle,
    (changed, guest): (&Changed, &mut GuestReport),
) -> Result<(), QmpError> {
    changed.about_to(Step::Migrate);
    start(qmp, uri)?;
    let begun = Instant::now();
    let mut interrupted = None;
    loop {
        let ended = options.cancel.error().or_else(|| broken_off.error());
        match ended {
            // QEMU 10.0 may crash if a migration into a file is cancelled: its threads still use
            // the bitmaps that it frees. So it is let end.
            Some(error) if uri.starts_with("file:") => {
                if interrupted.is_none() {
                    options
                        .hooks
                        .note("QEMU is let finish the file, which is then discarded");
                }
                interrupted = Some(error);
            }
            Some(error) => {
                qmp.call_off_within(CALLING_OFF)?;
                return Err(error.into());
            }
            None => {}
        }
        qmp.ask_ahead(&["query-migrate", "query-status"].map(|name| (name, json!({}))))?;
        let migration = qmp.migration()?;
        let (_, state) = qmp.guest()?;
        guest.rounds = migration.progress.rounds;
        if let Some(told) = &options.on_progress {
            told(migration.progress);
        }
        match migration.status.as_str() {
            "completed" => {
                guest.downtime = migration.downtime;
                return interrupted.map_or(Ok(()), |error| Err(error.into()));
            }
            "failed" | "cancelled" => {
                let why = migration.error.unwrap_or_else(|| migration.status.clone());
                return Err(QmpError::Failed(format!(
                    "QEMU's migration has failed: {why}"
                )));
            }
            _ if guest.rounds > options.max_rounds
                && guest.stopped_early_after.is_none()
                && !options.background =>
            {
                changed.about_to(Step::Stop);
                qmp.execute("stop", &json!({}))?;
                guest.stopped_early_after = Some(begun.elapsed());
                event!(
                    rounds = guest.rounds,
                    "the guest is stopped: it dirties memory too fast"
                );
            }
            _ if state == "suspended" && !uri.starts_with("file:") => {
                qmp.call_off_within(CALLING_OFF)?;
                let refused = run_state::check("suspended", false, false);
                return Err(refused.err().unwrap_or_else(unknown));
            }
            _ => {}
        }
        qmp.pause()?;
    }
}

/// Starts the migration, once QEMU has cleaned up after an earlier one. A QEMU 10.0 whose migration
/// failed while its connections were being made never does.
fn start(qmp: &mut Qmp, uri: &str) -> Result<(), QmpError> {
    let end = Instant::now() + CLEANING_UP;
    while qmp.is_migrating()? {
        if Instant::now() >= end {
            return Err(QmpError::Failed(
                "QEMU still holds the connections of an earlier migration that failed (query-yank), and \
                 would be stuck for ever if it were told to migrate again: it has to be started anew for \
                 that. Its guest is unharmed"
                    .into(),
            ));
        }
        qmp.pause()?;
    }
    qmp.execute("migrate", &json!({ "uri": uri })).map(drop)
}

/// Ends what is still under way, puts QEMU's settings back, and has the guest run on if it should.
pub(super) fn settle(
    qmp: &mut Qmp,
    changed: Changed,
    (completed, run_on): (bool, bool),
    guest: &mut GuestReport,
) -> Result<(), QmpError> {
    let over = if completed { Ok(()) } else { qmp.call_off() };
    if let Err(error) = over {
        if matches!(error, QmpError::Gone { .. }) {
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
        guest.pause = qmp.stops.pause();
    }
    resumed.and(put_back)
}
