//! A snapshot of a running QEMU: it migrates to us or into a file, and is put back.

use super::arrival::transfer;
use super::client::Qmp;
use super::hooks::Hooks;
use super::machine;
use super::run_state::{self, RunStateRule};
use super::settings::{Changed, recover};
use super::watching::{may_run_on, settle, unknown};
use super::way::Way;
use crate::qmp::QmpError;
use crate::{BlockInfo, LayoutError, PhysicalMap, ReceiveOptions, Received, Tail};
use multifd_core::packet::{Compression, Uuid};
use multifd_core::{BoxError, CancelHandle, MainListener, config};
use std::time::Duration;

/// How far QEMU is with a migration, by its own count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotProgress {
    /// Rounds over the guest's memory.
    pub rounds: u64,
    /// Bytes of guest RAM.
    pub ram_bytes: u64,
    /// Bytes of it that are still to be copied in this round.
    pub remaining_bytes: u64,
}

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
        /// The memory as of one instant, with one short pause at the start, however fast the guest
        /// writes (QEMU's `background-snapshot`). Pages come over the main connection alone.
        background: bool = false,
        /// Whether a file that QEMU writes goes past the page cache.
        direct: bool = false,
        /// Rounds, as QEMU counts them, after which a guest that dirties its memory too fast is
        /// stopped early. Default: 20.
        max_rounds: u64 = 20,
        /// Ends the snapshot from elsewhere; QEMU is put back then.
        cancel: CancelHandle = CancelHandle::default(),
        /// Called with the guest's RAM blocks, if QEMU tells them, before anything is changed.
        check: Option<CheckGuest> = None,
        /// Called with how far QEMU is, whenever it is asked.
        on_progress: Option<Box<dyn Fn(SnapshotProgress)>> = None,
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
pub struct SnapshotTaken<T> {
    /// The VM, and how it came; or what QEMU has written.
    pub vm: T,
    /// How long it took, from the main connection on.
    pub took: Duration,
    /// The VM's UUID, or zeros.
    pub uuid: Uuid,
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
    options: SnapshotOptions,
) -> Result<SnapshotTaken<Received>, QmpError> {
    let way = if options.background {
        Way::Background
    } else {
        Way::Channels(options.channels, options.compression)
    };
    let channels = (!options.background).then_some(options.channels);
    take(qmp, options, way, |qmp, options, changed| {
        let outcome = transfer(options, channels, (qmp, &mut listener, uri), changed);
        // With it go connections that nobody took: a QEMU that is told to cancel waits for their
        // end.
        drop(listener);
        outcome
    })
}

/// What both kinds of snapshot tell.
pub(super) trait Vm {
    fn tail(&self) -> &Tail;
    fn blocks(&self) -> Vec<(&str, u64)>;
}

impl Vm for Received {
    fn tail(&self) -> &Tail {
        &self.snapshot.tail
    }

    fn blocks(&self) -> Vec<(&str, u64)> {
        let blocks = self.snapshot.ram.blocks().iter();
        blocks.map(|block| (block.name(), block.len())).collect()
    }
}

/// Sets a QEMU up, has `transfer` take its memory, and puts it back.
pub(super) fn take<T: Vm>(
    qmp: &mut Qmp,
    mut options: SnapshotOptions,
    way: Way,
    transfer: impl FnOnce(
        &mut Qmp,
        &mut SnapshotOptions,
        (&Changed, &mut GuestReport),
    ) -> Result<(T, Duration), QmpError>,
) -> Result<SnapshotTaken<T>, QmpError> {
    recover(qmp, &options.hooks)?;
    machine::ask_ahead(qmp)?;
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
    let uuid = machine::uuid(qmp)?;
    let resume = options.resume || (rule == RunStateRule::GoesOn && !options.stop);
    let mut guest = GuestReport {
        found: status,
        ..GuestReport::default()
    };
    // In the background the guest runs at the end: its memory's layout may be another one then.
    let before = options
        .background
        .then(|| machine::flat_view(qmp))
        .flatten();
    let changed = Changed::set_up(qmp, way, was_running, &options.hooks)?;
    let outcome = transfer(qmp, &mut options, (&changed, &mut guest));
    // Otherwise it stands still, and its memory lies where it lay when it was copied.
    let flat_view = outcome.is_ok().then(|| machine::flat_view(qmp)).flatten();
    let flat_view = flat_view.filter(|now| !options.background || before.as_ref() == Some(now));
    // Whatever happened, QEMU is put back first.
    let run_on = match &outcome {
        Ok((vm, _)) => resume && may_run_on(&guest, vm.tail(), &options),
        Err(_) => was_running,
    };
    let put_back = settle(qmp, changed, (outcome.is_ok(), run_on), &mut guest);
    let (vm, took) = match (outcome, put_back.is_ok()) {
        (Ok(arrival), _) => arrival,
        (Err(QmpError::Gone { .. }), false) => return Err(put_back.err().unwrap_or_else(unknown)),
        (Err(error), _) => return Err(error),
    };
    let layout = match flat_view {
        Some(text) => PhysicalMap::from_flat_view(&text, &vm.blocks(), vm.tail()),
        None => Err(LayoutError::NotShown),
    };
    Ok(SnapshotTaken {
        vm,
        took,
        uuid,
        guest,
        layout,
        put_back,
    })
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
    if options.background && rule != RunStateRule::GoesOn {
        return Err(QmpError::Refused(format!(
            "the guest does not run ({status}), and one that stands still needs no snapshot in the background"
        )));
    }
    if !migration.blockers.is_empty() {
        return Err(QmpError::Refused(format!(
            "this QEMU cannot be migrated, and so no snapshot be taken of it: {}",
            migration.blockers.join("; ")
        )));
    }
    Ok(rule)
}
