//! How much snapshots take, alone and together.

use crate::backend::Meta;
use crate::format::manifest::Head;
use crate::name::ChunkName;
use crate::store::{Listing, each};
use crate::{Store, StoreError};
use serde::Serialize;
use std::collections::HashMap;

/// What one snapshot takes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotUsage {
    /// What it is.
    pub head: Head,
    /// Bytes stored for it alone: what removing it and a garbage collection give back, and whole
    /// packs less.
    pub unique: u64,
    /// Bytes stored for it and for others.
    pub shared: u64,
    /// Bytes of its manifest.
    pub manifest: u64,
    /// Whether a working set is kept for it.
    pub has_working_set: bool,
}

/// What a store holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Usage {
    /// Snapshots.
    pub snapshots: usize,
    /// Bytes of all their objects.
    pub logical: u64,
    /// Bytes of those in chunks that are not zero.
    pub nonzero: u64,
    /// Different chunks in use.
    pub chunks: usize,
    /// Bytes of those, before compression.
    pub unique: u64,
    /// Bytes of those, as stored.
    pub stored: u64,
    /// Packs.
    pub packs: usize,
    /// Bytes of all packs: with their indexes, and chunks that are no longer used.
    pub pack_bytes: u64,
    /// Bytes of all manifests.
    pub manifest_bytes: u64,
}

/// What a store and its snapshots take.
#[derive(Debug)]
#[non_exhaustive]
pub struct StoreUsage {
    /// All together.
    pub all: Usage,
    /// By snapshot, in the order of their names.
    pub snapshots: Vec<SnapshotUsage>,
    /// Manifests that cannot be read: their paths, and why.
    pub unreadable: Vec<(String, StoreError)>,
}

/// A chunk in use.
struct InUse {
    /// The only snapshot that uses it, if it is the only one.
    owner: Option<usize>,
    stored: u32,
    len: u32,
}

impl Store {
    /// What the store holds, in all and by snapshot. Reads all manifests, and no pack.
    ///
    /// Memory: about 80 bytes for each different chunk.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn usage(&self) -> Result<StoreUsage, StoreError> {
        let mut chunks: HashMap<ChunkName, InUse> = HashMap::new();
        let mut snapshots = Vec::new();
        let mut usage = Usage::default();
        let mut listing = Listing::default();
        let sets: Vec<_> = self.backend.list("working-sets")?;
        let read = |meta: &Meta| self.read_manifest(&meta.path);
        each(&self.manifest_objects()?, 3, read, |meta, manifest| {
            let manifest = match manifest {
                Ok(manifest) => manifest,
                Err(error) => return listing.note(meta, error),
            };
            let number = snapshots.len();
            let mut lens = vec![manifest.head.chunk_size; manifest.chunks().len()];
            for (object, one) in manifest.head.objects.iter().enumerate() {
                let last = manifest.head.chunks_of(one).saturating_sub(1);
                if let Some(chunk) = manifest.entry(object, last) {
                    lens[chunk] = manifest.head.chunk_len(one, last) as u32;
                }
            }
            for (chunk, &len) in manifest.chunks().iter().zip(&lens) {
                chunks
                    .entry(chunk.name)
                    .and_modify(|known| known.owner = known.owner.filter(|&one| one == number))
                    .or_insert(InUse {
                        owner: Some(number),
                        stored: chunk.len,
                        len,
                    });
            }
            usage.logical += manifest.head.sizes.logical;
            usage.nonzero += manifest.head.sizes.nonzero;
            usage.manifest_bytes += meta.len;
            let set = self.working_set_path(&manifest.head.name);
            snapshots.push(SnapshotUsage {
                shared: manifest.head.sizes.stored,
                unique: 0,
                manifest: meta.len,
                has_working_set: sets.iter().any(|one| one.path == set),
                head: manifest.head,
            });
            Ok(())
        })?;
        for chunk in chunks.values() {
            usage.unique += u64::from(chunk.len);
            usage.stored += u64::from(chunk.stored);
            if let Some(owner) = chunk.owner {
                snapshots[owner].unique += u64::from(chunk.stored);
            }
        }
        for snapshot in &mut snapshots {
            snapshot.shared = snapshot.shared.saturating_sub(snapshot.unique);
        }
        snapshots.sort_by(|one, other| one.head.name.cmp(&other.head.name));
        listing.unreadable.sort_by(|one, other| one.0.cmp(&other.0));
        let packs = self.packs()?;
        usage.snapshots = snapshots.len();
        usage.chunks = chunks.len();
        usage.packs = packs.len();
        usage.pack_bytes = packs.iter().map(|pack| pack.len).sum();
        Ok(StoreUsage {
            all: usage,
            snapshots,
            unreadable: listing.unreadable,
        })
    }
}
