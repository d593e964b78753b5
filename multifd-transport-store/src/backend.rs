//! A store's objects, without waiting rooms: calls return when the storage has answered.

use crate::address::Place;
use crate::clock::Clock;
use crate::{StoreAddress, StoreError, StoreOptions};
use bytes::Bytes;
use futures_util::TryStreamExt;
use multifd_core::sync::lock;
use object_store::path::Path as ObjectPath;
use object_store::{
    Error as ObjectError, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions,
    PutPayload, PutResult, Result as ObjectResult,
};
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;
use tokio::runtime::Runtime;

/// How long a request waits before it is made again, at first and at last.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LAST_WAIT: Duration = Duration::from_secs(10);
/// For how long requests are made again, without another word.
const PATIENCE: Duration = Duration::from_secs(180);

/// Files kept open for reading.
const OPEN_FILES: usize = 128;

/// Where requests run. A system that cannot start a thread runs them on the calling one.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).thread_name("store").enable_all();
    builder.build().unwrap_or_else(|_| {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all();
        builder
            .build()
            .unwrap_or_else(|error| unreachable!("no runtime: {error}"))
    })
});

/// What is known of an object without reading it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Meta {
    /// Path in the store.
    pub(crate) path: String,
    pub(crate) len: u64,
    /// By the storage's clock, microseconds since 1970. It may be somewhat earlier than the moment
    /// from which on others see the object.
    pub(crate) modified: i64,
    /// The storage's mark of these contents, if it has one.
    pub(crate) tag: Option<String>,
}

/// A store's objects.
#[derive(Clone)]
pub(crate) struct Backend {
    objects: Arc<dyn ObjectStore>,
    prefix: ObjectPath,
    folder: Option<PathBuf>,
    patience: Duration,
    shown: Arc<str>,
    open: Arc<Mutex<HashMap<String, Arc<File>>>>,
    pub(crate) clock: Clock,
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Backend").field(&self.shown).finish()
    }
}

impl Backend {
    pub(crate) fn connect(
        address: &StoreAddress,
        create: bool,
        options: &StoreOptions,
    ) -> Result<Self, StoreError> {
        let Place {
            objects,
            prefix,
            folder,
        } = address.connect(create, options.retry_timeout)?;
        Ok(Self {
            folder,
            prefix,
            patience: options.retry_timeout.unwrap_or(PATIENCE),
            ..Self::over(objects, &address.to_string())
        })
    }

    pub(crate) fn over(objects: Arc<dyn ObjectStore>, shown: &str) -> Self {
        Self {
            objects,
            prefix: ObjectPath::default(),
            folder: None,
            patience: PATIENCE,
            shown: shown.into(),
            open: Arc::default(),
            clock: Clock::default(),
        }
    }

    pub(crate) fn shown(&self) -> &str {
        &self.shown
    }

    fn path(&self, path: &str) -> ObjectPath {
        path.split('/').fold(self.prefix.clone(), ObjectPath::join)
    }

    fn failed(&self, doing: &'static str, object: &str, cause: ObjectError) -> StoreError {
        let store = self.shown.to_string();
        match cause {
            ObjectError::NotFound { .. } => StoreError::Missing {
                store,
                object: object.into(),
            },
            cause => StoreError::Storage {
                store,
                doing,
                object: object.into(),
                cause: Box::new(cause),
            },
        }
    }

    /// Puts an object, in the place of an older one.
    pub(crate) fn put(&self, path: &str, bytes: Bytes) -> Result<(), StoreError> {
        RUNTIME.block_on(self.clone().put_later(path.into(), bytes))
    }

    async fn put_later(self, path: String, bytes: Bytes) -> Result<(), StoreError> {
        match self.put_as(&path, &bytes, PutMode::Overwrite).await {
            Ok(_) => Ok(()),
            Err(cause) => Err(self.failed("writing", &path, cause)),
        }
    }

    async fn put_as(&self, path: &str, bytes: &Bytes, mode: PutMode) -> ObjectResult<PutResult> {
        let options = PutOptions {
            mode,
            ..PutOptions::default()
        };
        let payload = PutPayload::from_bytes(bytes.clone());
        self.objects
            .put_opts(&self.path(path), payload, options)
            .await
    }

    /// Puts an object where there is none; `false` is one that was there already. `may` is asked
    /// before each attempt. No two calls may bring the same bytes: what is there and equal is taken
    /// for an attempt whose answer was lost.
    pub(crate) fn create(
        &self,
        path: &str,
        bytes: &Bytes,
        may: &dyn Fn() -> Result<(), StoreError>,
    ) -> Result<bool, StoreError> {
        RUNTIME.block_on(async {
            let failed = |cause| self.failed("writing", path, cause);
            let mut wait = FIRST_WAIT;
            let begun = self.clock.now();
            // Some servers ignore the condition without a word. There, no more than a moment is left
            // in which two writers are not told apart.
            if !self.is_local() && self.objects.head(&self.path(path)).await.is_ok() {
                return Ok(false);
            }
            loop {
                may()?;
                let Err(error) = self.put_as(path, bytes, PutMode::Create).await else {
                    return Ok(true);
                };
                if is_unsupported(&error) {
                    // Two writers of one name at the same moment are not told apart there.
                    return match self.objects.head(&self.path(path)).await {
                        Ok(_) => Ok(false),
                        Err(ObjectError::NotFound { .. }) => {
                            let put = self.put_as(path, bytes, PutMode::Overwrite).await;
                            put.map(|_| true).map_err(failed)
                        }
                        Err(error) => Err(failed(error)),
                    };
                }
                let is_there = matches!(
                    error,
                    ObjectError::AlreadyExists { .. } | ObjectError::Precondition { .. }
                );
                // After a connection that broke it may be there, or not.
                if !is_there && !is_transport(&error) {
                    return Err(failed(error));
                }
                match self.holds(path, bytes).await {
                    Ok(equal) => return Ok(equal),
                    // Nothing is there now: the next attempt may be the one.
                    Err(ObjectError::NotFound { .. }) => {}
                    Err(error) => return Err(failed(error)),
                }
                if self.clock.now().saturating_sub(begun) >= self.patience {
                    return Err(failed(error));
                }
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(LAST_WAIT);
            }
        })
    }

    /// Whether an object that is there holds these bytes.
    async fn holds(&self, path: &str, bytes: &Bytes) -> ObjectResult<bool> {
        let found = self.objects.get(&self.path(path)).await?;
        if found.meta.size != bytes.len() as u64 {
            return Ok(false);
        }
        Ok(found.bytes().await? == bytes)
    }

    /// Puts an object in the background; `done` gets the result.
    pub(crate) fn put_behind(
        &self,
        path: String,
        bytes: Bytes,
        done: impl FnOnce(Result<(), StoreError>) + Send + 'static,
    ) {
        let put = self.clone().put_later(path, bytes);
        RUNTIME.spawn(async move { done(put.await) });
    }

    /// All of an object, if it is not longer than `limit`.
    pub(crate) fn get(&self, path: &str, limit: u64) -> Result<Vec<u8>, StoreError> {
        let too_long = |len| StoreError::Damaged {
            object: path.into(),
            why: format!("it has {len} bytes; the limit is {limit}"),
        };
        RUNTIME.block_on(async {
            let failed = |cause| self.failed("reading", path, cause);
            let options = GetOptions::default();
            let found = self.objects.get_opts(&self.path(path), options).await;
            let found = found.map_err(failed)?;
            if found.meta.size > limit {
                return Err(too_long(found.meta.size));
            }
            let bytes = found.bytes().await.map_err(failed)?;
            if bytes.len() as u64 > limit {
                return Err(too_long(bytes.len() as u64));
            }
            Ok(bytes.into())
        })
    }

    /// A stretch of an object; less, if it ends before.
    pub(crate) fn get_range(&self, path: &str, range: Range<u64>) -> Result<Vec<u8>, StoreError> {
        let mut bytes = Vec::new();
        let len = self.read_range(path, range, &mut bytes)?;
        bytes.truncate(len);
        Ok(bytes)
    }

    /// Reads a stretch of an object to the beginning of `out`, which grows if it has to, and
    /// returns how many bytes: fewer, if the object ends before.
    pub(crate) fn read_range(
        &self,
        path: &str,
        range: Range<u64>,
        out: &mut Vec<u8>,
    ) -> Result<usize, StoreError> {
        let len = (range.end - range.start) as usize;
        if out.len() < len {
            out.resize(len, 0);
        }
        let out = &mut out[..len];
        if let Some(file) = self.local(path)? {
            return read_file(&file, range.start, out).map_err(|cause| StoreError::Path {
                path: path.into(),
                doing: "reading",
                cause,
            });
        }
        let options = GetOptions {
            range: Some(GetRange::Bounded(range)),
            ..GetOptions::default()
        };
        RUNTIME.block_on(async {
            let failed = |cause| self.failed("reading", path, cause);
            let found = self.objects.get_opts(&self.path(path), options).await;
            let bytes = found.map_err(failed)?.bytes().await.map_err(failed)?;
            // A server may ignore the range.
            let len = bytes.len().min(len);
            out[..len].copy_from_slice(&bytes[..len]);
            Ok(len)
        })
    }

    /// Whether chunks are read from files here, which the system keeps in its cache.
    pub(crate) fn is_local(&self) -> bool {
        self.folder.is_some()
    }

    /// An object that is a file here. Only packs: their names never get other contents.
    fn local(&self, path: &str) -> Result<Option<Arc<File>>, StoreError> {
        let Some(folder) = self.folder.as_ref().filter(|_| path.starts_with("packs/")) else {
            return Ok(None);
        };
        let mut open = lock(&self.open);
        if let Some(file) = open.get(path) {
            return Ok(Some(Arc::clone(file)));
        }
        let found = File::open(folder.join(path)).map_err(|cause| {
            if cause.kind() == std::io::ErrorKind::NotFound {
                return StoreError::Missing {
                    store: self.shown.to_string(),
                    object: path.into(),
                };
            }
            StoreError::Path {
                path: folder.join(path),
                doing: "opening",
                cause,
            }
        })?;
        if open.len() >= OPEN_FILES {
            open.clear();
        }
        let file = Arc::new(found);
        open.insert(path.into(), Arc::clone(&file));
        Ok(Some(file))
    }

    pub(crate) fn head(&self, path: &str) -> Result<Option<Meta>, StoreError> {
        RUNTIME.block_on(async {
            match self.objects.head(&self.path(path)).await {
                Ok(meta) => Ok(Some(Meta {
                    path: path.into(),
                    len: meta.size,
                    modified: meta.last_modified.timestamp_micros(),
                    tag: meta.e_tag,
                })),
                Err(ObjectError::NotFound { .. }) => Ok(None),
                Err(cause) => Err(self.failed("looking at", path, cause)),
            }
        })
    }

    /// All objects below a path, in the order of their names.
    pub(crate) fn list(&self, below: &str) -> Result<Vec<Meta>, StoreError> {
        let mut found = RUNTIME.block_on(async {
            let objects = self.objects.list(Some(&self.path(below)));
            let skip = self.prefix.parts().count();
            objects
                .map_ok(|meta| Meta {
                    path: meta
                        .location
                        .parts()
                        .skip(skip)
                        .map(|part| part.as_ref().to_owned())
                        .collect::<Vec<_>>()
                        .join("/"),
                    len: meta.size,
                    modified: meta.last_modified.timestamp_micros(),
                    tag: meta.e_tag,
                })
                .try_collect::<Vec<_>>()
                .await
                .or_else(|cause| match cause {
                    ObjectError::NotFound { .. } => Ok(Vec::new()),
                    cause => Err(self.failed("listing", below, cause)),
                })
        })?;
        found.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(found)
    }

    /// Removes what writers that died left of objects they were writing: only folders have such
    /// files, and they are no objects.
    pub(crate) fn sweep(&self, older: Duration) {
        if let Some(folder) = &self.folder {
            for below in ["packs", "snapshots", "working-sets", "leases", "condemned"] {
                sweep(&folder.join(below), older);
            }
        }
    }

    /// Removes an object; one that is not there is fine.
    pub(crate) fn delete(&self, path: &str) -> Result<(), StoreError> {
        lock(&self.open).remove(path);
        match RUNTIME.block_on(self.objects.delete(&self.path(path))) {
            Ok(()) | Err(ObjectError::NotFound { .. }) => Ok(()),
            Err(cause) => Err(self.failed("removing", path, cause)),
        }
    }
}

/// Whether the storage cannot put an object only where there is none.
fn is_unsupported(error: &ObjectError) -> bool {
    match error {
        ObjectError::NotImplemented { .. } | ObjectError::NotSupported { .. } => true,
        // A server's word for it, of which the library keeps nothing but the text.
        ObjectError::Generic { source, .. } => source.to_string().contains("501 Not Implemented"),
        _ => false,
    }
}

/// Whether the connection failed, so that nobody knows what the server did.
#[cfg(feature = "cloud")]
fn is_transport(error: &ObjectError) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<object_store::client::HttpError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(not(feature = "cloud"))]
fn is_transport(_: &ObjectError) -> bool {
    false
}

/// Fills `out` with a file's bytes from `offset` on, and returns how many there are.
fn read_file(file: &File, offset: u64, out: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < out.len() {
        match file.read_at(&mut out[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(len) => filled += len,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Removes files named `NAME#NUMBER`, as `object_store` calls what it is still writing, that have
/// not been written to for so long.
fn sweep(folder: &Path, older: Duration) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(data) = entry.metadata() else { continue };
        if data.is_dir() {
            sweep(&entry.path(), older);
            continue;
        }
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.rsplit_once('#'));
        let is_partial = number.is_some_and(|(_, number)| {
            !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
        });
        let age = data.modified().ok().and_then(|time| time.elapsed().ok());
        if data.is_file() && is_partial && age.is_some_and(|age| age > older) {
            // What cannot be removed is tried again next time.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dead_writer_left_goes_when_it_is_old() {
        let folder = tempfile::tempdir().unwrap();
        let packs = folder.path().join("packs/ab");
        std::fs::create_dir_all(&packs).unwrap();
        let hour = Duration::from_secs(3600);
        for (name, age) in [("ab#1", 2), ("ab#2", 0), ("ab", 2), ("ab#x", 2), ("ab#", 2)] {
            let file = File::create(packs.join(name)).unwrap();
            let then = std::time::SystemTime::now() - hour * age;
            file.set_modified(then).unwrap();
        }
        let address = folder.path().to_str().unwrap().parse().unwrap();
        let backend = Backend::connect(&address, false, &StoreOptions::default()).unwrap();
        backend.sweep(hour);
        let names = std::fs::read_dir(&packs).unwrap();
        let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["ab", "ab#", "ab#2", "ab#x"]);
    }
}
