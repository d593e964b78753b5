//! The working set: the chunks that a guest reads first, in order.

use super::Snapshot;
use crate::StoreError;
use crate::format::working_set;
use multifd_core::sync::lock;
use std::sync::Mutex;

/// Notes which chunks are read first, in order. Each is noted once.
#[derive(Debug)]
pub struct Recorder(Mutex<State>);

#[derive(Debug)]
struct State {
    seen: Vec<bool>,
    order: Vec<u32>,
}

impl Recorder {
    /// A recorder for a snapshot's chunks.
    pub fn new(snapshot: &Snapshot) -> Self {
        Self(Mutex::new(State {
            seen: vec![false; snapshot.manifest().chunks().len()],
            order: Vec::new(),
        }))
    }

    /// Notes a chunk, by its number in the manifest's list.
    pub fn note(&self, chunk: usize) {
        let mut state = lock(&self.0);
        if let Some(seen) = state.seen.get_mut(chunk)
            && !std::mem::replace(seen, true)
            && state.order.len() < working_set::MAX
        {
            state.order.push(chunk as u32);
        }
    }

    /// What has been noted so far.
    pub fn order(&self) -> Vec<u32> {
        lock(&self.0).order.clone()
    }
}

impl Snapshot {
    /// The working set that was saved for this snapshot: numbers of chunks in the manifest's list.
    /// `None` if there is none, or one of another snapshot that had the same name. Numbers that the
    /// manifest does not have are left out.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn working_set(&self) -> Result<Option<Vec<usize>>, StoreError> {
        let path = self.store().working_set_path(&self.manifest().head.name);
        let limit = working_set::MAX as u64 * 4 + 256;
        let mut bytes = match self.store().backend.get(&path, limit) {
            Err(StoreError::Missing { .. }) => return Ok(None),
            other => other?,
        };
        let (id, numbers) = working_set::read(&path, &mut bytes, self.store().keys.as_deref())?;
        if id != self.manifest().head.id {
            return Ok(None);
        }
        let known = self.manifest().chunks().len();
        let numbers = numbers.into_iter().map(|number| number as usize);
        Ok(Some(numbers.filter(|&number| number < known).collect()))
    }

    /// Saves a working set beside the manifest, in the place of an older one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn save_working_set(&self, order: &[u32]) -> Result<(), StoreError> {
        let path = self.store().working_set_path(&self.manifest().head.name);
        let id = &self.manifest().head.id;
        let bytes = working_set::write(&path, id, order, self.store().keys.as_deref())?;
        self.store().backend.put(&path, bytes.into())
    }
}
