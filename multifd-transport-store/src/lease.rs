//! Leases: what protects the chunks that a writer or reader relies on, from `gc` on any machine.

use crate::backend::{Backend, Meta};
use crate::name::to_hex;
use crate::seal::random;
use crate::{Store, StoreError};
use multifd_core::sync::lock;
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a lease lives without being renewed.
pub(crate) const LIFE: Duration = Duration::from_secs(30 * 60);
/// How often a lease is renewed.
const RENEWAL: Duration = Duration::from_secs(5 * 60);
/// How often it is looked whether a lease is to be renewed.
const LOOK: Duration = Duration::from_secs(30);
/// How long after the last renewal its owner still relies on it: the rest is for requests that are
/// under way.
const TRUSTED: Duration = Duration::from_secs(15 * 60);

/// Who holds a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holder {
    Writer,
    #[cfg(feature = "mount")]
    Reader,
    Gc,
}

impl Holder {
    fn letter(self) -> &'static str {
        match self {
            Self::Writer => "w",
            #[cfg(feature = "mount")]
            Self::Reader => "r",
            Self::Gc => "g",
        }
    }
}

struct State {
    /// When it was last renewed, by the backend's clock.
    renewed: Duration,
    /// Its owner is done with it.
    ended: bool,
}

struct Shared {
    state: Mutex<State>,
    ended: Condvar,
}

/// A lease that is held, and renewed until it is dropped.
pub(crate) struct Lease {
    backend: Backend,
    folder: String,
    /// When it began, by the storage's clock, microseconds since 1970.
    pub(crate) began: i64,
    shared: Arc<Shared>,
    renewing: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

impl Lease {
    pub(crate) fn take(backend: &Backend, holder: Holder) -> Result<Self, StoreError> {
        let id = to_hex(&random::<8>()?);
        let folder = format!("leases/{}{id}", holder.letter());
        let start = format!("{folder}/start");
        let begun = backend.clock.now();
        backend.put(&start, bytes::Bytes::new(), false)?;
        let meta = backend.head(&start)?.ok_or_else(|| StoreError::Missing {
            store: backend.shown().into(),
            object: start,
        })?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                renewed: begun,
                ended: false,
            }),
            ended: Condvar::new(),
        });
        let renewing = {
            let (backend, shared) = (backend.clone(), Arc::clone(&shared));
            let path = format!("{folder}/alive");
            std::thread::Builder::new()
                .name("store lease".into())
                .spawn(move || renew(&backend, &path, &shared))
                .ok()
        };
        Ok(Self {
            backend: backend.clone(),
            folder,
            began: meta.modified,
            shared,
            renewing,
        })
    }

    /// Fails if the lease may have ended.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        let age = self.shared.age(&self.backend);
        if age <= TRUSTED {
            return Ok(());
        }
        Err(StoreError::LeaseLost {
            store: self.backend.shown().into(),
            seconds: age.as_secs(),
        })
    }

    /// Its name, among those of [`live`].
    pub(crate) fn name(&self) -> &str {
        self.folder.trim_start_matches("leases/")
    }
}

impl Shared {
    /// How long ago it was renewed.
    fn age(&self, backend: &Backend) -> Duration {
        let state = lock(&self.state);
        backend.clock.now().saturating_sub(state.renewed)
    }
}

/// Renews the lease until it ends, or is so old that it may have ended already.
fn renew(backend: &Backend, path: &str, shared: &Shared) {
    loop {
        let state = lock(&shared.state);
        let waited = shared
            .ended
            .wait_timeout_while(state, LOOK, |state| !state.ended);
        let state = waited.unwrap_or_else(PoisonError::into_inner).0;
        if state.ended {
            return;
        }
        drop(state);
        match shared.age(backend) {
            age if age < RENEWAL => {}
            age if age > TRUSTED => return,
            _ => {
                let begun = backend.clock.now();
                if backend.put(path, bytes::Bytes::new(), false).is_ok() {
                    lock(&shared.state).renewed = begun;
                }
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        lock(&self.shared.state).ended = true;
        self.shared.ended.notify_all();
        // Its thread ends by itself, at the latest when a request that it makes has failed.
        drop(self.renewing.take());
        let (backend, folder) = (self.backend.clone(), self.folder.clone());
        // What cannot be removed ends by itself: nobody waits long for it.
        let _ = in_time(move || {
            let _ = backend.delete(&format!("{folder}/start"));
            let _ = backend.delete(&format!("{folder}/alive"));
        });
    }
}

/// How long the last requests of something that ends are waited for.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Does something that may take long, as storage that does not answer does, and waits for it a
/// little while. `None`: it goes on in the background.
pub(crate) fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, result) = std::sync::mpsc::channel();
    std::thread::Builder::new()
        .name("store end".into())
        .spawn(move || {
            let _ = done.send(work());
        })
        .ok()?;
    result.recv_timeout(LAST_WORDS).ok()
}

/// A lease as others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) name: String,
    /// By the storage's clock, microseconds since 1970.
    pub(crate) began: i64,
    alive: i64,
}

impl Seen {
    pub(crate) fn is_gc(&self) -> bool {
        self.name.starts_with('g')
    }
}

/// All leases that have not ended, and the paths of those that have. `now` is the storage's time.
pub(crate) fn live(store: &Store, now: i64) -> Result<(Vec<Seen>, Vec<String>), StoreError> {
    let mut leases = BTreeMap::<String, Seen>::new();
    let all = store.backend.list("leases")?;
    for Meta { path, modified, .. } in &all {
        let Some(name) = path.split('/').nth(1) else {
            continue;
        };
        let lease = leases.entry(name.into()).or_insert_with(|| Seen {
            name: name.into(),
            began: *modified,
            alive: *modified,
        });
        lease.began = lease.began.min(*modified);
        lease.alive = lease.alive.max(*modified);
    }
    let life = LIFE.as_micros() as i64;
    leases.retain(|_, lease| now.saturating_sub(lease.alive) <= life);
    let ended = all.into_iter().map(|meta| meta.path).filter(|path| {
        path.split('/')
            .nth(1)
            .is_none_or(|name| !leases.contains_key(name))
    });
    let ended = ended.collect();
    Ok((leases.into_values().collect(), ended))
}
