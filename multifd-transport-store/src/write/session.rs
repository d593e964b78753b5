//! The chunks of a new snapshot: each different one once.

use super::WriteOptions;
use super::catalogue::Catalogue;
use super::packs::Packs;
use super::source::{ChunkSource, is_zero};
use super::uploads::Uploads;
use crate::format::manifest::MAX_ENTRIES;
use crate::format::pack::MAX_PACK;
use crate::format::{ChunkRef, Encoder, name_of};
use crate::name::PackName;
use crate::threads::on_threads;
use crate::{OpenKeys, Store, StoreError};
use multifd_core::CancelHandle;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Chunks that a thread takes at once.
const AT_ONCE: u64 = 8;

/// The snapshot's chunks so far.
pub(super) struct Session {
    chunk_size: u32,
    keys: Option<Arc<OpenKeys>>,
    catalogue: Catalogue,
    /// The packs that the store had; the new ones' numbers follow.
    known: Vec<PackName>,
    packs: Packs,
    options: WriteOptions,
    nonzero: AtomicU64,
    new: AtomicU64,
    done: Arc<AtomicU64>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

/// What a session leaves.
pub(super) struct Done {
    pub(super) packs: Vec<PackName>,
    pub(super) chunks: Vec<ChunkRef>,
    pub(super) nonzero: u64,
    pub(super) new: u64,
    pub(super) cancel: CancelHandle,
}

impl Session {
    pub(super) fn new(store: &Store, options: WriteOptions) -> Result<Self, StoreError> {
        let (catalogue, known) = Catalogue::of_store(store, options.known_chunks)?;
        let uploads = Uploads::new(store.backend.clone(), options.uploads);
        let size = options.pack_size.clamp(1, MAX_PACK as usize / 2);
        let first = known.len() as u32;
        Ok(Self {
            chunk_size: store.chunk_size,
            keys: store.keys.clone(),
            packs: Packs::new(uploads, size, first, store.keys.clone())?,
            catalogue,
            known,
            options,
            nonzero: AtomicU64::new(0),
            new: AtomicU64::new(0),
            done: Arc::default(),
        })
    }

    pub(super) fn done(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.done)
    }

    /// Writes an object of `len` bytes, and returns its table.
    pub(super) fn write(&self, len: u64, source: &dyn ChunkSource) -> Result<Vec<u32>, StoreError> {
        let count = len.div_ceil(self.chunk_size.into());
        if count > MAX_ENTRIES {
            return Err(StoreError::Limit {
                what: "chunks of a snapshot",
                found: count,
                limit: MAX_ENTRIES,
            });
        }
        let table: Vec<_> = (0..count).map(|_| AtomicU32::new(0)).collect();
        let next = AtomicU64::new(0);
        let threads = (self.options.threads as u64).clamp(1, count.div_ceil(AT_ONCE).max(1));
        on_threads(threads as usize, || {
            self.work(len, source, &table, &next)
                .inspect_err(|_| next.store(count, Ordering::Relaxed))
        })?;
        Ok(table.into_iter().map(AtomicU32::into_inner).collect())
    }

    fn work(
        &self,
        len: u64,
        source: &dyn ChunkSource,
        table: &[AtomicU32],
        next: &AtomicU64,
    ) -> Result<(), StoreError> {
        let mut encoder = Encoder::new(self.options.level)?;
        let mut contents = vec![0; self.chunk_size as usize];
        let count = table.len() as u64;
        loop {
            let first = next.fetch_add(AT_ONCE, Ordering::Relaxed);
            if first >= count {
                return Ok(());
            }
            if let Some(cancelled) = self.options.cancel.error() {
                return Err(StoreError::Cancelled(cancelled));
            }
            for index in first..count.min(first + AT_ONCE) {
                let offset = index * u64::from(self.chunk_size);
                let size = (len - offset).min(self.chunk_size.into()) as usize;
                let entry = self.chunk(offset, source, &mut contents[..size], &mut encoder)?;
                table[index as usize].store(entry, Ordering::Relaxed);
                self.done.fetch_add(size as u64, Ordering::Relaxed);
            }
        }
    }

    /// A chunk's entry in its table.
    fn chunk(
        &self,
        offset: u64,
        source: &dyn ChunkSource,
        contents: &mut [u8],
        encoder: &mut Encoder,
    ) -> Result<u32, StoreError> {
        // One whose name is known need not be read if it is stored.
        let told = source.name(offset).filter(|name| self.catalogue.has(name));
        let name = if let Some(name) = told {
            name
        } else {
            if !source.read(offset, contents)? || is_zero(contents) {
                return Ok(0);
            }
            name_of(contents, self.keys.as_deref())
        };
        self.nonzero
            .fetch_add(contents.len() as u64, Ordering::Relaxed);
        let (id, is_new) = self.catalogue.claim(&name);
        if is_new {
            let keys = self.keys.as_deref();
            let (stored, zstd) = encoder.encode(&name, contents, keys)?;
            let chunk = self.packs.append(name, stored, zstd)?;
            self.new.fetch_add(stored.len() as u64, Ordering::Relaxed);
            self.catalogue.place(id, &chunk);
        }
        Ok(id.entry())
    }

    /// Waits for the uploads, and numbers the chunks in `tables` as in the list that it returns.
    /// Only packs that are used are listed.
    pub(super) fn finish(self, tables: &mut [Vec<u32>]) -> Result<Done, StoreError> {
        let mut names = self.known;
        names.extend(self.packs.finish()?);
        let unstored = || StoreError::Damaged {
            object: "the new snapshot".into(),
            why: "a chunk of it was not stored".into(),
        };
        let mut used = self.catalogue.finish().ok_or_else(unstored)?;
        for table in tables {
            used.renumber(table);
        }
        let mut numbers = HashMap::new();
        let mut packs = Vec::new();
        for chunk in &mut used.chunks {
            let number = numbers.entry(chunk.pack).or_insert_with(|| {
                packs.push(names.get(chunk.pack as usize).copied());
                packs.len() as u32 - 1
            });
            chunk.pack = *number;
        }
        let packs = packs.into_iter().collect::<Option<Vec<_>>>();
        Ok(Done {
            packs: packs.ok_or_else(unstored)?,
            chunks: used.chunks,
            nonzero: self.nonzero.into_inner(),
            new: self.new.into_inner(),
            cancel: self.options.cancel,
        })
    }
}
