//! Condemned packs are removed, or turn out to be in use.

use super::{Gc, GcReport, load};
use crate::StoreError;
use crate::name::ChunkName;
use std::collections::{HashMap, HashSet};

impl Gc<'_> {
    /// Removes condemned packs that nobody can refer to any more. The order matters: what is
    /// condemned, then leases, then manifests. A writer from before is in the leases, or its
    /// manifest is there.
    pub(super) fn sweep(mut self) -> Result<GcReport, StoreError> {
        let condemned: HashMap<_, _> = self.store.condemned()?.into_iter().collect();
        let users = self.users()?;
        self.live.read(self.store)?;
        // Packs may have come since; what they hold is available, too.
        let known: HashSet<_> = self.packs.iter().map(|(pack, _)| pack.name).collect();
        let mut packs = self.store.packs()?;
        packs.retain(|pack| !known.contains(&pack.name));
        let mut all = std::mem::take(&mut self.packs);
        all.extend(load(self.store, packs)?);
        let mut available: HashSet<ChunkName> = HashSet::new();
        for (pack, chunks) in &all {
            if !condemned.contains_key(&pack.name) {
                available.extend(chunks.iter().map(|chunk| chunk.name));
            }
        }
        all.sort_by_key(|(pack, _)| pack.name);
        for (pack, chunks) in &all {
            let Some(&since) = condemned.get(&pack.name) else {
                continue;
            };
            self.lease.check()?;
            let mark = format!("condemned/{}", pack.name);
            let lacks = |name: &ChunkName| self.live.has(name) && !available.contains(name);
            if chunks.iter().any(|chunk| lacks(&chunk.name)) {
                // It came into use before it was condemned.
                self.store.backend.delete(&mark)?;
                available.extend(chunks.iter().map(|chunk| chunk.name));
                continue;
            }
            let waits_for = users.iter().filter(|user| user.began <= since).count();
            if waits_for > 0 {
                self.report.waiting_packs += 1;
                self.report.waiting_bytes += pack.len;
                self.report.waiting_for = self.report.waiting_for.max(waits_for);
                continue;
            }
            self.store.backend.delete(&pack.name.path())?;
            self.store.backend.delete(&mark)?;
            self.report.removed_packs += 1;
            self.report.removed_bytes += pack.len;
        }
        // Marks of packs that another run has removed.
        let present: HashSet<_> = all.iter().map(|(pack, _)| pack.name).collect();
        for name in condemned.keys().filter(|name| !present.contains(name)) {
            self.store.backend.delete(&format!("condemned/{name}"))?;
        }
        Ok(self.report)
    }
}
