//! Reading a snapshot: any bytes at any time, many chunks in order, or files made of it.

mod cache;
mod export;
mod fetch;
mod files;
mod loader;
mod protection;
mod working_set;

pub use cache::ChunkCache;
#[cfg(feature = "mount")]
pub(crate) use files::FileList;
pub use files::SnapshotFiles;
pub(crate) use protection::NEEDS;
pub use protection::Protection;
pub use working_set::Recorder;

use crate::format::ChunkRef;
use crate::format::manifest::Manifest;
use crate::name::{ChunkName, PackName};
use crate::{Store, StoreError};
use loader::{Loader, with_loader};
use multifd_core::sync::lock;
use protection::Guard;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

/// A place in a snapshot where a chunk belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkPlace {
    /// The object's number.
    pub object: usize,
    /// Offset in the object, bytes.
    pub offset: u64,
}

/// How often a chunk is looked for again that a garbage collection has moved.
const MOVES: u32 = 3;

/// Where the chunks of packs that are gone went.
type Moved = HashMap<ChunkName, (PackName, ChunkRef)>;

struct Shared {
    store: Store,
    manifest: Manifest,
    cache: Arc<ChunkCache>,
    /// The first place of each chunk.
    places: Vec<ChunkPlace>,
    moved: Mutex<Option<Arc<Moved>>>,
    _guard: Option<Guard>,
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
    /// If it is removed while it is read, a `gc` may take its chunks away: [`Protection`] is against
    /// that.
    ///
    /// # Errors
    /// As [`Store::manifest`].
    pub fn open(store: &Store, name: &str, cache: &Arc<ChunkCache>) -> Result<Self, StoreError> {
        Ok(Self::of(store, store.manifest(name)?, cache, None))
    }

    fn of(
        store: &Store,
        manifest: Manifest,
        cache: &Arc<ChunkCache>,
        guard: Option<Guard>,
    ) -> Self {
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
        Self(Arc::new(Shared {
            store: store.clone(),
            manifest,
            cache: Arc::clone(cache),
            places,
            moved: Mutex::default(),
            _guard: guard,
        }))
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
                    self.read_chunk(number, from, to)?;
                }
            }
            filled += len;
        }
        Ok(())
    }

    /// Fills `out` with a chunk's bytes from `from` on.
    fn read_chunk(&self, number: usize, from: usize, out: &mut [u8]) -> Result<(), StoreError> {
        let name = self.manifest().chunks()[number].name;
        let len = self.chunk_len(number);
        // A whole chunk goes where it is wanted. Of a folder it is not kept either: its pack is in
        // the system's cache.
        let whole = out.len() == len && self.store().backend.is_local();
        if whole && !self.0.cache.has(&name) {
            return with_loader(|loader| self.load(number, loader, out));
        }
        let contents = self.0.cache.get(name, || {
            let mut contents = vec![0; len];
            with_loader(|loader| self.load(number, loader, &mut contents))?;
            Ok(contents.into())
        })?;
        let piece = contents.get(from..from + out.len());
        let piece = piece.ok_or_else(|| self.chunk_error(number, "it is too short"))?;
        out.copy_from_slice(piece);
        Ok(())
    }

    /// Puts a chunk that has been read into the cache.
    #[cfg(feature = "mount")]
    pub(crate) fn keep(&self, number: usize, contents: &[u8]) {
        if let Some(chunk) = self.manifest().chunks().get(number) {
            let copy = || Ok(bytes::Bytes::copy_from_slice(contents));
            let _ = self.0.cache.get(chunk.name, copy);
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

    /// Reads one chunk into `out`, wherever it is now. The error names it, also if it is the
    /// storage's.
    fn load(&self, number: usize, loader: &mut Loader, out: &mut [u8]) -> Result<(), StoreError> {
        let store = self.store();
        let chunk = &self.manifest().chunks()[number];
        let failed = |error: StoreError| self.chunk_error(number, &error.to_string());
        let mut result = loader.load(store, &self.pack_path(chunk.pack)?, chunk, out);
        let mut last = None;
        // A garbage collection may have moved it, perhaps more than once.
        for _ in 0..MOVES {
            if !matches!(result, Err(StoreError::Missing { .. })) {
                break;
            }
            let moved = self.moved(last.as_ref()).map_err(failed)?;
            let Some((pack, chunk)) = moved.get(&chunk.name) else {
                return Err(self.chunk_error(number, "the pack is missing"));
            };
            result = loader.load(store, &pack.path(), chunk, out);
            last = Some(moved);
        }
        result
            .map_err(failed)?
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

    /// Where this snapshot's chunks are by the indexes of all packs. Read when a pack that the
    /// manifest names has gone, and again when what was read is `outdated`.
    fn moved(&self, outdated: Option<&Arc<Moved>>) -> Result<Arc<Moved>, StoreError> {
        let mut moved = lock(&self.0.moved);
        if let Some(moved) = &*moved
            && outdated.is_none_or(|old| !Arc::ptr_eq(old, moved))
        {
            return Ok(Arc::clone(moved));
        }
        let own: HashSet<_> = self
            .manifest()
            .chunks()
            .iter()
            .map(|chunk| chunk.name)
            .collect();
        let mut packs = self.store().packs()?;
        let condemned = self.store().condemned_names()?;
        // Those that may go any moment come first, so that others take their place.
        packs.sort_by_key(|pack| !condemned.contains(&pack.name));
        let (doomed, safe) =
            packs.split_at(packs.partition_point(|pack| condemned.contains(&pack.name)));
        let mut found = Moved::new();
        for packs in [doomed, safe] {
            self.store().all_chunks(packs, |number, chunks| {
                for chunk in chunks.into_iter().filter(|chunk| own.contains(&chunk.name)) {
                    found.insert(chunk.name, (packs[number].name, chunk));
                }
            })?;
        }
        let found = Arc::new(found);
        *moved = Some(Arc::clone(&found));
        Ok(found)
    }
}
