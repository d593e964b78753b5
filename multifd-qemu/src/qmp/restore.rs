//! A snapshot into a QEMU that waits for it.

use super::client::Qmp;
use super::hooks::Hooks;
use super::machine;
use super::settings::{Changed, recover};
use crate::qmp::QmpError;
use crate::{Error, Sent, Snapshot};
use multifd_core::config;
use multifd_core::packet::Compression;
use serde_json::json;
use std::time::{Duration, Instant};

config! {
    /// How to restore a snapshot into a QEMU.
    #[derive(Debug)]
    pub struct RestoreOptions {
        /// How many channels QEMU expects. Default: 4.
        channels: u8 = 4,
        /// By which method QEMU decompresses.
        compression: Compression = Compression::None,
        /// Let the guest run afterwards.
        resume: bool = false,
        /// Leave the guest stopped afterwards.
        stop: bool = false,
        /// How long QEMU may take to load the snapshot once it has been sent. Default: 30 s.
        timeout: Duration = Duration::from_secs(30),
        /// What the caller is told.
        hooks: Hooks = Hooks::default(),
    }
}

/// A snapshot that QEMU has loaded.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Restored {
    /// How it was sent.
    pub sent: Sent,
    /// The state of the guest afterwards, in QEMU's words.
    pub state: String,
}

/// Checks that the QEMU at `qmp` waits for a migration (`-incoming defer`); nothing is changed.
pub(super) fn check_waits(qmp: &mut Qmp) -> Result<(), QmpError> {
    let (_, status) = qmp.guest()?;
    if status == "inmigrate" {
        return Ok(());
    }
    Err(QmpError::Refused(format!(
        "QEMU does not wait for a migration (its guest is {status}): start it with -incoming defer"
    )))
}

/// Restores a snapshot into the QEMU at `qmp`, which waits for a migration (`-incoming defer`). It
/// is told to listen at `uri`. `load` returns the snapshot, once QEMU is known to wait for one;
/// `transfer` sends it to there, and is given the port that QEMU chose for `tcp:HOST:0`.
///
/// The snapshot's UUID is set to QEMU's: it takes no other.
///
/// # Errors
/// [`QmpError::Refused`] before anything is changed: QEMU does not wait for a migration, or is
/// another machine than the snapshot's. [`QmpError`] otherwise; a QEMU that has begun to load takes
/// no other migration then.
pub fn restore(
    qmp: &mut Qmp,
    uri: &str,
    load: impl FnOnce() -> Result<Snapshot, Error>,
    transfer: impl FnOnce(&Snapshot, Option<u16>) -> Result<Sent, Error>,
    options: &RestoreOptions,
) -> Result<Restored, QmpError> {
    recover(qmp, &options.hooks)?;
    check_waits(qmp)?;
    let mut snapshot = load()?;
    machine::check_fits(qmp, &snapshot)?;
    snapshot.uuid = machine::uuid(qmp)?;
    let how = (options.channels, options.compression);
    let changed = Changed::set_up(qmp, how, false, &options.hooks)?;
    let sent = give(qmp, uri, &snapshot, transfer, options);
    // A QEMU that could not load it has ended, mostly: then there is nothing to put back.
    let put_back = match qmp.guest() {
        Err(QmpError::Gone { .. }) => {
            changed.forget();
            Ok(())
        }
        Err(error) => Err(error),
        Ok(_) => changed.put_back(qmp),
    };
    let sent = sent?;
    put_back?;
    if options.resume && !qmp.guest()?.0 {
        qmp.execute("cont", &json!({}))?;
    }
    let (_, state) = qmp.guest()?;
    Ok(Restored { sent, state })
}

/// Has QEMU listen, sends, and waits until it has loaded everything.
fn give(
    qmp: &mut Qmp,
    uri: &str,
    snapshot: &Snapshot,
    transfer: impl FnOnce(&Snapshot, Option<u16>) -> Result<Sent, Error>,
    options: &RestoreOptions,
) -> Result<Sent, QmpError> {
    qmp.execute("migrate-incoming", &json!({ "uri": uri }))?;
    if options.stop {
        // So that it does not run as soon as it is loaded.
        qmp.execute("stop", &json!({}))?;
    }
    let port = qmp.migration()?.port.and_then(|port| port.parse().ok());
    let sent = transfer(snapshot, port);
    match wait_loaded(qmp, options.timeout, sent.is_ok()) {
        // QEMU's own words say more than a connection that broke off.
        Err(error @ QmpError::Gone { .. }) => Err(QmpError::Failed(format!(
            "QEMU refused the snapshot of {:?} and has exited; its standard error says what was wrong ({error})",
            snapshot.configuration.machine
        ))),
        Err(error) => Err(error),
        Ok(()) => {
            if sent.is_err() {
                options
                    .hooks
                    .note("this QEMU takes no other migration: start it anew to try again");
            }
            Ok(sent?)
        }
    }
}

/// Waits until QEMU has made up its mind; not for long if it was not sent everything.
fn wait_loaded(qmp: &mut Qmp, timeout: Duration, sent: bool) -> Result<(), QmpError> {
    let end = Instant::now()
        + if sent {
            timeout
        } else {
            Duration::from_secs(1)
        };
    loop {
        let migration = qmp.migration()?;
        match migration.status.as_str() {
            "completed" => return Ok(()),
            "failed" => {
                let why = migration
                    .error
                    .unwrap_or_else(|| "it does not say why".into());
                return Err(QmpError::Failed(format!(
                    "QEMU could not load the snapshot: {why}"
                )));
            }
            _ if Instant::now() >= end && !sent => return Ok(()),
            status if Instant::now() >= end => {
                return Err(QmpError::Failed(format!(
                    "QEMU does not finish loading: it is {status}"
                )));
            }
            _ => qmp.pause()?,
        }
    }
}
