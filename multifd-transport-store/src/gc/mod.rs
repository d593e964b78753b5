//! Garbage collection: removes chunks that no snapshot refers to, beside writers on any machine.
//!
//! Nothing is removed at once. A pack without a use is first *condemned*, by an object that all can
//! see. Writers that begin afterwards do not refer to it. It is removed when every writer that began
//! before has ended, if no reader says that it needs it, and if no snapshot that has appeared since
//! refers to it.

mod live;
mod repack;
mod sweep;
#[cfg(test)]
mod tests;

use crate::format::ChunkRef;
use crate::lease::{Holder, LIFE, Lease, Leases, live as live_leases};
use crate::pack_index::Pack;
use crate::{Store, StoreError};
use bytes::Bytes;
use live::Live;
use multifd_core::CancelHandle;
use serde::Serialize;
use std::collections::HashMap;
use std::collections::HashSet;

/// What a garbage collection does.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct GcOptions {
    /// Only say what would be done.
    pub dry_run: bool,
    /// Stops it between two steps.
    pub cancel: CancelHandle,
}

impl GcOptions {
    /// Sets [`GcOptions::dry_run`].
    #[must_use]
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// Sets [`GcOptions::cancel`].
    #[must_use]
    pub fn cancel(mut self, cancel: CancelHandle) -> Self {
        self.cancel = cancel;
        self
    }
}

/// What a garbage collection did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct GcReport {
    /// Snapshots whose chunks were kept.
    pub snapshots: usize,
    /// Packs found.
    pub packs: usize,
    /// Packs removed.
    pub removed_packs: usize,
    /// Bytes of the packs removed.
    pub removed_bytes: u64,
    /// Packs that were rewritten without their unused chunks.
    pub repacked: usize,
    /// Bytes of used chunks that were copied for that.
    pub copied_bytes: u64,
    /// Packs without a use that wait for writers or readers to end; a later run removes them.
    pub waiting_packs: usize,
    /// Bytes of those.
    pub waiting_bytes: u64,
    /// How many writers and readers they wait for.
    pub waiting_for: usize,
}

/// By how much the clocks of a storage's servers may differ, microseconds.
const SKEW: i64 = 5 * 60 * 1_000_000;
/// What a mark holds that others have seen.
const SEEN: Bytes = Bytes::from_static(b"seen");

/// Packs that are used for less than one in so many of their bytes are rewritten.
const WORTH_KEEPING: u64 = 2;

/// Removes what no snapshot refers to.
///
/// Nothing that a writer or reader on any machine may refer to is removed: a pack without a use is
/// marked first, for all to see. It goes when all writers that began before have ended, no reader
/// with a [`Protection`](crate::Protection) needs it, and no snapshot that has appeared since.
///
/// Memory: about 150 bytes for each different chunk of the store.
///
/// # Errors
/// [`StoreError::GcRunning`]; [`StoreError::Damaged`] for a manifest that cannot be read, as then
/// nobody knows what is in use. A pack whose index cannot be read stays.
pub fn gc(store: &Store, options: &GcOptions) -> Result<GcReport, StoreError> {
    let mut gc = Gc::start(store)?;
    gc.plan()?;
    if options.dry_run {
        return Ok(gc.forecast());
    }
    let check = || match options.cancel.error() {
        Some(cancelled) => Err(StoreError::Cancelled(cancelled)),
        None => Ok(()),
    };
    check()?;
    gc.repack(&options.cancel)?;
    check()?;
    gc.condemn()?;
    check()?;
    gc.sweep()
}

/// A garbage collection that is under way.
struct Gc<'s> {
    store: &'s Store,
    lease: Lease,
    live: Live,
    /// All packs and what is in them.
    packs: Vec<(Pack, Vec<ChunkRef>)>,
    condemned: HashSet<crate::PackName>,
    /// The pack that each used chunk is kept in, by its number.
    canonical: HashMap<crate::ChunkName, usize>,
    /// Packs without a use.
    unused: Vec<Pack>,
    /// Numbers of packs that have little use.
    sparse: Vec<usize>,
    report: GcReport,
}

impl<'s> Gc<'s> {
    fn start(store: &'s Store) -> Result<Self, StoreError> {
        let lease = Lease::take(&store.backend, Holder::Gc, None)?;
        let leases = live_leases(store, lease.began)?;
        // Two that start at the same moment may both give up, but never both go on.
        let other = leases
            .live
            .iter()
            .find(|other| other.is_gc() && other.name != lease.name());
        if let Some(other) = other {
            return Err(StoreError::GcRunning {
                store: store.address().into(),
                since: format!("{} s", (lease.began - other.began) / 1_000_000),
            });
        }
        for path in leases.ended {
            store.backend.delete(&path)?;
        }
        store.backend.sweep(LIFE);
        Ok(Self {
            store,
            lease,
            live: Live::default(),
            packs: Vec::new(),
            condemned: HashSet::new(),
            canonical: HashMap::new(),
            unused: Vec::new(),
            sparse: Vec::new(),
            report: GcReport::default(),
        })
    }

    /// Leases that are alive, and the storage's time.
    fn leases(&self) -> Result<(Leases, i64), StoreError> {
        let now = self.now()?;
        Ok((live_leases(self.store, now)?, now))
    }

    /// When each writer that is alive began, by the storage's clock. One from the future is as old
    /// as can be: the clock was set back.
    fn writers(&self) -> Result<Vec<i64>, StoreError> {
        let (leases, now) = self.leases()?;
        let writers = leases.live.iter().filter(|lease| lease.is_writer());
        let began = writers.map(|writer| match writer.began {
            began if began > now + SKEW => i64::MIN,
            began => began,
        });
        Ok(began.collect())
    }

    /// The storage's time.
    fn now(&self) -> Result<i64, StoreError> {
        let backend = &self.store.backend;
        let path = format!("leases/{}/alive", self.lease.name());
        backend.put(&path, Bytes::new())?;
        let meta = backend.head(&path)?;
        Ok(meta.map_or(self.lease.began, |meta| meta.modified))
    }

    /// Finds out which packs are in use. The order matters: packs, then leases, then manifests. A
    /// pack that is listed belongs to a writer whose lease is listed, or whose manifest is.
    fn plan(&mut self) -> Result<(), StoreError> {
        let packs = self.store.packs()?;
        let writers = self.writers()?;
        let oldest = writers.iter().copied().min().unwrap_or(i64::MAX);
        self.live.read(self.store)?;
        self.condemned = self.store.condemned_names()?;
        self.packs = load(self.store, packs)?;
        self.canonical = self.find_canonical();
        for (number, (pack, chunks)) in self.packs.iter().enumerate() {
            if self.condemned.contains(&pack.name) {
                continue;
            }
            let used: u64 = chunks
                .iter()
                .filter(|chunk| self.canonical.get(&chunk.name) == Some(&number))
                .map(|chunk| u64::from(chunk.len))
                .sum();
            // A living writer may have put it there.
            if pack.modified.saturating_add(SKEW) >= oldest {
                if used == 0 {
                    self.report.waiting_packs += 1;
                    self.report.waiting_bytes += pack.len;
                    self.report.waiting_for = writers.len();
                }
                continue;
            }
            if used == 0 {
                self.unused.push(*pack);
            } else if used.saturating_mul(WORTH_KEEPING) < pack.len {
                self.sparse.push(number);
            }
        }
        self.report.snapshots = self.live.snapshots();
        self.report.packs = self.packs.len();
        Ok(())
    }

    /// The pack that each used chunk is kept in: the newest one that is not condemned.
    fn find_canonical(&self) -> HashMap<crate::ChunkName, usize> {
        let mut order: Vec<usize> = (0..self.packs.len()).collect();
        order.sort_by_key(|&number| {
            let pack = &self.packs[number].0;
            (
                !self.condemned.contains(&pack.name),
                pack.modified,
                pack.name,
            )
        });
        let mut canonical = HashMap::new();
        for number in order {
            for chunk in &self.packs[number].1 {
                if self.live.has(&chunk.name) {
                    canonical.insert(chunk.name, number);
                }
            }
        }
        canonical
    }

    /// Marks the packs without a use. A mark's time may be earlier than the moment from which on
    /// others see it, so it is written twice: the second one's time says when all saw the first.
    fn condemn(&mut self) -> Result<(), StoreError> {
        for pack in std::mem::take(&mut self.unused) {
            self.lease.check()?;
            let path = format!("condemned/{}", pack.name);
            self.store.backend.put(&path, Bytes::new())?;
            self.store.backend.put(&path, SEEN)?;
            self.condemned.insert(pack.name);
        }
        Ok(())
    }

    /// What would be done.
    fn forecast(&self) -> GcReport {
        let condemned = self.packs.iter().map(|(pack, _)| pack);
        let condemned = condemned.filter(|pack| self.condemned.contains(&pack.name));
        let mut report = self.report.clone();
        for pack in self.unused.iter().chain(condemned) {
            report.removed_packs += 1;
            report.removed_bytes += pack.len;
        }
        report.repacked = self.sparse.len();
        report
    }
}

/// What is in packs.
fn load(store: &Store, packs: Vec<Pack>) -> Result<Vec<(Pack, Vec<ChunkRef>)>, StoreError> {
    let mut loaded = vec![None; packs.len()];
    store.all_chunks(&packs, |number, chunks| loaded[number] = Some(chunks))?;
    let pairs = packs.into_iter().zip(loaded);
    Ok(pairs
        .filter_map(|(pack, chunks)| Some((pack, chunks?)))
        .collect())
}
