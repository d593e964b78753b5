//! Packs with little use are rewritten: their used chunks are copied into new packs.

use super::Gc;
use crate::StoreError;
use crate::write::Packs;
use multifd_core::CancelHandle;

impl Gc<'_> {
    /// Copies the used chunks of sparse packs into new ones; then the old ones have no use.
    pub(super) fn repack(&mut self, cancel: &CancelHandle) -> Result<(), StoreError> {
        if self.sparse.is_empty() {
            return Ok(());
        }
        let new = Packs::of_store(self.store)?;
        for &number in &self.sparse {
            if let Some(cancelled) = cancel.error() {
                return Err(StoreError::Cancelled(cancelled));
            }
            self.lease.check()?;
            let (pack, chunks) = &self.packs[number];
            let bytes = self.store.backend.get(&pack.name.path(), pack.len)?;
            for chunk in chunks {
                if self.canonical.get(&chunk.name) != Some(&number) {
                    continue;
                }
                let range = chunk.offset as usize..(chunk.offset + chunk.len) as usize;
                let stored = bytes.get(range).ok_or_else(|| StoreError::Damaged {
                    object: pack.name.path(),
                    why: "it is shorter than it was".into(),
                })?;
                new.append(chunk.name, stored, chunk.zstd)?;
                self.report.copied_bytes += u64::from(chunk.len);
            }
            self.report.repacked += 1;
        }
        new.finish()?;
        let sparse = std::mem::take(&mut self.sparse);
        self.unused
            .extend(sparse.into_iter().map(|number| self.packs[number].0));
        Ok(())
    }
}
