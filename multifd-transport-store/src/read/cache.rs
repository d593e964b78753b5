//! Decoded chunks, for all readers of a store together.

use crate::StoreError;
use crate::name::ChunkName;
use bytes::Bytes;
use multifd_core::sync::{lock, wait};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex};

enum Slot {
    /// Somebody reads it.
    Loading,
    Ready {
        contents: Bytes,
        /// Asked for since it was last looked at for removal.
        used: bool,
    },
}

#[derive(Default)]
struct State {
    slots: HashMap<ChunkName, Slot>,
    /// Chunks that are ready, oldest first.
    order: VecDeque<ChunkName>,
    bytes: usize,
}

/// A bounded cache of decoded chunks. A chunk that several ask for is read once.
pub struct ChunkCache {
    limit: usize,
    state: Mutex<State>,
    loaded: Condvar,
}

impl std::fmt::Debug for ChunkCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChunkCache")
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

impl ChunkCache {
    /// A cache that holds `limit` bytes of chunks. Those that are being read come on top.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            state: Mutex::default(),
            loaded: Condvar::new(),
        })
    }

    /// Whether the chunk is here, or being read.
    pub(crate) fn has(&self, name: &ChunkName) -> bool {
        lock(&self.state).slots.contains_key(name)
    }

    /// The chunk, read by `load` if it is not here.
    pub(crate) fn get(
        &self,
        name: ChunkName,
        load: impl FnOnce() -> Result<Bytes, StoreError>,
    ) -> Result<Bytes, StoreError> {
        let mut state = lock(&self.state);
        loop {
            match state.slots.get_mut(&name) {
                Some(Slot::Ready { contents, used }) => {
                    *used = true;
                    return Ok(contents.clone());
                }
                Some(Slot::Loading) => {
                    state = wait(&self.loaded, state);
                }
                None => break,
            }
        }
        state.slots.insert(name, Slot::Loading);
        drop(state);
        // Whatever happens, nobody may wait for ever.
        let guard = Loading { cache: self, name };
        let contents = load()?;
        guard.ready(&contents);
        Ok(contents)
    }

    fn trim(&self, state: &mut State) {
        while state.bytes > self.limit
            && let Some(name) = state.order.pop_front()
        {
            match state.slots.get_mut(&name) {
                Some(Slot::Ready { used, .. }) if *used => {
                    *used = false;
                    state.order.push_back(name);
                }
                Some(Slot::Ready { contents, .. }) => {
                    state.bytes -= contents.len();
                    state.slots.remove(&name);
                }
                _ => {}
            }
        }
    }
}

/// A chunk that is being read.
struct Loading<'c> {
    cache: &'c ChunkCache,
    name: ChunkName,
}

impl Loading<'_> {
    fn ready(self, contents: &Bytes) {
        let mut state = lock(&self.cache.state);
        state.bytes += contents.len();
        state.order.push_back(self.name);
        let slot = Slot::Ready {
            contents: contents.clone(),
            used: false,
        };
        state.slots.insert(self.name, slot);
        self.cache.trim(&mut state);
    }
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.cache.state);
        if let Some(Slot::Loading) = state.slots.get(&self.name) {
            state.slots.remove(&self.name);
        }
        drop(state);
        self.cache.loaded.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn name(n: u8) -> ChunkName {
        ChunkName([n; 32])
    }

    #[test]
    fn it_holds_no_more_than_its_limit_and_keeps_what_is_used() {
        let cache = ChunkCache::new(3000);
        let loads = AtomicUsize::new(0);
        let get = |n| {
            let load = || {
                loads.fetch_add(1, Ordering::Relaxed);
                Ok(vec![n; 1000].into())
            };
            assert_eq!(cache.get(name(n), load).unwrap()[..], vec![n; 1000][..]);
        };
        for n in [1, 2, 3, 1, 4, 1] {
            get(n);
        }
        // 1 was used and stayed; 2 had to go.
        assert_eq!(loads.load(Ordering::Relaxed), 4);
        get(2);
        assert_eq!(loads.load(Ordering::Relaxed), 5);
        assert!(cache.state.lock().unwrap().bytes <= 3000);
    }

    #[test]
    fn many_that_want_one_chunk_read_it_once_and_failures_are_not_kept() {
        let cache = ChunkCache::new(1000);
        let missing = || StoreError::NoStore { store: "s".into() };
        assert!(cache.get(name(1), || Err(missing())).is_err());
        let loads = AtomicUsize::new(0);
        let barrier = std::sync::Barrier::new(8);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    barrier.wait();
                    let load = || {
                        loads.fetch_add(1, Ordering::Relaxed);
                        Ok(vec![1; 10].into())
                    };
                    cache.get(name(1), load).unwrap();
                });
            }
        });
        assert_eq!(loads.load(Ordering::Relaxed), 1);
    }
}
