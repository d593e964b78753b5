//! Reading a snapshot: any bytes at any time, many chunks in order, or files made of it.

mod cache;
mod export;
mod fetch;
mod files;
mod working_set;

pub use cache::ChunkCache;
pub use files::SnapshotFiles;
pub use working_set::Recorder;

use crate::format::manifest::Manifest;
use crate::format::{ChunkRef, Decoder};
use crate::name::{ChunkName, PackName};
use crate::{Store, StoreError};
use multifd_core::sync::lock;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, Mutex};

thread_local! {
    static DECODER: RefCell<Option<Decoder>> = const { RefCell::new(None) };
}

/// A place in a snapshot where a chunk belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkPlace {
    /// The object's number.
    pub object: usize,
    /// Offset in the object, bytes.
    pub offset: u64,
}

/// Where the chunks of packs that are gone went.
type Moved = HashMap<ChunkName, (PackName, ChunkRef)>;

struct Shared {
    store: Store,
    manifest: Manifest,
    cache: Arc<ChunkCache>,
    /// The first place of each chunk.
    places: Vec<ChunkPlace>,
    moved: Mutex<Option<Arc<Moved>>>,
}

/// A snapshot that is read. Copies of it are the same one.
#[derive(Clone)]
pub struct Snapshot(Arc<Shared>);

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Snapshot")
            .field(&self.manifest().head.name)
            .finish()
    }
}

impl Snapshot {
    /// Opens a snapshot. Chunks go through `cache`, which snapshots of a store can share.
    ///
    /// # Errors
    /// As [`Store::manifest`].
    pub fn open(store: &Store, name: &str, cache: &Arc<ChunkCache>) -> Result<Self, StoreError> {
        let manifest = store.manifest(name)?;
        let nowhere = ChunkPlace {
            object: usize::MAX,
            offset: 0,
        };
        let mut places = vec![nowhere; manifest.chunks().len()];
        for object in 0..manifest.head.objects.len() {
            for (index, chunk) in manifest.table(object).enumerate() {
                if let Some(place) = chunk.and_then(|chunk| places.get_mut(chunk))
                    && *place == nowhere
                {
                    *place = ChunkPlace {
                        object,
                        offset: index as u64 * u64::from(manifest.head.chunk_size),
                    };
                }
            }
        }
        Ok(Self(Arc::new(Shared {
            store: store.clone(),
            manifest,
            cache: Arc::clone(cache),
            places,
            moved: Mutex::default(),
        })))
    }

    /// What it is.
    pub fn manifest(&self) -> &Manifest {
        &self.0.manifest
    }

    /// The store that it is in.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// The first place that a chunk, by its number in the manifest's list, belongs to.
    pub fn place(&self, chunk: usize) -> Option<ChunkPlace> {
        let place = self.0.places.get(chunk).copied();
        place.filter(|place| place.object != usize::MAX)
    }

    /// Fills `out` with the bytes of an object from `offset` on.
    ///
    /// # Errors
    /// [`StoreError::Chunk`], which names the chunk; [`StoreError::Limit`] for bytes that the
    /// object does not have.
    pub fn read_at(&self, object: usize, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
        self.read_noting(object, offset, out, |_| ())
    }

    pub(crate) fn read_noting(
        &self,
        object: usize,
        offset: u64,
        out: &mut [u8],
        mut note: impl FnMut(usize),
    ) -> Result<(), StoreError> {
        let head = &self.manifest().head;
        let len = head.objects.get(object).map_or(0, |object| object.len);
        let end = offset.saturating_add(out.len() as u64);
        if end > len {
            return Err(StoreError::Limit {
                what: "bytes of an object",
                found: end,
                limit: len,
            });
        }
        let size = u64::from(head.chunk_size);
        let mut filled = 0;
        while filled < out.len() {
            let at = offset + filled as u64;
            let from = (at % size) as usize;
            let len = (size as usize - from).min(out.len() - filled);
            let to = &mut out[filled..filled + len];
            match self.manifest().entry(object, at / size) {
                None => to.fill(0),
                Some(number) => {
                    note(number);
                    let contents = self.chunk(number)?;
                    let piece = contents.get(from..from + len);
                    let piece = piece.ok_or_else(|| self.chunk_error(number, "it is too short"))?;
                    to.copy_from_slice(piece);
                }
            }
            filled += len;
        }
        Ok(())
    }

    /// A chunk, through the cache.
    fn chunk(&self, number: usize) -> Result<Arc<[u8]>, StoreError> {
        let chunk = &self.manifest().chunks()[number];
        self.0.cache.get(chunk.name, || {
            let mut contents = vec![0; self.chunk_len(number)];
            DECODER.with(|slot| {
                let mut slot = slot.borrow_mut();
                if slot.is_none() {
                    *slot = Some(Decoder::new()?);
                }
                match slot.as_mut() {
                    Some(decoder) => self.load(number, decoder, &mut contents),
                    None => Ok(()),
                }
            })?;
            Ok(contents.into())
        })
    }

    /// Puts a chunk that has been read into the cache.
    #[cfg(feature = "mount")]
    pub(crate) fn keep(&self, number: usize, contents: &[u8]) {
        if let Some(chunk) = self.manifest().chunks().get(number) {
            let _ = self.0.cache.get(chunk.name, || Ok(contents.into()));
        }
    }

    /// The bytes that a chunk has.
    fn chunk_len(&self, number: usize) -> usize {
        let head = &self.manifest().head;
        let whole = head.chunk_size as usize;
        self.place(number).map_or(whole, |place| {
            let object = &head.objects[place.object];
            head.chunk_len(object, place.offset / u64::from(head.chunk_size))
        })
    }

    fn pack_path(&self, pack: u32) -> Result<String, StoreError> {
        let name = self.manifest().packs().get(pack as usize);
        name.map(|name| name.path())
            .ok_or_else(|| StoreError::Damaged {
                object: self.store().manifest_path(&self.manifest().head.name),
                why: format!("it has no pack {pack}"),
            })
    }

    /// Reads one chunk into `out`, wherever it is now.
    fn load(&self, number: usize, decoder: &mut Decoder, out: &mut [u8]) -> Result<(), StoreError> {
        let chunk = &self.manifest().chunks()[number];
        let path = self.pack_path(chunk.pack)?;
        let range = |chunk: &ChunkRef| -> Range<u64> {
            let start = u64::from(chunk.offset);
            start..start + u64::from(chunk.len)
        };
        let backend = &self.store().backend;
        match backend.get_range(&path, range(chunk)) {
            Ok(stored) => self.decode(number, &stored, decoder, out),
            Err(StoreError::Missing { .. }) => {
                // A garbage collection may have moved it.
                let moved = self.moved()?;
                let (pack, chunk) = moved
                    .get(&chunk.name)
                    .ok_or_else(|| self.chunk_error(number, "the pack is missing"))?;
                let stored = backend.get_range(&pack.path(), range(chunk))?;
                self.decode_as(number, chunk, &stored, decoder, out)
            }
            Err(error) => Err(self.chunk_error(number, &error.to_string())),
        }
    }

    fn decode(
        &self,
        number: usize,
        stored: &[u8],
        decoder: &mut Decoder,
        out: &mut [u8],
    ) -> Result<(), StoreError> {
        let chunk = &self.manifest().chunks()[number];
        self.decode_as(number, chunk, stored, decoder, out)
    }

    fn decode_as(
        &self,
        number: usize,
        chunk: &ChunkRef,
        stored: &[u8],
        decoder: &mut Decoder,
        out: &mut [u8],
    ) -> Result<(), StoreError> {
        if stored.len() != chunk.len as usize {
            return Err(self.chunk_error(number, "the pack ends before"));
        }
        decoder
            .decode(
                &chunk.name,
                stored,
                chunk.zstd,
                self.store().keys.as_deref(),
                out,
            )
            .map_err(|why| self.chunk_error(number, &why))
    }

    fn chunk_error(&self, number: usize, why: &str) -> StoreError {
        let manifest = self.manifest();
        let chunk = &manifest.chunks()[number];
        let at = self.place(number).map_or("unused".into(), |place| {
            let name = &manifest.head.objects[place.object].name;
            format!("{name} at {:#x}", place.offset)
        });
        StoreError::Chunk {
            chunk: chunk.name.to_string(),
            at,
            pack: self.pack_path(chunk.pack).unwrap_or_default(),
            offset: chunk.offset,
            len: chunk.len,
            why: why.into(),
        }
    }

    /// Where this snapshot's chunks are by the indexes of all packs. Read once, when a pack that
    /// the manifest names has gone.
    fn moved(&self) -> Result<Arc<Moved>, StoreError> {
        let mut moved = lock(&self.0.moved);
        if let Some(moved) = &*moved {
            return Ok(Arc::clone(moved));
        }
        let own: HashSet<_> = self
            .manifest()
            .chunks()
            .iter()
            .map(|chunk| chunk.name)
            .collect();
        let packs = self.store().packs()?;
        let mut found = Moved::new();
        self.store().all_chunks(&packs, |number, chunks| {
            for chunk in chunks.into_iter().filter(|chunk| own.contains(&chunk.name)) {
                found.insert(chunk.name, (packs[number].name, chunk));
            }
        })?;
        let found = Arc::new(found);
        *moved = Some(Arc::clone(&found));
        Ok(found)
    }
}
