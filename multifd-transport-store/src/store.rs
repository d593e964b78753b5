//! A store: opened, created, and what is in it.

use crate::backend::{Backend, Meta};
use crate::format::manifest::{Head, MAX_BODY, MAX_HEAD, Manifest, PREFIX, Prefix, SECTION};
use crate::format::{CHUNK_SIZES, DEFAULT_CHUNK, VERSION, is_chunk_size};
use crate::name::{check_snapshot_name, from_hex, to_hex};
use crate::seal::random;
use crate::threads::read_each;
use crate::{OpenKeys, StoreAddress, StoreError, StoreKey};
use object_store::ObjectStore;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// The path of the object that makes a place a store.
const HEADER: &str = "multifd-store.json";
/// Most bytes of it.
const MAX_HEADER: u64 = 4096;
/// Bytes of a manifest that are read to know its head, if it is not longer.
const FIRST_READ: u64 = 16 << 10;
/// Objects that are read at the same time.
const AT_ONCE: u64 = 16;
/// Bytes that they may take together.
const IN_MEMORY: u64 = 128 << 20;

/// What a store says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Header {
    format: u32,
    id: String,
    chunk_size: u32,
    /// In an encrypted store: what only its key gives.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_check: Option<String>,
}

/// How a store is opened, or made.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct StoreOptions {
    /// The secret of an encrypted store.
    pub key: Option<StoreKey>,
    /// Bytes of a chunk in a new store: a power of two, 4096 to 262144. Default: 65536.
    pub chunk_size: Option<u32>,
    /// For how long a request is tried again that fails for a reason that may pass: overload, a
    /// broken connection. Default: 3 minutes.
    pub retry_timeout: Option<Duration>,
}

impl StoreOptions {
    /// Sets [`StoreOptions::key`].
    #[must_use]
    pub fn key(mut self, key: Option<StoreKey>) -> Self {
        self.key = key;
        self
    }

    /// Sets [`StoreOptions::retry_timeout`].
    #[must_use]
    pub fn retry_timeout(mut self, time: Duration) -> Self {
        self.retry_timeout = Some(time);
        self
    }

    /// Sets [`StoreOptions::chunk_size`].
    #[must_use]
    pub fn chunk_size(mut self, bytes: u32) -> Self {
        self.chunk_size = Some(bytes);
        self
    }
}

/// Snapshots in one place, which share their chunks.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) backend: Backend,
    pub(crate) keys: Option<Arc<OpenKeys>>,
    pub(crate) chunk_size: u32,
    id: String,
}

/// A snapshot that is in a store, by its head.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Listed {
    /// What it is.
    pub head: Head,
    /// Bytes of its manifest.
    pub manifest_len: u64,
}

/// Reads objects, some at a time: as many as hold no more than [`IN_MEMORY`] together, at `times`
/// their bytes. `take` gets what was read of each, in any order. Its first error ends it.
pub(crate) fn each<T: Send>(
    metas: &[Meta],
    times: u64,
    read: impl Fn(&Meta) -> Result<T, StoreError> + Sync,
    mut take: impl FnMut(&Meta, Result<T, StoreError>) -> Result<(), StoreError> + Send,
) -> Result<(), StoreError> {
    let largest = metas.iter().map(|meta| meta.len).max().unwrap_or(0);
    let fit = IN_MEMORY / (largest * times).max(1);
    let threads = (metas.len() as u64 / 4).min(fit).clamp(1, AT_ONCE);
    read_each(
        metas,
        threads as usize,
        |_, meta| read(meta),
        |number, found| take(&metas[number], found),
    )
}

/// What is in a store.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Listing {
    /// Its snapshots, by name.
    pub snapshots: Vec<Listed>,
    /// Manifests that cannot be read: their paths, and why.
    pub unreadable: Vec<(String, StoreError)>,
}

impl Listing {
    /// Notes why a manifest could not be read. An error that is not the manifest's fault is
    /// returned.
    pub(crate) fn note(&mut self, meta: &Meta, error: StoreError) -> Result<(), StoreError> {
        match error {
            // It has been removed since.
            StoreError::Missing { .. } => {}
            StoreError::Damaged { .. } | StoreError::Version { .. } | StoreError::Name { .. } => {
                self.unreadable.push((meta.path.clone(), error));
            }
            error => return Err(error),
        }
        Ok(())
    }
}

impl Store {
    /// Opens a store.
    ///
    /// # Errors
    /// [`StoreError`], as when there is none, or it needs another key.
    pub fn open(address: &StoreAddress, options: &StoreOptions) -> Result<Self, StoreError> {
        Self::open_at(Backend::connect(address, false, options)?, options)
    }

    /// Opens a store, or makes one where there is none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open_or_create(
        address: &StoreAddress,
        options: &StoreOptions,
    ) -> Result<Self, StoreError> {
        Self::create_at(Backend::connect(address, true, options)?, options)
    }

    /// The same, over any storage.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn over(objects: Arc<dyn ObjectStore>, options: &StoreOptions) -> Result<Self, StoreError> {
        let shown = objects.to_string();
        Self::create_at(Backend::over(objects, &shown), options)
    }

    fn create_at(backend: Backend, options: &StoreOptions) -> Result<Self, StoreError> {
        match Self::open_at(backend.clone(), options) {
            Err(StoreError::NoStore { .. }) => {}
            other => return other,
        }
        let chunk_size = options.chunk_size.unwrap_or(DEFAULT_CHUNK);
        if !is_chunk_size(chunk_size) {
            return Err(StoreError::Limit {
                what: "bytes of a chunk, a power of two from 4096 on",
                found: chunk_size.into(),
                limit: (*CHUNK_SIZES.end()).into(),
            });
        }
        let id = random::<16>()?;
        let keys = options.key.as_ref().map(|key| OpenKeys::new(key, &id));
        let header = Header {
            format: VERSION,
            id: to_hex(&id),
            chunk_size,
            key_check: keys.map(|keys| to_hex(&keys.check())),
        };
        let text = serde_json::to_vec_pretty(&header).map_err(|error| StoreError::Damaged {
            object: HEADER.into(),
            why: error.to_string(),
        })?;
        // Another writer may be first: then its store is the one.
        backend.create(HEADER, &text.into(), &|| Ok(()))?;
        Self::open_at(backend, options)
    }

    pub(crate) fn open_at(backend: Backend, options: &StoreOptions) -> Result<Self, StoreError> {
        let store = || backend.shown().to_owned();
        let text = match backend.get(HEADER, MAX_HEADER) {
            Err(StoreError::Missing { .. }) => return Err(StoreError::NoStore { store: store() }),
            other => other?,
        };
        let damaged = |why: String| StoreError::Damaged {
            object: HEADER.into(),
            why,
        };
        let header: Header =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        if header.format != VERSION {
            return Err(StoreError::Version {
                object: HEADER.into(),
                found: header.format,
                known: VERSION,
            });
        }
        if !is_chunk_size(header.chunk_size) {
            return Err(damaged(format!("chunks of {} bytes", header.chunk_size)));
        }
        let id = from_hex::<16>(&header.id).ok_or_else(|| damaged("its id is not one".into()))?;
        let keys = match (&options.key, &header.key_check) {
            (None, None) => None,
            (None, Some(_)) => return Err(StoreError::KeyNeeded { store: store() }),
            (Some(_), None) => return Err(StoreError::NotEncrypted { store: store() }),
            (Some(key), Some(check)) => {
                let keys = OpenKeys::new(key, &id);
                if to_hex(&keys.check()) != *check {
                    return Err(StoreError::WrongKey { store: store() });
                }
                Some(Arc::new(keys))
            }
        };
        Ok(Self {
            chunk_size: header.chunk_size,
            id: header.id,
            backend,
            keys,
        })
    }

    /// Its address, as it was written.
    pub fn address(&self) -> &str {
        self.backend.shown()
    }

    /// Its id: 32 hex digits, random, the same for all who use it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Bytes of a chunk in new snapshots.
    pub fn chunk_size(&self) -> u32 {
        self.chunk_size
    }

    /// Whether it is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.keys.is_some()
    }

    /// Whether equal chunks have equal names in both stores.
    pub(crate) fn names_alike(&self, other: &Self) -> bool {
        match (self.is_encrypted(), other.is_encrypted()) {
            (false, false) => true,
            (true, true) => self.id == other.id,
            _ => false,
        }
    }

    /// The path of what is kept of a snapshot in one of the store's folders.
    fn path_in(&self, folder: &str, name: &str) -> String {
        match self.keys.as_deref() {
            None => format!("{folder}/{name}"),
            Some(keys) => {
                let hash = keys.object_name(name);
                format!("{folder}/{}", to_hex(&hash[..16]))
            }
        }
    }

    /// The path of a snapshot's manifest.
    pub(crate) fn manifest_path(&self, name: &str) -> String {
        self.path_in("snapshots", name)
    }

    /// The path of a snapshot's working set.
    pub(crate) fn working_set_path(&self, name: &str) -> String {
        self.path_in("working-sets", name)
    }

    pub(crate) fn manifest_objects(&self) -> Result<Vec<Meta>, StoreError> {
        self.backend.list("snapshots")
    }

    /// The snapshots by name: each one's head, which does not need its whole manifest read. One
    /// whose manifest cannot be read does not hide the others.
    ///
    /// # Errors
    /// [`StoreError`], if the storage cannot be listed or does not answer.
    pub fn list(&self) -> Result<Listing, StoreError> {
        let mut listing = Listing::default();
        let metas = self.manifest_objects()?;
        each(
            &metas,
            0,
            |meta| self.head_of(meta),
            |meta, head| match head {
                Ok(head) => {
                    listing.snapshots.push(Listed {
                        head,
                        manifest_len: meta.len,
                    });
                    Ok(())
                }
                Err(error) => listing.note(meta, error),
            },
        )?;
        let name = |one: &Listed| one.head.name.clone();
        listing.snapshots.sort_by_key(name);
        listing.unreadable.sort_by(|one, other| one.0.cmp(&other.0));
        Ok(listing)
    }

    /// A snapshot's head, which does not need its whole manifest read.
    ///
    /// # Errors
    /// As [`Store::manifest`].
    pub fn head(&self, name: &str) -> Result<Head, StoreError> {
        self.find_head(name)?.ok_or_else(|| self.no_snapshot(name))
    }

    /// The same; `None` if there is no such snapshot.
    pub(crate) fn find_head(&self, name: &str) -> Result<Option<Head>, StoreError> {
        check_snapshot_name(name)?;
        let Some(meta) = self.backend.head(&self.manifest_path(name))? else {
            return Ok(None);
        };
        match self.head_of(&meta) {
            Err(StoreError::Missing { .. }) => Ok(None),
            other => other.map(Some),
        }
    }

    fn head_of(&self, meta: &Meta) -> Result<Head, StoreError> {
        let path = &meta.path;
        let cut = || StoreError::Damaged {
            object: path.clone(),
            why: format!("it has {} bytes", meta.len),
        };
        if meta.len < PREFIX as u64 {
            return Err(cut());
        }
        let first = self.backend.get_range(path, 0..FIRST_READ.min(meta.len))?;
        let prefix = Prefix::read(path, first.get(..PREFIX).unwrap_or(&first))?;
        if prefix.total() != meta.len {
            return Err(cut());
        }
        let range = prefix.head_range();
        let mut stored = match first.get(range.start as usize..range.end as usize) {
            Some(head) => head.to_vec(),
            None => self.backend.get_range(path, range)?,
        };
        let head = Head::read(path, &mut stored, self.keys.as_deref())?;
        self.check_place(path, &head)?;
        Ok(head)
    }

    /// A manifest must lie where its name says.
    fn check_place(&self, path: &str, head: &Head) -> Result<(), StoreError> {
        if self.manifest_path(&head.name) == path {
            return Ok(());
        }
        Err(StoreError::Damaged {
            object: path.into(),
            why: format!("it is the manifest of {:?}", head.name),
        })
    }

    pub(crate) fn read_manifest(&self, path: &str) -> Result<Manifest, StoreError> {
        let limit = u64::from(MAX_HEAD) + u64::from(MAX_BODY) + (PREFIX + 2 * SECTION) as u64;
        let mut bytes = self.backend.get(path, limit)?;
        let manifest = Manifest::read(path, &mut bytes, self.keys.as_deref())?;
        self.check_place(path, &manifest.head)?;
        Ok(manifest)
    }

    /// A snapshot's manifest.
    ///
    /// # Errors
    /// [`StoreError::NoSnapshot`], which names some that exist; [`StoreError::Damaged`].
    pub fn manifest(&self, name: &str) -> Result<Manifest, StoreError> {
        check_snapshot_name(name)?;
        match self.read_manifest(&self.manifest_path(name)) {
            Err(StoreError::Missing { .. }) => Err(self.no_snapshot(name)),
            other => other,
        }
    }

    fn no_snapshot(&self, name: &str) -> StoreError {
        let names = match self.list() {
            Ok(listing) => listing.snapshots,
            Err(error) => return error,
        };
        let mut known: Vec<_> = names.iter().map(|one| one.head.name.as_str()).collect();
        let more = known.len().saturating_sub(10);
        known.truncate(10);
        StoreError::NoSnapshot {
            store: self.backend.shown().into(),
            name: name.into(),
            known: match (known.is_empty(), more) {
                (true, _) => "none".into(),
                (false, 0) => known.join(", "),
                (false, more) => format!("{} and {more} more", known.join(", ")),
            },
        }
    }

    /// Whether a snapshot of this name exists.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn has(&self, name: &str) -> Result<bool, StoreError> {
        check_snapshot_name(name)?;
        Ok(self.backend.head(&self.manifest_path(name))?.is_some())
    }

    /// Makes sure that a new snapshot may have this name.
    ///
    /// # Errors
    /// [`StoreError::Name`], [`StoreError::Exists`].
    pub fn check_free(&self, name: &str) -> Result<(), StoreError> {
        if self.has(name)? {
            return Err(self.exists(name));
        }
        Ok(())
    }

    pub(crate) fn exists(&self, name: &str) -> StoreError {
        StoreError::Exists {
            store: self.backend.shown().into(),
            name: name.into(),
        }
    }

    /// Removes a snapshot. What only it used is removed by [`gc`](crate::gc()).
    ///
    /// # Errors
    /// [`StoreError::NoSnapshot`].
    pub fn remove(&self, name: &str) -> Result<(), StoreError> {
        if !self.has(name)? {
            return Err(self.no_snapshot(name));
        }
        self.backend.delete(&self.working_set_path(name))?;
        self.backend.delete(&self.manifest_path(name))
    }
}
