//! Ctrl-C and its kin end the transfer; a second one ends the program.

use crate::failure::Failure;
use multifd_core::CancelHandle;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

static CAUGHT: AtomicI32 = AtomicI32::new(0);

/// A handle that a signal cancels.
pub(crate) fn cancel_on_signal() -> Result<CancelHandle, Failure> {
    let failed = |source| Failure::System {
        doing: "catching signals",
        source,
    };
    // A write beyond the file-size limit is to fail like any other, not to kill us.
    signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false))).map_err(failed)?;
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(failed)?;
    let cancel = CancelHandle::default();
    let handle = cancel.clone();
    std::thread::Builder::new()
        .name("multifd-signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                if CAUGHT.swap(signal, Ordering::Relaxed) != 0 {
                    let _ = signal_hook::low_level::emulate_default_handler(signal);
                }
                handle.cancel();
            }
        })
        .map_err(failed)?;
    Ok(cancel)
}

/// The exit status of a program ended by the signal that was caught, if one was.
pub(crate) fn exit_status() -> Option<u8> {
    let signal = CAUGHT.load(Ordering::Relaxed);
    u8::try_from(signal)
        .ok()
        .filter(|&signal| signal != 0)
        .map(|signal| 128 + signal)
}
