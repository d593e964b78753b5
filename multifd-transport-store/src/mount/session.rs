//! A mount, from its start to its end.

use super::MountOptions;
use super::filesystem::{Files, OnOpen, Use};
use super::tree::Tree;
use super::working_sets::{self, WorkingSet};
use crate::lease::{LAST_WORDS, in_time};
use crate::{ChunkCache, Protection, Snapshot, Store, StoreError};
use fuser::{BackgroundSession, Config, MountOption, Notifier, Session, SessionACL};
use multifd_core::sync::lock;
use rustix::fs::{AtFlags, CWD, Statx, StatxAttributes, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often it is looked whether a working set is to be saved.
const LOOK: Duration = Duration::from_secs(5);

/// Threads that serve reads of a folder at least: more than processors, as disks have to be waited
/// for.
const LOCAL_THREADS: usize = 4;
/// Threads that serve reads of other stores, whose answers take long.
const REMOTE_THREADS: usize = 32;

/// A thread that saves working sets, and what ends it.
type Keeper = (JoinHandle<()>, Arc<(Mutex<bool>, Condvar)>);

/// Looks at a folder without a request to its server, which may be waiting for the storage.
fn look(folder: &Path) -> Result<Statx, Errno> {
    statx(CWD, folder, AtFlags::STATX_DONT_SYNC, StatxFlags::empty())
}

fn device_of(found: &Statx) -> (u32, u32) {
    (found.stx_dev_major, found.stx_dev_minor)
}

/// A store that is mounted. Dropping it unmounts it.
pub struct Mount {
    folder: PathBuf,
    session: Option<BackgroundSession>,
    /// What the folder's device is while this is mounted there.
    device: (u32, u32),
    tree: Arc<Tree>,
    used: Arc<Use>,
    stop: Arc<AtomicBool>,
    keeper: Option<Keeper>,
}

impl std::fmt::Debug for Mount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mount")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

impl Mount {
    /// Mounts a store at an existing folder. What it serves is protected from `gc` meanwhile, if
    /// the store can be written to.
    ///
    /// # Errors
    /// [`StoreError::Path`] if the system refuses; [`StoreError::NoSnapshot`] for a snapshot that
    /// [`MountOptions::only`] names and that is not there.
    pub fn start(store: &Store, folder: &Path, options: &MountOptions) -> Result<Self, StoreError> {
        let protection = Protection::start(store, Arc::clone(&options.log))
            .inspect_err(|error| (options.log)(&format!("not protected from gc: {error}")))
            .ok();
        let new_working_set = {
            let (record, replay) = (options.record, options.replay);
            let log = Arc::clone(&options.log);
            move |snapshot: &Snapshot| WorkingSet::new(snapshot, record, replay, &log)
        };
        let tree = Arc::new(Tree::new(
            store.clone(),
            protection,
            options.only.clone(),
            ChunkCache::new(options.cache),
            Box::new(new_working_set),
            Arc::clone(&options.log),
        ));
        for name in options.only.iter().flatten() {
            // One that is not there is an error that names those that are.
            store.head(name)?;
        }
        let used = Arc::new(Use::new());
        let stop = Arc::new(AtomicBool::new(false));
        let notifier: Arc<OnceLock<Notifier>> = Arc::default();
        let on_open: OnOpen = {
            let (notifier, stop) = (Arc::clone(&notifier), Arc::clone(&stop));
            Box::new(move |opened, path, number| {
                working_sets::start(opened, (path, number), &notifier, &stop);
            })
        };
        let files = Files::new(Arc::clone(&tree), Arc::clone(&used), options, on_open);
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::RO,
            MountOption::NoSuid,
            MountOption::NoDev,
            MountOption::NoAtime,
            MountOption::FSName(store.address().replace(',', "_")),
            MountOption::Subtype("multifd".into()),
            MountOption::DefaultPermissions,
        ];
        if options.allow_other {
            config.acl = SessionACL::All;
        }
        let threads = options.threads.unwrap_or_else(|| {
            let processors = std::thread::available_parallelism().map_or(4, NonZero::get);
            if store.backend.is_local() {
                processors.max(LOCAL_THREADS)
            } else {
                REMOTE_THREADS
            }
        });
        config.n_threads = Some(threads.max(1));
        let failed = |cause| StoreError::Path {
            path: folder.into(),
            doing: "mounting (FUSE)",
            cause,
        };
        let session = Session::new(files, folder, &config).map_err(failed)?;
        let session = session.spawn().map_err(failed)?;
        let device = look(folder).map_err(|error| failed(error.into()))?;
        let _ = notifier.set(session.notifier());
        let mut mount = Self {
            folder: folder.into(),
            session: Some(session),
            device: device_of(&device),
            tree,
            used,
            stop,
            keeper: None,
        };
        mount.keeper = mount.keep_working_sets();
        Ok(mount)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// For how long no file has been open; `None` if one is. A file that is mapped counts as open.
    pub fn idle(&self) -> Option<Duration> {
        self.used.idle()
    }

    /// Whether it is still there: false if somebody else has unmounted it.
    pub fn is_served(&self) -> bool {
        let session = self.session.as_ref();
        session.is_some_and(|session| !session.guard.is_finished())
    }

    /// Saves working sets when it is time.
    fn keep_working_sets(&self) -> Option<Keeper> {
        let ended = Arc::new((Mutex::new(false), Condvar::new()));
        let shared = Arc::clone(&ended);
        let tree = Arc::clone(&self.tree);
        let keep = move || {
            loop {
                let (ended, changed) = &*shared;
                let state = lock(ended);
                let waited = changed.wait_timeout_while(state, LOOK, |ended| !*ended);
                let at_end = *waited.unwrap_or_else(PoisonError::into_inner).0;
                tree.save_working_sets(at_end);
                if at_end {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("store keeper".into())
            .spawn(keep)
            .ok()?;
        Some((thread, ended))
    }

    /// Unmounts it. Files that are still open, or mapped, fail from then on with an I/O error where
    /// they are not in the kernel's cache.
    pub fn unmount(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let Some(session) = self.session.take() else {
            return;
        };
        self.stop.store(true, Ordering::Relaxed);
        // Also when somebody reads: the name goes now, the rest with the last reader. Another file
        // system that was mounted over it, or in its place, stays.
        let is_ours = match look(&self.folder) {
            Ok(found) => device_of(&found) == self.device,
            // What does not answer any more.
            Err(error) => error == Errno::NOTCONN,
        };
        let detached = is_ours && unmount(&self.folder, UnmountFlags::DETACH).is_ok();
        if let Some((thread, ended)) = self.keeper.take() {
            *lock(&ended.0) = true;
            ended.1.notify_all();
            // The working set is worth a moment, but storage may not answer.
            let _ = in_time(move || thread.join());
        }
        if self.used.idle().is_some() {
            let begun = Instant::now();
            while !session.guard.is_finished() && begun.elapsed() < LAST_WORDS {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        // The session's own end unmounts by the path, which is another one's if something is mounted
        // there now. Who may not unmount needs it: it asks `fusermount`.
        let is_free = || match look(&self.folder) {
            Ok(found) => !found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
            Err(_) => false,
        };
        if (is_ours && !detached) || (session.guard.is_finished() && is_free()) {
            drop(session);
        } else {
            // Its threads end with the last reader, and the connection with them.
            std::mem::forget(session);
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.end();
    }
}
