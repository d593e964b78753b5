//! A snapshot into a QEMU that waits for it.

use super::client::Qmp;
#[cfg(feature = "file")]
use super::descriptors::{Access, DescriptorSet};
use super::hooks::Hooks;
use super::machine;
use super::settings::{Changed, recover};
use super::way::Way;
#[cfg(feature = "file")]
use crate::file::SnapshotFile;
use crate::qmp::QmpError;
use crate::{Configuration, Error, Sent, Snapshot};
use multifd_core::config;
use multifd_core::packet::Compression;
use serde_json::json;
use std::time::{Duration, Instant};

config! {
    /// How to restore a snapshot into a QEMU.
    #[derive(Debug)]
    pub struct RestoreOptions {
        /// How many channels QEMU expects, or threads it reads a file with. Default: 4.
        channels: u8 = 4,
        /// By which method QEMU decompresses.
        compression: Compression = Compression::None,
        /// Whether QEMU reads a file past the page cache.
        direct: bool = false,
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
pub struct Restored<T> {
    /// How it was sent; nothing where QEMU read it by itself.
    pub sent: T,
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
) -> Result<Restored<Sent>, QmpError> {
    recover(qmp, &options.hooks)?;
    machine::ask_ahead(qmp)?;
    check_waits(qmp)?;
    let mut snapshot = load()?;
    let blocks = snapshot.blocks().into_iter();
    let blocks: Vec<_> = blocks
        .map(|block| (block.name, block.used_length))
        .collect();
    machine::check_fits(qmp, &snapshot.configuration, &blocks)?;
    snapshot.uuid = machine::uuid(qmp)?;
    let way = Way::Channels(options.channels, options.compression);
    let machine = &snapshot.configuration;
    let at = |_: &mut Qmp| Ok(uri.to_owned());
    give(qmp, way, at, machine, options, |port| {
        transfer(&snapshot, port)
    })
}

/// Restores a snapshot's file into the QEMU at `qmp`, which waits for a migration (`-incoming
/// defer`) and reads the file by itself. See [`cannot_use_files`](crate::qmp::cannot_use_files).
///
/// # Errors
/// As [`restore`].
#[cfg(feature = "file")]
pub fn restore_from_file(
    qmp: &mut Qmp,
    file: &SnapshotFile,
    options: &RestoreOptions,
) -> Result<Restored<()>, QmpError> {
    recover(qmp, &options.hooks)?;
    machine::ask_ahead(qmp)?;
    check_waits(qmp)?;
    if let Some(why) = super::cannot_use_files(qmp)? {
        return Err(QmpError::Refused(why.into()));
    }
    let mapped = file.mapped();
    machine::check_fits(qmp, &mapped.configuration, &machine::placed(mapped))?;
    let way = Way::File(options.channels, options.direct);
    let mut passed = None;
    let at = |qmp: &mut Qmp| {
        let set = DescriptorSet::pass(qmp, file.file(), Access::Read, options.direct)?;
        Ok(passed.insert(set).uri(mapped.base))
    };
    let restored = give(qmp, way, at, &mapped.configuration, options, |_| Ok(()));
    if let Some(set) = passed {
        set.remove(qmp);
    }
    restored
}

/// Sets QEMU up, has it wait where `at` says, sends, and waits until it has loaded everything.
pub(super) fn give<T>(
    qmp: &mut Qmp,
    way: Way,
    at: impl FnOnce(&mut Qmp) -> Result<String, QmpError>,
    machine: &Configuration,
    options: &RestoreOptions,
    transfer: impl FnOnce(Option<u16>) -> Result<T, Error>,
) -> Result<Restored<T>, QmpError> {
    let changed = Changed::set_up(qmp, way, false, &options.hooks)?;
    let sent = at(qmp).and_then(|uri| load(qmp, &uri, machine, transfer, options));
    // A QEMU that could not load it has ended, mostly: then there is nothing to put back.
    let put_back = match qmp.guest() {
        Err(QmpError::Gone { .. }) => {
            changed.forget();
            Ok(())
        }
        Err(error) => Err(error),
        // The guest first, if it is to run.
        Ok((running, _)) => {
            let resumed = if options.resume && !running && sent.is_ok() {
                qmp.execute("cont", &json!({})).map(drop)
            } else {
                Ok(())
            };
            changed.put_back(qmp).and(resumed)
        }
    };
    let sent = sent?;
    put_back?;
    let (_, state) = qmp.guest()?;
    Ok(Restored { sent, state })
}

fn load<T>(
    qmp: &mut Qmp,
    uri: &str,
    machine: &Configuration,
    transfer: impl FnOnce(Option<u16>) -> Result<T, Error>,
    options: &RestoreOptions,
) -> Result<T, QmpError> {
    qmp.execute("migrate-incoming", &json!({ "uri": uri }))?;
    if options.stop {
        // So that it does not run as soon as it is loaded.
        qmp.execute("stop", &json!({}))?;
    }
    let port = qmp.migration()?.port.and_then(|port| port.parse().ok());
    let sent = transfer(port);
    match wait_loaded(qmp, options.timeout, sent.is_ok()) {
        // QEMU's own words say more than a connection that broke off.
        Err(error @ QmpError::Gone { .. }) => Err(QmpError::Failed(format!(
            "QEMU refused the snapshot of {:?} and has exited; its standard error says what was wrong ({error})",
            machine.machine
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
