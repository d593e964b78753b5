//! New packs: chunks are appended to one until it is full.

use super::WriteOptions;
use super::uploads::Uploads;
use crate::format::ChunkRef;
use crate::format::pack::{MAX_CHUNKS, finish};
use crate::name::{ChunkName, PackName};
use crate::seal::{Keys, random};
use crate::{OpenKeys, Store, StoreError};
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

    fn keys(&self) -> Option<&Keys> {
        self.keys.as_ref().map(|keys| &keys.0)
    }

    /// Appends a chunk, and returns where it is.
    pub(crate) fn append(
        &self,
        name: ChunkName,
        stored: &[u8],
        zstd: bool,
    ) -> Result<ChunkRef, StoreError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let open = &state.open;
        let is_full = open.bytes.len() + stored.len() > self.size && !open.chunks.is_empty();
        let mut full = None;
        if is_full || open.chunks.len() == MAX_CHUNKS {
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
            self.close(full)?;
        }
        Ok(chunk)
    }

    fn close(&self, mut pack: Open) -> Result<(), StoreError> {
        finish(&mut pack.bytes, pack.name, &pack.chunks, self.keys())?;
        self.uploads.submit(pack.name.path(), pack.bytes)
    }

    /// Uploads the last one, waits until all have arrived, and returns their names.
    pub(crate) fn finish(self) -> Result<Vec<PackName>, StoreError> {
        let state = self
            .state
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let State { open, names } = state;
        if !open.chunks.is_empty() {
            let mut open = open;
            let keys = self.keys.as_ref().map(|keys| &keys.0);
            finish(&mut open.bytes, open.name, &open.chunks, keys)?;
            self.uploads.submit(open.name.path(), open.bytes)?;
        }
        self.uploads.finish()?;
        Ok(names)
    }
}
