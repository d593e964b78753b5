//! Packs on their way to the storage: a few at a time.

use crate::StoreError;
use crate::backend::Backend;
use bytes::Bytes;
use multifd_core::sync::{lock, wait};
use std::sync::{Arc, Condvar, Mutex};

#[derive(Default)]
struct State {
    under_way: usize,
    failed: Option<StoreError>,
    /// Memory of packs that have arrived, for the next ones.
    free: Vec<Vec<u8>>,
}

/// Uploads that run behind their submitter.
pub(super) struct Uploads {
    backend: Backend,
    window: usize,
    state: Arc<(Mutex<State>, Condvar)>,
}

impl std::fmt::Debug for Uploads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uploads")
            .field("window", &self.window)
            .finish_non_exhaustive()
    }
}

impl Uploads {
    pub(super) fn new(backend: Backend, window: usize) -> Self {
        Self {
            backend,
            window: window.max(1),
            state: Arc::default(),
        }
    }

    /// Waits until fewer than the window's packs are under way. One [`Uploads::submit`] has to
    /// follow, unless the writer gives up.
    pub(super) fn reserve(&self) -> Result<(), StoreError> {
        self.wait(self.window - 1)?.under_way += 1;
        Ok(())
    }

    /// Uploads `bytes` in the background.
    pub(super) fn submit(&self, path: String, bytes: Vec<u8>) {
        let bytes = Bytes::from(bytes);
        let copy = bytes.clone();
        let shared = Arc::clone(&self.state);
        self.backend.put_behind(path, bytes, move |result| {
            let memory = copy.try_into_mut().ok().map(|memory| {
                let mut memory = Vec::from(memory);
                memory.clear();
                memory
            });
            let (state, changed) = &*shared;
            let mut state = lock(state);
            state.under_way -= 1;
            state.free.extend(memory);
            if let Err(error) = result {
                state.failed.get_or_insert(error);
            }
            changed.notify_all();
        });
    }

    /// Memory for a pack.
    pub(super) fn memory(&self, size: usize) -> Vec<u8> {
        let mut state = lock(&self.state.0);
        let free = state.free.pop();
        free.unwrap_or_else(|| Vec::with_capacity(size))
    }

    /// Waits until all has arrived.
    pub(super) fn finish(&self) -> Result<(), StoreError> {
        self.wait(0).map(drop)
    }

    fn wait(&self, at_most: usize) -> Result<std::sync::MutexGuard<'_, State>, StoreError> {
        let (state, changed) = &*self.state;
        let mut state = lock(state);
        loop {
            if let Some(failed) = state.failed.take() {
                // The next one that asks fails, too.
                state.failed = Some(StoreError::Missing {
                    store: self.backend.shown().into(),
                    object: "a pack whose upload failed".into(),
                });
                return Err(failed);
            }
            if state.under_way <= at_most {
                return Ok(state);
            }
            state = wait(changed, state);
        }
    }
}
