//! New packs: chunks are appended to one until it is full.

use super::WriteOptions;
use super::uploads::Uploads;
use crate::format::ChunkRef;
use crate::format::pack::{MAX_CHUNKS, finish};
use crate::name::{ChunkName, PackName};
use crate::seal::random;
use crate::{OpenKeys, Store, StoreError};
use multifd_core::sync::lock;
use std::sync::{Arc, Mutex, PoisonError};

/// A pack that is being filled.
#[derive(Debug)]
struct Open {
    name: PackName,
    bytes: Vec<u8>,
    chunks: Vec<ChunkRef>,
}

#[derive(Debug)]
struct State {
    open: Open,
    /// The names of all new packs; the last is the open one's.
    names: Vec<PackName>,
}

/// The packs of a new snapshot.
#[derive(Debug)]
pub(crate) struct Packs {
    size: usize,
    /// The number of the first new pack.
    first: u32,
    keys: Option<Arc<OpenKeys>>,
    uploads: Uploads,
    state: Mutex<State>,
}

impl Packs {
    pub(super) fn new(
        uploads: Uploads,
        size: usize,
        first: u32,
        keys: Option<Arc<OpenKeys>>,
    ) -> Result<Self, StoreError> {
        let name = PackName(random()?);
        Ok(Self {
            size,
            first,
            keys,
            state: Mutex::new(State {
                open: Open {
                    name,
                    bytes: uploads.memory(size),
                    chunks: Vec::new(),
                },
                names: vec![name],
            }),
            uploads,
        })
    }

    /// New packs in a store.
    pub(crate) fn of_store(store: &Store) -> Result<Self, StoreError> {
        let defaults = WriteOptions::default();
        let uploads = Uploads::new(store.backend.clone(), defaults.uploads);
        Self::new(uploads, defaults.pack_size, 0, store.keys.clone())
    }

    /// Appends a chunk, and returns where it is.
    pub(crate) fn append(
        &self,
        name: ChunkName,
        stored: &[u8],
        zstd: bool,
    ) -> Result<ChunkRef, StoreError> {
        let mut state = lock(&self.state);
        let open = &state.open;
        let is_full = open.bytes.len() + stored.len() > self.size && !open.chunks.is_empty();
        let mut full = None;
        if is_full || open.chunks.len() == MAX_CHUNKS {
            // All wait here when the storage is slower than they: no one opens a pack meanwhile.
            self.uploads.reserve()?;
            let next = PackName(random()?);
            state.names.push(next);
            full = Some(std::mem::replace(
                &mut state.open,
                Open {
                    name: next,
                    bytes: self.uploads.memory(self.size),
                    chunks: Vec::new(),
                },
            ));
        }
        let chunk = ChunkRef {
            name,
            pack: self.first + state.names.len() as u32 - 1,
            offset: state.open.bytes.len() as u32,
            len: stored.len() as u32,
            zstd,
        };
        state.open.bytes.extend_from_slice(stored);
        state.open.chunks.push(chunk);
        drop(state);
        if let Some(full) = full {
            close(full, self.keys.as_deref(), &self.uploads)?;
        }
        Ok(chunk)
    }

    /// Uploads the last one, waits until all have arrived, and returns their names.
    pub(crate) fn finish(self) -> Result<Vec<PackName>, StoreError> {
        let state = self.state.into_inner();
        let State { open, names } = state.unwrap_or_else(PoisonError::into_inner);
        if !open.chunks.is_empty() {
            self.uploads.reserve()?;
            close(open, self.keys.as_deref(), &self.uploads)?;
        }
        self.uploads.finish()?;
        Ok(names)
    }
}

/// Ends a pack with its index, and uploads it in the place that was reserved.
fn close(mut pack: Open, keys: Option<&OpenKeys>, uploads: &Uploads) -> Result<(), StoreError> {
    finish(&mut pack.bytes, pack.name, &pack.chunks, keys)?;
    uploads.submit(pack.name.path(), pack.bytes);
    Ok(())
}
