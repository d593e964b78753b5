//! First error wins: it is kept, and everything that could block is told to stop.

use crate::Error;
use crate::sync::lock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Makes a call that blocks in another thread return with an error, now and at every later call.
pub trait Unblock: Send + Sync {
    /// Does it. Called at most a few times, from any thread, and must not block itself.
    fn unblock(&self);
}

#[derive(Default)]
struct State {
    first: Option<Error>,
    handles: Vec<(u64, Box<dyn Unblock>)>,
    next: u64,
}

/// The end of a transfer, shared by everything that takes part in it: the engine's threads, the
/// client, a signal handler's thread, connections outside the engine.
///
/// Make one a transfer, hand it to the engine's configuration, and keep a clone.
///
/// ```
/// use multifd_core::{CancelHandle, Error, Plain, RamMap, Receiver, ReceiverConfig};
///
/// let cancel = CancelHandle::default();
/// let config = ReceiverConfig::default().cancel(cancel.clone());
/// let receiver = Receiver::new(RamMap::new(), config)?;
/// cancel.cancel();
/// assert!(matches!(receiver.finish(), Err(Error::Cancelled)));
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Default)]
pub struct CancelHandle {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    tripped: AtomicBool,
    state: Mutex<State>,
}

impl CancelHandle {
    /// Ends the transfer with [`Error::Cancelled`], unless it has failed already.
    pub fn cancel(&self) {
        self.trip(Error::Cancelled);
    }

    /// Adds something that must not block on once the transfer has ended, such as a listener or
    /// QEMU's main channel: it is unblocked when the transfer fails or is cancelled; at once, if
    /// that has happened already. It is let go of when the guard is dropped.
    #[must_use = "the registration ends when the guard is dropped"]
    pub fn also_unblock(&self, handle: Box<dyn Unblock>) -> UnblockGuard {
        let mut state = lock(&self.shared.state);
        if state.first.is_some() {
            handle.unblock();
        }
        state.next += 1;
        let key = state.next;
        state.handles.push((key, handle));
        UnblockGuard {
            handle: self.clone(),
            key,
        }
    }

    /// The error the transfer ended with: the first one, or [`Error::Cancelled`].
    pub fn error(&self) -> Option<Error> {
        lock(&self.shared.state).first.clone()
    }

    /// Ends the transfer with `error`, unless another came first.
    pub(crate) fn trip(&self, error: Error) {
        let mut state = lock(&self.shared.state);
        if state.first.is_none() {
            state.first = Some(error);
            self.shared.tripped.store(true, Ordering::Release);
            state
                .handles
                .iter()
                .for_each(|(_, handle)| handle.unblock());
        }
    }

    /// The error the transfer ended with, if it has ended.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.shared.tripped.load(Ordering::Acquire) {
            Err(self.failure())
        } else {
            Ok(())
        }
    }

    /// The error of a transfer that is known to have ended.
    pub(crate) fn failure(&self) -> Error {
        self.error().unwrap_or(Error::Cancelled)
    }
}

impl std::fmt::Debug for CancelHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CancelHandle").finish_non_exhaustive()
    }
}

/// Keeps an [`Unblock`] registered with a [`CancelHandle`].
pub struct UnblockGuard {
    handle: CancelHandle,
    key: u64,
}

impl Drop for UnblockGuard {
    fn drop(&mut self) {
        lock(&self.handle.shared.state)
            .handles
            .retain(|(key, _)| *key != self.key);
    }
}

impl std::fmt::Debug for UnblockGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UnblockGuard").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    struct Count(Arc<AtomicU32>);

    impl Unblock for Count {
        fn unblock(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn the_first_error_is_kept_and_whatever_is_registered_is_unblocked() {
        let cancel = CancelHandle::default();
        let count = Arc::new(AtomicU32::new(0));
        let kept = cancel.also_unblock(Box::new(Count(Arc::clone(&count))));
        drop(cancel.also_unblock(Box::new(Count(Arc::clone(&count)))));
        cancel.trip(Error::DuplicateChannel { channel: 3 });
        cancel.cancel();
        assert_eq!(count.load(Ordering::Relaxed), 1);
        assert!(matches!(
            cancel.error(),
            Some(Error::DuplicateChannel { channel: 3 })
        ));
        let late = cancel.also_unblock(Box::new(Count(Arc::clone(&count))));
        assert_eq!(count.load(Ordering::Relaxed), 2);
        drop((kept, late));
        assert_eq!(
            Arc::strong_count(&count),
            1,
            "dropped guards let go of their handles"
        );
    }
}
