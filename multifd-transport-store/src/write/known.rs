//! Chunks that the store has already.

use crate::format::ChunkRef;
use crate::name::{ChunkName, PackName};
use crate::{Store, StoreError};
use std::collections::HashMap;
use std::collections::HashSet;

/// Where a stored chunk is: a [`ChunkRef`] without its name, which is the map's key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Location {
    pub(super) pack: u32,
    pub(super) offset: u32,
    pub(super) len: u32,
    pub(super) zstd: bool,
}

impl Location {
    pub(super) fn of(chunk: &ChunkRef) -> Self {
        Self {
            pack: chunk.pack,
            offset: chunk.offset,
            len: chunk.len,
            zstd: chunk.zstd,
        }
    }

    pub(super) fn chunk(self, name: ChunkName) -> ChunkRef {
        ChunkRef {
            name,
            pack: self.pack,
            offset: self.offset,
            len: self.len,
            zstd: self.zstd,
        }
    }
}

/// Chunks of the store, by name.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) packs: Vec<PackName>,
    pub(super) chunks: HashMap<ChunkName, Location>,
}

impl Known {
    /// Reads the newest packs' indexes, until `limit` chunks are known. Packs that are about to be
    /// removed are left out.
    pub(super) fn load(store: &Store, limit: usize) -> Result<Self, StoreError> {
        let condemned: HashSet<_> = store
            .condemned()?
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        let mut packs = store.packs()?;
        packs.retain(|pack| !condemned.contains(&pack.name));
        packs.sort_by_key(|pack| (std::cmp::Reverse(pack.modified), pack.name));
        let mut chunks = HashMap::new();
        let mut full = false;
        let mut rest = packs.as_slice();
        let mut first = 0;
        // A batch at a time, so that the newest come first.
        while !rest.is_empty() && !full {
            let (batch, later) = rest.split_at(rest.len().min(64));
            store.all_chunks(batch, |number, found| {
                for chunk in found {
                    if chunks.len() >= limit {
                        full = true;
                        return;
                    }
                    let mut location = Location::of(&chunk);
                    location.pack = (first + number) as u32;
                    chunks.insert(chunk.name, location);
                }
            })?;
            first += batch.len();
            rest = later;
        }
        Ok(Self {
            packs: packs.into_iter().map(|pack| pack.name).collect(),
            chunks,
        })
    }
}
