//! Stored chunks into memory.

use crate::format::{ChunkRef, Decoder};
use crate::{Store, StoreError};
use std::cell::RefCell;
use std::ops::Range;

thread_local! {
    static LOADER: RefCell<Option<Loader>> = const { RefCell::new(None) };
}

/// Calls `work` with this thread's loader.
pub(super) fn with_loader<T>(
    work: impl FnOnce(&mut Loader) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    LOADER.with(|slot| {
        let mut slot = slot.borrow_mut();
        let loader = match slot.take() {
            Some(loader) => loader,
            None => Loader::new()?,
        };
        work(slot.insert(loader))
    })
}

/// What turns stored chunks into contents, and the memory that it reads them to.
pub(super) struct Loader {
    decoder: Decoder,
    stored: Vec<u8>,
    /// How many bytes of `stored` were read.
    len: usize,
}

impl Loader {
    pub(super) fn new() -> Result<Self, StoreError> {
        Ok(Self {
            decoder: Decoder::new()?,
            stored: Vec::new(),
            len: 0,
        })
    }

    /// Reads a stretch of a pack, of which [`Loader::decode`] takes chunks.
    pub(super) fn read(
        &mut self,
        store: &Store,
        pack: &str,
        range: Range<u64>,
    ) -> Result<(), StoreError> {
        self.len = 0;
        self.len = store.backend.read_range(pack, range, &mut self.stored)?;
        Ok(())
    }

    /// Decodes a chunk whose stored bytes begin at `at` of what was read. The error says what is
    /// wrong with it.
    pub(super) fn decode(
        &mut self,
        store: &Store,
        chunk: &ChunkRef,
        at: usize,
        out: &mut [u8],
    ) -> Result<(), String> {
        let stored = self.stored[..self.len].get_mut(at..at + chunk.len as usize);
        let stored = stored.ok_or("the pack ends before")?;
        let keys = store.keys.as_deref();
        self.decoder
            .decode(&chunk.name, stored, chunk.zstd, keys, out)
    }

    /// Reads and decodes a chunk. The inner error says what is wrong with it, the outer one why it
    /// cannot be read.
    pub(super) fn load(
        &mut self,
        store: &Store,
        pack: &str,
        chunk: &ChunkRef,
        out: &mut [u8],
    ) -> Result<Result<(), String>, StoreError> {
        let start = u64::from(chunk.offset);
        self.read(store, pack, start..start + u64::from(chunk.len))?;
        Ok(self.decode(store, chunk, 0, out))
    }
}
