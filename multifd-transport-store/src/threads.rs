//! Work on several threads at once, and the first thing that goes wrong.

use crate::StoreError;
use multifd_core::sync::lock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Keeps the first of several errors.
#[derive(Debug, Default)]
pub(crate) struct FirstError(Mutex<Option<StoreError>>);

impl FirstError {
    pub(crate) fn note(&self, error: StoreError) {
        lock(&self.0).get_or_insert(error);
    }

    /// The error, if there was one.
    pub(crate) fn result(self) -> Result<(), StoreError> {
        match self.0.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

/// Runs `work` on so many threads, this one among them, and returns when all have ended. Fewer do it
/// if the system starts no more. An error of one does not end the others: `work` sees to that.
pub(crate) fn on_threads(
    threads: usize,
    work: impl Fn() -> Result<(), StoreError> + Sync,
) -> Result<(), StoreError> {
    let first = FirstError::default();
    let run = || {
        if let Err(error) = work() {
            first.note(error);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            let builder = std::thread::Builder::new().name("store".into());
            if builder.spawn_scoped(scope, run).is_err() {
                break;
            }
        }
        run();
    });
    first.result()
}

/// Reads things on so many threads; `take` gets each one's number and what was read of it, in any
/// order, one at a time. Its first error ends it.
pub(crate) fn read_each<I: Sync, T: Send>(
    items: &[I],
    threads: usize,
    read: impl Fn(usize, &I) -> T + Sync,
    take: impl FnMut(usize, T) -> Result<(), StoreError> + Send,
) -> Result<(), StoreError> {
    let next = AtomicUsize::new(0);
    let take = Mutex::new(take);
    on_threads(threads, || {
        while let number = next.fetch_add(1, Ordering::Relaxed)
            && let Some(item) = items.get(number)
        {
            let found = read(number, item);
            let mut take = lock(&take);
            take(number, found).inspect_err(|_| next.store(items.len(), Ordering::Relaxed))?;
        }
        Ok(())
    })
}
