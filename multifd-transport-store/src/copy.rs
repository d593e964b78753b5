//! Copies between stores: only what the other one lacks is read.

use crate::name::ChunkName;
use crate::{ChunkSource, Snapshot, StoreError, Writer};

/// An object of a snapshot as a source.
struct Copied<'s> {
    snapshot: &'s Snapshot,
    object: usize,
    /// Chunks have the same names in both stores.
    same_names: bool,
}

impl Copied<'_> {
    fn entry(&self, offset: u64) -> Option<usize> {
        let manifest = self.snapshot.manifest();
        manifest.entry(self.object, offset / u64::from(manifest.head.chunk_size))
    }
}

impl ChunkSource for Copied<'_> {
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<bool, StoreError> {
        if self.same_names && self.entry(offset).is_none() {
            return Ok(false);
        }
        self.snapshot.read_at(self.object, offset, out)?;
        Ok(true)
    }

    fn name(&self, offset: u64) -> Option<ChunkName> {
        let entry = self.same_names.then(|| self.entry(offset)).flatten()?;
        Some(self.snapshot.manifest().chunks()[entry].name)
    }
}

impl Writer {
    /// Copies a whole snapshot of another store: objects, files, and what is known of it. Chunks
    /// that this store has are not read, if both stores name chunks alike: both without a key, and
    /// with chunks of one size.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn copy(&mut self, snapshot: &Snapshot) -> Result<(), StoreError> {
        let head = &snapshot.manifest().head;
        let from = snapshot.store();
        let to = self.store();
        let same_names = from.names_alike(to) && head.chunk_size == to.chunk_size();
        let mut numbers = Vec::new();
        for (object, one) in head.objects.iter().enumerate() {
            let source = Copied {
                snapshot,
                object,
                same_names,
            };
            numbers.push(self.object(one.clone(), &source)?);
        }
        for mut file in head.files.clone() {
            for part in &mut file.parts {
                part.object = numbers[part.object];
            }
            self.file(file);
        }
        for (key, value) in &head.about {
            self.about(key, value.clone());
        }
        self.created(head.created);
        Ok(())
    }
}
