//! A mount, from its start to its end.

use super::filesystem::{Files, Use};
use super::tree::{Node, Tree};
use super::working_sets::{self, WorkingSet};
use super::{Log, MountOptions};
use crate::lease::{Holder, Lease, in_time};
use crate::{ChunkCache, Snapshot, Store, StoreError};
use fuser::{BackgroundSession, Config, MountOption, Notifier, Session, SessionACL};
use multifd_core::sync::lock;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often it is looked whether a working set is to be saved.
const LOOK: Duration = Duration::from_secs(5);

/// A thread that saves working sets, and what ends it.
type Keeper = (JoinHandle<()>, Arc<(Mutex<bool>, Condvar)>);

/// A store that is mounted. Dropping it unmounts it.
pub struct Mount {
    folder: PathBuf,
    session: Option<BackgroundSession>,
    tree: Arc<Tree>,
    used: Arc<Use>,
    stop: Arc<AtomicBool>,
    keeper: Option<Keeper>,
    log: Log,
    _lease: Option<Lease>,
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
    pub fn start(store: &Store, folder: &Path, options: MountOptions) -> Result<Self, StoreError> {
        let lease = Lease::take(&store.backend, Holder::Reader)
            .inspect_err(|error| (options.log)(&format!("not protected from gc: {error}")))
            .ok();
        let cache = ChunkCache::new(options.cache);
        let new_working_set = {
            let (record, replay) = (options.record, options.replay);
            let log = Arc::clone(&options.log);
            move |snapshot: &Snapshot| {
                WorkingSet::new(snapshot, record, replay).unwrap_or_else(|error| {
                    log(&format!("its working set is not used: {error}"));
                    WorkingSet::none()
                })
            }
        };
        let tree = Arc::new(Tree::new(
            store.clone(),
            options.only.clone(),
            cache,
            Box::new(new_working_set),
        ));
        for name in options.only.iter().flatten() {
            // It is read once, here. One that is not there is an error that names those that are.
            if tree.snapshot(name)?.is_none() {
                store.manifest(name)?;
            }
        }
        let used = Arc::new(Use::new());
        let stop = Arc::new(AtomicBool::new(false));
        let notifier: Arc<OnceLock<Notifier>> = Arc::default();
        let on_open = {
            let (tree, notifier, stop) =
                (Arc::clone(&tree), Arc::clone(&notifier), Arc::clone(&stop));
            move |node: &Node| working_sets::start(&tree, node, &notifier, &stop)
        };
        let files = Files::new(
            Arc::clone(&tree),
            Arc::clone(&used),
            &options,
            Box::new(on_open),
        );
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
        config.n_threads = Some(options.threads.max(1));
        let failed = |cause| StoreError::Path {
            path: folder.into(),
            doing: "mounting (FUSE)",
            cause,
        };
        let session = Session::new(files, folder, &config).map_err(failed)?;
        let session = session.spawn().map_err(failed)?;
        let _ = notifier.set(session.notifier());
        let mut mount = Self {
            folder: folder.into(),
            session: Some(session),
            tree,
            used,
            stop,
            keeper: None,
            log: options.log,
            _lease: lease,
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

    /// Saves working sets when it is time.
    fn keep_working_sets(&self) -> Option<Keeper> {
        let ended = Arc::new((Mutex::new(false), Condvar::new()));
        let shared = Arc::clone(&ended);
        let (tree, log) = (Arc::clone(&self.tree), Arc::clone(&self.log));
        let keep = move || {
            loop {
                let (ended, changed) = &*shared;
                let state = lock(ended);
                let waited = changed.wait_timeout_while(state, LOOK, |ended| !*ended);
                let at_end = *waited.unwrap_or_else(PoisonError::into_inner).0;
                for opened in tree.opened() {
                    let saved = opened.working_set.save(opened.files.snapshot(), at_end);
                    if let Err(error) = saved {
                        log(&format!("a working set was not saved: {error}"));
                    }
                }
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
        // Also when somebody reads: the name goes now, the rest with the last reader.
        let detached = rustix::mount::unmount(&self.folder, rustix::mount::UnmountFlags::DETACH);
        if let Some((thread, ended)) = self.keeper.take() {
            *lock(&ended.0) = true;
            ended.1.notify_all();
            // The working set is worth a moment, but storage may not answer.
            let _ = in_time(move || thread.join());
        }
        if detached.is_ok() && self.used.idle().is_some() {
            let _ = session.umount_and_join();
        } else {
            // Its threads end with the process, and the connection with them.
            drop(session);
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.end();
    }
}
