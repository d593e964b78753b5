//! First error wins: it is kept, and everything that could block is told to stop.

use crate::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Makes a call that blocks in another thread return with an error, now and at every later call.
pub trait Unblock: Send + Sync {
    /// Does it. Called at most a few times, from any thread, and must not block itself.
    fn unblock(&self);
}

/// A lock whose data stays valid when a holder panics: every critical section here is a few plain assignments.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Default)]
struct State {
    first: Option<Error>,
    handles: Vec<Box<dyn Unblock>>,
}

/// The end of a transfer that failed, shared by all its threads.
#[derive(Default)]
pub(crate) struct Shutdown {
    tripped: AtomicBool,
    state: Mutex<State>,
}

impl Shutdown {
    /// Adds something to unblock; at once, if the transfer has failed already.
    pub(crate) fn register(&self, handle: Box<dyn Unblock>) {
        let mut state = lock(&self.state);
        if state.first.is_some() {
            handle.unblock();
        }
        state.handles.push(handle);
    }

    /// Ends the transfer with `error`, unless another came first.
    pub(crate) fn trip(&self, error: Error) {
        let mut state = lock(&self.state);
        if state.first.is_none() {
            state.first = Some(error);
            self.tripped.store(true, Ordering::Release);
            state.handles.iter().for_each(|handle| handle.unblock());
        }
    }

    pub(crate) fn is_tripped(&self) -> bool {
        self.tripped.load(Ordering::Acquire)
    }

    /// The error the transfer ended with.
    pub(crate) fn error(&self) -> Option<Error> {
        lock(&self.state).first.clone()
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.is_tripped() {
            Err(self.error().unwrap_or(Error::Cancelled))
        } else {
            Ok(())
        }
    }

    /// Lets go of the handles: descriptors close once the threads that used them are joined.
    pub(crate) fn release(&self) {
        lock(&self.state).handles.clear();
    }
}

/// Cancels a transfer from another thread or a signal handler's thread.
#[derive(Clone)]
pub struct CancelHandle {
    pub(crate) shutdown: Arc<Shutdown>,
}

impl CancelHandle {
    /// Ends the transfer with [`Error::Cancelled`], unless it has failed already.
    pub fn cancel(&self) {
        self.shutdown.trip(Error::Cancelled);
    }
}

impl std::fmt::Debug for CancelHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CancelHandle").finish_non_exhaustive()
    }
}
