//! The chunks that snapshots refer to.

use crate::backend::Meta;
use crate::name::ChunkName;
use crate::{Store, StoreError};
use std::collections::HashSet;

/// Chunks in use. A manifest that has been read is not read again: manifests do not change.
#[derive(Debug, Default)]
pub(super) struct Live {
    chunks: HashSet<ChunkName>,
    read: HashSet<(String, i64)>,
}

impl Live {
    /// Reads all manifests that have not been read.
    pub(super) fn read(&mut self, store: &Store) -> Result<(), StoreError> {
        for Meta { path, modified, .. } in store.manifest_objects()? {
            if self.read.contains(&(path.clone(), modified)) {
                continue;
            }
            match store.read_manifest(&path) {
                Ok(manifest) => {
                    self.chunks
                        .extend(manifest.chunks().iter().map(|chunk| chunk.name));
                    self.read.insert((path, modified));
                }
                // It has been removed since it was listed.
                Err(StoreError::Missing { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(super) fn has(&self, chunk: &ChunkName) -> bool {
        self.chunks.contains(chunk)
    }

    pub(super) fn snapshots(&self) -> usize {
        self.read.len()
    }
}
