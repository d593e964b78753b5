//! Ctrl-C and its kin end the transfer; a second one ends the program, unless a QEMU is to be put
//! back first.

use crate::failure::Failure;
use crate::report;
use multifd_core::CancelHandle;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

static CAUGHT: AtomicI32 = AtomicI32::new(0);
/// QEMUs whose settings are not as they were found.
static CHANGED: AtomicUsize = AtomicUsize::new(0);

/// Signals that come so soon after the first are the same one: `timeout` sends it to the process
/// and to its group.
const SAME: Duration = Duration::from_secs(1);

/// Notes that a QEMU's settings are not as they were found, or that they are again. In between, a
/// signal ends no more than the transfer.
pub(crate) fn changed(changed: bool) {
    if changed {
        CHANGED.fetch_add(1, Ordering::SeqCst);
    } else {
        CHANGED.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Whether a QEMU's settings are not as they were found.
pub(crate) fn is_changed() -> bool {
    CHANGED.load(Ordering::SeqCst) > 0
}

/// A handle that a signal cancels.
pub(crate) fn cancel_on_signal() -> Result<CancelHandle, Failure> {
    let failed = |cause| Failure::System {
        doing: "catching signals",
        cause,
    };
    // A write beyond the file-size limit is to fail like any other, not to kill us.
    signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false))).map_err(failed)?;
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(failed)?;
    let cancel = CancelHandle::default();
    let handle = cancel.clone();
    std::thread::Builder::new()
        .name("multifd-signals".into())
        .spawn(move || {
            let mut first = None;
            for signal in signals.forever() {
                let since = *first.get_or_insert_with(Instant::now);
                if CAUGHT.swap(signal, Ordering::Relaxed) != 0 && since.elapsed() > SAME {
                    if !is_changed() {
                        let _ = signal_hook::low_level::emulate_default_handler(signal);
                    }
                    report::note(
                        "QEMU's settings are being put back; after a kill -9 the next multifd would do it",
                    );
                }
                handle.cancel();
            }
        })
        .map_err(failed)?;
    Ok(cancel)
}

/// The signal that was caught, or 0.
pub(crate) fn caught() -> i32 {
    CAUGHT.load(Ordering::Relaxed)
}

/// The exit status of a program ended by the signal that was caught, if one was.
pub(crate) fn exit_status() -> Option<u8> {
    let signal = CAUGHT.load(Ordering::Relaxed);
    u8::try_from(signal)
        .ok()
        .filter(|&signal| signal != 0)
        .map(|signal| 128 + signal)
}
