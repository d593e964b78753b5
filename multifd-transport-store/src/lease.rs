//! Leases: what protects the chunks that a writer or reader relies on, from `gc` on any machine.

use crate::backend::{Backend, Meta};
use crate::name::to_hex;
use crate::seal::random;
use crate::{Log, Store, StoreError};
use bytes::Bytes;
use multifd_core::sync::lock;
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
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
    Reader,
    Gc,
}

impl Holder {
    fn letter(self) -> &'static str {
        match self {
            Self::Writer => "w",
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
    /// What lies beside it, by name.
    beside: BTreeMap<String, Bytes>,
}

struct Shared {
    backend: Backend,
    folder: String,
    state: Mutex<State>,
    ended: Condvar,
    /// Told when the lease may have ended, and has been taken again.
    log: Option<Log>,
}

/// A lease that is held, and renewed until it is dropped.
pub(crate) struct Lease {
    /// When it began, by the storage's clock, microseconds since 1970.
    pub(crate) began: i64,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease")
            .field("folder", &self.shared.folder)
            .finish_non_exhaustive()
    }
}

impl Lease {
    /// Takes a lease. One with a `log` is for readers: if it may have ended, as when the storage
    /// could not be reached for long, it is taken again, and that is told.
    pub(crate) fn take(
        backend: &Backend,
        holder: Holder,
        log: Option<Log>,
    ) -> Result<Self, StoreError> {
        let id = to_hex(&random::<8>()?);
        let folder = format!("leases/{}{id}", holder.letter());
        let start = format!("{folder}/start");
        let begun = backend.clock.now();
        backend.put(&start, Bytes::new())?;
        let meta = backend.head(&start)?.ok_or_else(|| StoreError::Missing {
            store: backend.shown().into(),
            object: start,
        })?;
        let shared = Arc::new(Shared {
            backend: backend.clone(),
            folder,
            state: Mutex::new(State {
                renewed: begun,
                ended: false,
                beside: BTreeMap::new(),
            }),
            ended: Condvar::new(),
            log,
        });
        let renewed = Arc::clone(&shared);
        let lease = Self {
            began: meta.modified,
            shared,
        };
        // It ends by itself, at the latest when a request that it makes has failed.
        std::thread::Builder::new()
            .name("store lease".into())
            .spawn(move || renewed.renew())
            .map_err(|cause| StoreError::Path {
                path: "a thread".into(),
                doing: "starting",
                cause,
            })?;
        Ok(lease)
    }

    /// Puts an object beside the lease, which lives as long.
    pub(crate) fn put_beside(&self, name: &str, bytes: Bytes) -> Result<(), StoreError> {
        let shared = &self.shared;
        lock(&shared.state)
            .beside
            .insert(name.into(), bytes.clone());
        shared.backend.put(&shared.path(name), bytes)
    }

    /// Removes what was put beside it. What cannot be removed goes with the lease.
    pub(crate) fn remove_beside(&self, name: &str) {
        lock(&self.shared.state).beside.remove(name);
        let (shared, name) = (Arc::clone(&self.shared), name.to_owned());
        let _ = in_time(move || shared.delete(&name));
    }

    /// Fails if the lease may have ended.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        let age = self.shared.age();
        if age <= TRUSTED {
            return Ok(());
        }
        Err(StoreError::LeaseLost {
            store: self.shared.backend.shown().into(),
            seconds: age.as_secs(),
        })
    }

    /// Its name, among those of [`live`].
    pub(crate) fn name(&self) -> &str {
        self.shared.folder.trim_start_matches("leases/")
    }
}

impl Shared {
    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.folder)
    }

    /// Removes one of its objects. What cannot be removed ends by itself.
    fn delete(&self, name: &str) {
        let _ = self.backend.delete(&self.path(name));
    }

    /// How long ago it was renewed.
    fn age(&self) -> Duration {
        let state = lock(&self.state);
        self.backend.clock.now().saturating_sub(state.renewed)
    }

    /// Renews the lease until it ends. One that may have ended already is given up, or taken again
    /// if it is a reader's.
    fn renew(&self) {
        loop {
            let state = lock(&self.state);
            let waited = self
                .ended
                .wait_timeout_while(state, LOOK, |state| !state.ended);
            let state = waited.unwrap_or_else(PoisonError::into_inner).0;
            if state.ended {
                return;
            }
            drop(state);
            let age = self.age();
            if age > TRUSTED && self.log.is_none() {
                return;
            }
            if age < RENEWAL {
                continue;
            }
            if self.renew_once(age) {
                return;
            }
        }
    }

    /// Renews it now, `age` after the last time; says whether it has ended meanwhile.
    fn renew_once(&self, age: Duration) -> bool {
        let begun = self.backend.clock.now();
        let mut done = self.backend.put(&self.path("alive"), Bytes::new());
        let mut put = Vec::new();
        if age > TRUSTED {
            // What lay beside it may be gone.
            let beside = lock(&self.state).beside.clone();
            for (name, bytes) in beside {
                done = done.and_then(|()| self.backend.put(&self.path(&name), bytes));
                put.push(name);
            }
        }
        // What was removed meanwhile must not be there again.
        let mut state = lock(&self.state);
        let ended = state.ended;
        put.retain(|name| ended || !state.beside.contains_key(name));
        if done.is_ok() {
            state.renewed = begun;
        }
        drop(state);
        if ended {
            put.push("alive".into());
        }
        for name in put {
            self.delete(&name);
        }
        if let Some(log) = self.log.as_ref()
            && !ended
            && done.is_ok()
            && age > TRUSTED
        {
            log(&format!(
                "{}: no contact for {} s: snapshots that were removed meanwhile may have lost \
                 chunks to a gc",
                self.backend.shown(),
                age.as_secs()
            ));
        }
        ended
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        state.ended = true;
        let beside: Vec<String> = std::mem::take(&mut state.beside).into_keys().collect();
        drop(state);
        self.shared.ended.notify_all();
        let shared = Arc::clone(&self.shared);
        // What cannot be removed ends by itself: nobody waits long for it.
        let _ = in_time(move || {
            let names = beside.iter().map(String::as_str);
            // The start goes last: a lease of which only a part is there still protects.
            for name in names.chain(["alive", "start"]) {
                shared.delete(name);
            }
        });
    }
}

/// How long the last requests of something that ends are waited for.
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(5);

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

    pub(crate) fn is_writer(&self) -> bool {
        self.name.starts_with('w')
    }
}

/// Leases by what they are worth.
pub(crate) struct Leases {
    /// Those that have not ended.
    pub(crate) live: Vec<Seen>,
    /// Paths of what lies beside those, but for the leases themselves.
    pub(crate) beside: Vec<String>,
    /// Paths of all objects of those that have ended.
    pub(crate) ended: Vec<String>,
}

/// All leases. `now` is the storage's time.
pub(crate) fn live(store: &Store, now: i64) -> Result<Leases, StoreError> {
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
    let is_live = |path: &String| {
        let name = path.split('/').nth(1);
        name.is_some_and(|name| leases.contains_key(name))
    };
    let paths = all.into_iter().map(|meta| meta.path);
    let (mut beside, ended): (Vec<_>, Vec<_>) = paths.partition(is_live);
    beside.retain(|path| !path.ends_with("/start") && !path.ends_with("/alive"));
    Ok(Leases {
        live: leases.into_values().collect(),
        beside,
        ended,
    })
}
