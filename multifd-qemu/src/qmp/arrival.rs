//! A snapshot that comes to us over sockets.

use super::client::Qmp;
use super::settings::Changed;
use super::snapshot::{GuestReport, SnapshotOptions};
use super::watching::watch;
use crate::qmp::QmpError;
use crate::{Error, IncomingMigration, ReceiveOptions, Received};
use multifd_core::{CancelHandle, MainListener};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Has QEMU migrate to us, and watches over it. `channels`: how many come.
pub(super) fn transfer(
    options: &mut SnapshotOptions,
    channels: Option<u8>,
    (qmp, listener, uri): (&mut Qmp, &mut (dyn MainListener + Send), &str),
    (changed, guest): (&Changed, &mut GuestReport),
) -> Result<(Received, Duration), QmpError> {
    // Not the one the caller cancels: QEMU is told first.
    let broken_off = CancelHandle::default();
    let receive = std::mem::take(&mut options.receive)
        .channels(channels)
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
