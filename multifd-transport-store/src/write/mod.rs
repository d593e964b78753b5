//! Writing a snapshot: chunks are named, compressed and put into packs, which are uploaded while
//! the next ones fill.

mod catalogue;
mod packs;
mod session;
mod source;
mod uploads;

pub(crate) use packs::Packs;
pub use source::{Bytes, ChunkSource};

use crate::format::manifest::{FileEntry, Head, Manifest, Object, ObjectKind, Part, Sizes};
use crate::format::table::Body;
use crate::lease::{Holder, Lease};
use crate::name::to_hex;
use crate::seal::random;
use crate::{Store, StoreError};
use multifd_core::{CancelHandle, RamBlock, ZeroPages};
use session::Session;
use source::BlockSource;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{SystemTime, UNIX_EPOCH};

/// How a snapshot is written.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WriteOptions {
    /// zstd's level, 1 to 19. Default: 1.
    pub level: i32,
    /// Threads that name and compress. Default: one for each processor.
    pub threads: usize,
    /// Bytes of a pack. Default: 8 MiB; at most 32 MiB.
    pub pack_size: usize,
    /// Packs that are uploaded at the same time; each takes its size in memory. Default: 4.
    pub uploads: usize,
    /// Most chunks of the store that are looked at for being equal to new ones, newest packs
    /// first; each takes about 60 bytes of memory. Default: 458,752, which is 28 GiB of different chunks
    /// of 64 KiB.
    pub known_chunks: usize,
    /// Stops it.
    pub cancel: CancelHandle,
}

impl Default for WriteOptions {
    fn default() -> Self {
        Self {
            level: 1,
            threads: std::thread::available_parallelism().map_or(2, std::num::NonZero::get),
            pack_size: 8 << 20,
            uploads: 4,
            known_chunks: 7 << 16,
            cancel: CancelHandle::default(),
        }
    }
}

impl WriteOptions {
    /// Sets [`WriteOptions::level`].
    #[must_use]
    pub fn level(mut self, level: i32) -> Self {
        self.level = level;
        self
    }

    /// Sets [`WriteOptions::threads`].
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Sets [`WriteOptions::uploads`].
    #[must_use]
    pub fn uploads(mut self, uploads: usize) -> Self {
        self.uploads = uploads;
        self
    }

    /// Sets [`WriteOptions::cancel`].
    #[must_use]
    pub fn cancel(mut self, cancel: CancelHandle) -> Self {
        self.cancel = cancel;
        self
    }
}

/// A snapshot that is being written. It appears in the store when [`Writer::finish`] returns; if it
/// is dropped before, nothing appears, and [`gc`](crate::gc()) removes what was uploaded.
#[derive(Debug)]
pub struct Writer {
    store: Store,
    name: String,
    session: Session,
    objects: Vec<Object>,
    tables: Vec<Vec<u32>>,
    files: Vec<FileEntry>,
    about: serde_json::Map<String, serde_json::Value>,
    created: u64,
    lease: Lease,
}

impl Writer {
    /// Begins a snapshot.
    ///
    /// # Errors
    /// [`StoreError::Exists`], or what the storage says.
    pub fn start(store: &Store, name: &str, options: WriteOptions) -> Result<Self, StoreError> {
        store.check_free(name)?;
        // First the lease: what is known after it cannot be removed while it lives.
        let lease = Lease::take(&store.backend, Holder::Writer, None)?;
        Ok(Self {
            session: Session::new(store, options)?,
            store: store.clone(),
            name: name.into(),
            objects: Vec::new(),
            tables: Vec::new(),
            files: Vec::new(),
            about: serde_json::Map::new(),
            created: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |time| time.as_secs()),
            lease,
        })
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Sets when the snapshot was taken, seconds since 1970. Default: now.
    pub fn created(&mut self, time: u64) {
        self.created = time;
    }

    /// How many bytes have been looked at, to be read while it runs.
    pub fn done(&self) -> Arc<AtomicU64> {
        self.session.done()
    }

    /// Writes a RAM block, and returns the object's number. Zero pages are found as `zeros` says.
    ///
    /// The block's memory may change meanwhile, as a guest's does: each chunk has what was there
    /// when it was read.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn block(&mut self, block: &RamBlock, zeros: &ZeroPages) -> Result<usize, StoreError> {
        let object = Object {
            kind: ObjectKind::Block,
            name: block.name().into(),
            len: block.len(),
            page_size: block.page_size(),
        };
        self.object(object, &BlockSource { block, zeros })
    }

    /// Writes other bytes, and returns the object's number.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn stream(&mut self, name: &str, bytes: &[u8]) -> Result<usize, StoreError> {
        let object = Object {
            kind: ObjectKind::Stream,
            name: name.into(),
            len: bytes.len() as u64,
            page_size: 0,
        };
        self.object(object, &Bytes(bytes))
    }

    /// Writes an object from any source, and returns its number.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn object(
        &mut self,
        object: Object,
        source: &dyn ChunkSource,
    ) -> Result<usize, StoreError> {
        let table = self.session.write(object.len, source)?;
        self.objects.push(object);
        self.tables.push(table);
        Ok(self.objects.len() - 1)
    }

    /// Adds a file that can be made from the objects.
    pub fn file(&mut self, file: FileEntry) {
        self.files.push(file);
    }

    /// Writes bytes, and adds them as a file.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn whole_file(&mut self, path: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let object = self.stream(path, bytes)?;
        let len = bytes.len() as u64;
        let part = Part {
            at: 0,
            len,
            object,
            offset: 0,
        };
        self.file(FileEntry {
            path: path.into(),
            len,
            parts: if len > 0 { vec![part] } else { Vec::new() },
        });
        Ok(())
    }

    /// Adds something to be known of the snapshot.
    pub fn about(&mut self, key: &str, value: serde_json::Value) {
        self.about.insert(key.into(), value);
    }

    /// Puts the manifest: the snapshot is in the store.
    ///
    /// # Errors
    /// [`StoreError`]; then it is not.
    pub fn finish(mut self) -> Result<Head, StoreError> {
        let done = self.session.finish(&mut self.tables)?;
        let manifest = Manifest {
            head: Head {
                name: self.name.clone(),
                id: to_hex(&random::<16>()?),
                created: self.created,
                chunk_size: self.store.chunk_size,
                sizes: Sizes {
                    logical: self.objects.iter().map(|object| object.len).sum(),
                    nonzero: done.nonzero,
                    stored: done.chunks.iter().map(|chunk| u64::from(chunk.len)).sum(),
                    new: done.new,
                },
                objects: self.objects,
                files: self.files,
                about: self.about,
            },
            body: Body {
                packs: done.packs,
                chunks: done.chunks,
                tables: self.tables,
            },
        };
        let path = self.store.manifest_path(&self.name);
        let (head, bytes) = manifest.write(&path, self.store.keys.as_deref())?;
        if let Some(cancelled) = done.cancel.error() {
            return Err(StoreError::Cancelled(cancelled));
        }
        let backend = &self.store.backend;
        if !backend.create(&path, &bytes.into(), &|| self.lease.check())? {
            return Err(self.store.exists(&self.name));
        }
        // One that came after the lease's end may lack chunks.
        if let Err(error) = self.lease.check() {
            backend.delete(&path)?;
            return Err(error);
        }
        Ok(head)
    }
}
