//! The chunks that snapshots refer to.

use crate::backend::Meta;
use crate::name::ChunkName;
use crate::store::each;
use crate::{Store, StoreError};
use std::collections::HashSet;

/// Chunks in use. A manifest that has been read is not read again: manifests do not change.
#[derive(Debug, Default)]
pub(super) struct Live {
    chunks: HashSet<ChunkName>,
    ids: HashSet<String>,
    read: HashSet<Meta>,
}

impl Live {
    /// Reads all manifests that have not been read.
    pub(super) fn read(&mut self, store: &Store) -> Result<(), StoreError> {
        let Self { chunks, ids, read } = self;
        let mut metas = store.manifest_objects()?;
        metas.retain(|meta| !read.contains(meta));
        let manifest = |meta: &Meta| store.read_manifest(&meta.path);
        each(&metas, 3, manifest, |meta, manifest| match manifest {
            Ok(manifest) => {
                chunks.extend(manifest.chunks().iter().map(|chunk| chunk.name));
                ids.insert(manifest.head.id);
                read.insert(meta.clone());
                Ok(())
            }
            // It has been removed since it was listed.
            Err(StoreError::Missing { .. }) => Ok(()),
            Err(error) => Err(error),
        })
    }

    /// Whether the snapshot with this id is one of them.
    pub(super) fn has_snapshot(&self, id: &str) -> bool {
        self.ids.contains(id)
    }

    pub(super) fn has(&self, chunk: &ChunkName) -> bool {
        self.chunks.contains(chunk)
    }

    pub(super) fn snapshots(&self) -> usize {
        self.read.len()
    }
}
