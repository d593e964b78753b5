//! A snapshot of a running QEMU: it migrates to us, and is put back.

use super::changes::Step;
use super::client::Qmp;
use super::hooks::Hooks;
use super::machine;
use super::run_state::{self, RunStateRule};
use super::settings::{Changed, recover};
use crate::qmp::QmpError;
use crate::{
    BlockInfo, Error, IncomingMigration, LayoutError, PhysicalMap, ReceiveOptions, Received,
};
use multifd_core::packet::Compression;
use multifd_core::{BoxError, CancelHandle, MainListener, config, event};
use serde_json::json;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// How long our connections stay open for a QEMU that has been told to cancel.
const CALLING_OFF: Duration = Duration::from_secs(2);

/// How long QEMU may take to clean up after an earlier migration.
const CLEANING_UP: Duration = Duration::from_secs(5);

/// Called with a guest's RAM blocks before anything is changed; an error ends the snapshot.
pub type CheckGuest = Box<dyn FnOnce(&[BlockInfo]) -> Result<(), BoxError>>;

config! {
    /// How to take a snapshot of a running QEMU.
    pub struct SnapshotOptions {
        /// How to receive; the number of channels and the handle below are used in place of its
        /// own.
        receive: ReceiveOptions = ReceiveOptions::default(),
        /// How many channels QEMU sends over. Default: 4.
        channels: u8 = 4,
        /// By which method QEMU compresses.
        compression: Compression = Compression::None,
        /// Let the guest run afterwards, whatever it did before.
        resume: bool = false,
        /// Leave the guest stopped afterwards.
        stop: bool = false,
        /// Rounds, as QEMU counts them, after which a guest that dirties its memory too fast is
        /// stopped early. Default: 20.
        max_rounds: u64 = 20,
        /// Ends the snapshot from elsewhere; QEMU is put back then.
        cancel: CancelHandle = CancelHandle::default(),
        /// Called with the guest's RAM blocks, if QEMU tells them, before anything is changed.
        check: Option<CheckGuest> = None,
        /// Called with the number of rounds, as QEMU counts them, whenever it is asked.
        on_round: Option<Box<dyn Fn(u64)>> = None,
        /// What the caller is told.
        hooks: Hooks = Hooks::default(),
    }
}

impl std::fmt::Debug for SnapshotOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotOptions")
            .field("channels", &self.channels)
            .field("compression", &self.compression)
            .finish_non_exhaustive()
    }
}

/// What became of a guest whose snapshot was taken.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct GuestReport {
    /// The state it was found in, in QEMU's words.
    pub found: String,
    /// The state it was left in.
    pub left: String,
    /// How long it stood still, from QEMU's event STOP to its event RESUME; `None` if it was not
    /// let run again.
    pub pause: Option<Duration>,
    /// How long it stood still by QEMU's own measure, which ends when all has been sent.
    pub downtime: Option<Duration>,
    /// Rounds over its memory, as QEMU counts them.
    pub rounds: u64,
    /// When it was stopped because of [`SnapshotOptions::max_rounds`], from the start.
    pub stopped_early_after: Option<Duration>,
}

/// A snapshot that has been taken.
#[derive(Debug)]
#[non_exhaustive]
pub struct SnapshotTaken {
    /// The VM, and how it came.
    pub received: Received,
    /// How long it took, from the main connection on.
    pub took: Duration,
    /// What became of the guest.
    pub guest: GuestReport,
    /// Where the guest's memory lies, as QEMU's monitor showed it; or why that is not known.
    pub layout: Result<PhysicalMap, LayoutError>,
    /// Whether QEMU could be put back as it was found. The snapshot is whole in any case.
    pub put_back: Result<(), QmpError>,
}

/// Takes a snapshot of the QEMU at `qmp`: has it migrate to `uri`, at which `listener` listens.
///
/// A running guest runs on while its memory is copied, stands still for the last of it, and goes on
/// when this returns. In which states a guest is taken, and how it is left: see
/// [`run_state_rule`](crate::qmp::run_state_rule). QEMU's settings are restored, whatever happens.
///
/// # Errors
/// [`QmpError::Refused`] if it cannot be done, before anything is changed; [`QmpError`] otherwise,
/// when QEMU and its guest have been put back as they were found.
pub fn snapshot(
    qmp: &mut Qmp,
    mut listener: impl MainListener + Send,
    uri: &str,
    mut options: SnapshotOptions,
) -> Result<SnapshotTaken, QmpError> {
    recover(qmp, &options.hooks)?;
    let (was_running, status) = qmp.guest()?;
    let rule = check(qmp, &options, &status)?;
    if let Some(check) = options.check.take()
        && let Some(blocks) = machine::blocks(qmp)
    {
        let info = |block: machine::Block| BlockInfo {
            name: block.name,
            used_length: block.used,
        };
        let blocks: Vec<_> = blocks.into_iter().map(info).collect();
        check(&blocks).map_err(QmpError::Hook)?;
    }
    let resume = options.resume || (rule == RunStateRule::GoesOn && !options.stop);
    let how = (options.channels, options.compression);
    let changed = Changed::set_up(qmp, how, was_running, &options.hooks)?;
    let mut guest = GuestReport {
        found: status,
        ..GuestReport::default()
    };
    let outcome = transfer(
        &mut options,
        (qmp, &mut listener, uri),
        (&changed, &mut guest),
    );
    // With it go connections that nobody took: a QEMU that is told to cancel waits for their end.
    drop(listener);
    // The guest stands still: its memory lies where it lay when it was copied.
    let flat_view = outcome.is_ok().then(|| machine::flat_view(qmp)).flatten();
    // Whatever happened, QEMU is put back first.
    let run_on = match &outcome {
        Ok((received, _)) => resume && may_run_on(&guest, received, &options),
        Err(_) => was_running,
    };
    let put_back = settle(qmp, changed, run_on, &mut guest);
    let (received, took) = match (outcome, put_back.is_ok()) {
        (Ok(arrival), _) => arrival,
        (Err(QmpError::Gone { .. }), false) => return Err(put_back.err().unwrap_or_else(unknown)),
        (Err(error), _) => return Err(error),
    };
    let layout = match flat_view {
        Some(text) => machine::layout(&text, &received.snapshot),
        None => Err(LayoutError::NotShown),
    };
    Ok(SnapshotTaken {
        received,
        took,
        guest,
        layout,
        put_back,
    })
}

fn unknown() -> QmpError {
    QmpError::Failed("QEMU has ended".into())
}

/// Whether the guest can be let run: it may have gone to sleep or panicked while its memory was
/// copied.
fn may_run_on(guest: &GuestReport, received: &Received, options: &SnapshotOptions) -> bool {
    let tail = &received.snapshot.tail;
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

/// Checks that this QEMU can be migrated, and its guest left as it was asked for. Nothing has been
/// changed.
fn check(qmp: &mut Qmp, options: &SnapshotOptions, status: &str) -> Result<RunStateRule, QmpError> {
    let migration = qmp.migration()?;
    if !migration.is_over() {
        return Err(QmpError::Refused(format!(
            "QEMU is busy with a migration ({status}, {})",
            migration.status
        )));
    }
    let rule = run_state::check(status, options.resume, options.stop)?;
    if !migration.blockers.is_empty() {
        return Err(QmpError::Refused(format!(
            "this QEMU cannot be migrated, and so no snapshot be taken of it: {}",
            migration.blockers.join("; ")
        )));
    }
    Ok(rule)
}

/// Has QEMU migrate to us, and watches over it.
fn transfer(
    options: &mut SnapshotOptions,
    (qmp, listener, uri): (&mut Qmp, &mut (dyn MainListener + Send), &str),
    (changed, guest): (&Changed, &mut GuestReport),
) -> Result<(Received, Duration), QmpError> {
    // Not the one the caller cancels: QEMU is told first.
    let broken_off = CancelHandle::default();
    let receive = std::mem::take(&mut options.receive)
        .channels(Some(options.channels))
        .cancel(broken_off.clone());
    let patience = receive.engine.common.progress.deadline() * 2;
    let (told, called_off) = channel::<()>();
    std::thread::scope(|scope| {
        let stop = broken_off.clone();
        let arrival = scope.spawn(move || take(listener, receive, &stop, (&called_off, patience)));
        let watched = watch(options, (qmp, uri), &broken_off, (changed, guest));
        if watched.is_err() {
            // Nothing more will come.
            broken_off.cancel();
        }
        drop(told);
        let outcome = arrival.join();
        let outcome =
            outcome.map_err(|_| QmpError::Failed("the receiving thread panicked".into()))?;
        match (watched, outcome) {
            (Ok(()), Ok(arrival)) => Ok(arrival),
            // An error of our own is why QEMU's side failed, too.
            (_, Err(error)) if options.cancel.error().is_none() && is_a_cause(&error) => {
                Err(error.into())
            }
            // QEMU's own words say more than a connection that broke off.
            (Err(error), _) => Err(error),
            (Ok(()), Err(error)) => Err(error.into()),
        }
    })
}

/// Receives QEMU's migration. If that fails, our connections stay open until QEMU has been told: it
/// may die of one that breaks off.
fn take(
    listener: &mut (dyn MainListener + Send),
    options: ReceiveOptions,
    broken_off: &CancelHandle,
    (called_off, patience): (&Receiver<()>, Duration),
) -> Result<(Received, Duration), Error> {
    let hold = |error| {
        broken_off.cancel();
        let _ = called_off.recv_timeout(patience);
        Err(error)
    };
    let mut migration = match IncomingMigration::wait(listener, broken_off) {
        Ok(migration) => migration,
        Err(error) => return hold(error),
    };
    let begun = Instant::now();
    match migration.receive(listener, options) {
        Ok(received) => {
            let took = begun.elapsed();
            migration.accept()?;
            Ok((received, took))
        }
        Err(error) => hold(error),
    }
}

/// Whether the receiving half failed by itself, and not because the connections broke off.
fn is_a_cause(error: &Error) -> bool {
    use multifd_core::Error as Engine;
    let follows = match error {
        Error::Connection { .. }
        | Error::Io { .. }
        | Error::Truncated { .. }
        | Error::Stalled { .. } => true,
        Error::Engine(engine) => matches!(
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

/// Starts the migration and waits for its end. A guest that dirties memory faster than it is copied
/// is stopped.
fn watch(
    options: &SnapshotOptions,
    (qmp, uri): (&mut Qmp, &str),
    broken_off: &CancelHandle,
    (changed, guest): (&Changed, &mut GuestReport),
) -> Result<(), QmpError> {
    changed.about_to(Step::Migrate);
    start(qmp, uri)?;
    let begun = Instant::now();
    loop {
        let ended = options.cancel.error().or_else(|| broken_off.error());
        if let Some(error) = ended {
            qmp.call_off_within(CALLING_OFF)?;
            return Err(error.into());
        }
        let migration = qmp.migration()?;
        guest.rounds = migration.rounds;
        if let Some(told) = &options.on_round {
            told(migration.rounds);
        }
        match migration.status.as_str() {
            "completed" => {
                guest.downtime = migration.downtime;
                return Ok(());
            }
            "failed" | "cancelled" => {
                let why = migration.error.unwrap_or_else(|| migration.status.clone());
                return Err(QmpError::Failed(format!(
                    "QEMU's migration has failed: {why}"
                )));
            }
            _ if migration.rounds > options.max_rounds && guest.stopped_early_after.is_none() => {
                changed.about_to(Step::Stop);
                qmp.execute("stop", &json!({}))?;
                guest.stopped_early_after = Some(begun.elapsed());
                event!(
                    rounds = migration.rounds,
                    "the guest is stopped: it dirties memory too fast"
                );
            }
            _ if qmp.guest()?.1 == "suspended" => {
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
fn settle(
    qmp: &mut Qmp,
    changed: Changed,
    run_on: bool,
    guest: &mut GuestReport,
) -> Result<(), QmpError> {
    if let Err(error) = qmp.call_off() {
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
