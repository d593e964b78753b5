//! Snapshots that stay readable, whatever `gc` does meanwhile.

use super::{ChunkCache, Snapshot};
use crate::lease::{Holder, Lease};
use crate::{Log, Store, StoreError};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a reader puts beside its lease for a snapshot: the names of its packs. Behind this come the
/// snapshot's id, a dash and a number: each reader of one lease has an object of its own.
pub(crate) const NEEDS: &str = "needs-";
/// Numbers of guards, over all leases of the process.
static NUMBER: AtomicU64 = AtomicU64::new(0);
/// How often it is tried again when a snapshot is replaced at that moment.
const TRIES: u32 = 10;

/// A reader's lease: `gc` leaves the packs of snapshots that are opened with it, also when those
/// are removed.
///
/// It needs a store that can be written to. It ends when the last copy of it and the last snapshot
/// opened with it are dropped.
#[derive(Debug, Clone)]
pub struct Protection {
    store: Store,
    lease: Arc<Lease>,
}

/// Protects one snapshot while it lives.
#[derive(Debug)]
pub(super) struct Guard {
    lease: Arc<Lease>,
    name: String,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.lease.remove_beside(&self.name);
    }
}

impl Protection {
    /// Takes a lease. `log` is told if the storage could not be reached for so long that the lease
    /// may have ended in between.
    ///
    /// # Errors
    /// [`StoreError`], as when the store cannot be written to.
    pub fn start(store: &Store, log: Log) -> Result<Self, StoreError> {
        Ok(Self {
            store: store.clone(),
            lease: Arc::new(Lease::take(&store.backend, Holder::Reader, Some(log))?),
        })
    }

    /// Opens a snapshot, which is protected until it is dropped.
    ///
    /// # Errors
    /// As [`Snapshot::open`].
    pub fn open(&self, name: &str, cache: &Arc<ChunkCache>) -> Result<Snapshot, StoreError> {
        for _ in 0..TRIES {
            let manifest = self.store.manifest(name)?;
            let id = manifest.head.id.clone();
            let packs = manifest.packs().iter().flat_map(|pack| pack.0);
            // It goes whatever happens now.
            let guard = Guard {
                lease: Arc::clone(&self.lease),
                name: format!("{NEEDS}{id}-{}", NUMBER.fetch_add(1, Ordering::Relaxed)),
            };
            let needs = packs.collect::<Vec<_>>().into();
            self.lease.put_beside(&guard.name, needs)?;
            // A gc that had not seen this has to see the manifest: it looks for it first.
            if self
                .store
                .find_head(name)?
                .is_some_and(|head| head.id == id)
            {
                return Ok(Snapshot::of(&self.store, manifest, cache, Some(guard)));
            }
        }
        Err(StoreError::Damaged {
            object: self.store.manifest_path(name),
            why: "it is another one each time it is read".into(),
        })
    }
}
