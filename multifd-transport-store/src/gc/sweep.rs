//! Condemned packs are removed, or turn out to be in use.

use super::{Gc, GcReport, SEEN, SKEW, load};
use crate::StoreError;
use crate::name::{ChunkName, PACK_NAME, PackName};
use crate::read::NEEDS;
use std::collections::{HashMap, HashSet};

/// Most bytes of what a reader says it needs.
const MAX_NEEDS: u64 = 64 << 20;

/// What readers need.
#[derive(Default)]
struct Readers {
    /// How many need each pack.
    packs: HashMap<PackName, usize>,
    /// How many may need any pack.
    lost: usize,
}

impl Gc<'_> {
    /// Removes condemned packs that nobody can refer to any more. The order matters: what is
    /// condemned, then writers, then manifests, then readers. A writer from before is among the
    /// writers, or its manifest is there; a reader of a manifest that is not there any more is among
    /// the readers.
    pub(super) fn sweep(mut self) -> Result<GcReport, StoreError> {
        let condemned = self.marks()?;
        let writers = self.writers()?;
        self.live.read(self.store)?;
        // Packs may have come since; what they hold is available, too.
        let known: HashSet<_> = self.packs.iter().map(|(pack, _)| pack.name).collect();
        let mut packs = self.store.packs()?;
        let present: HashSet<_> = packs.iter().map(|pack| pack.name).collect();
        let readers = self.readers(&present)?;
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
            let before = |began: &&i64| **began <= since.saturating_add(SKEW);
            let writers = writers.iter().filter(before).count();
            let of_pack = readers.packs.get(&pack.name).copied().unwrap_or(0);
            let waits_for = writers + of_pack + readers.lost;
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
        for name in condemned.keys().filter(|name| !present.contains(name)) {
            self.store.backend.delete(&format!("condemned/{name}"))?;
        }
        Ok(self.report)
    }

    /// What is condemned, and since when all could see it. A mark whose writer died before it knew
    /// that is seen now.
    fn marks(&self) -> Result<HashMap<PackName, i64>, StoreError> {
        let mut marks = HashMap::new();
        let mut new = Vec::new();
        for mark in self.store.backend.list("condemned")? {
            let Some(name) = PackName::of_path(&mark.path) else {
                continue;
            };
            if mark.len == SEEN.len() as u64 {
                marks.insert(name, mark.modified);
            } else {
                self.store.backend.put(&mark.path, SEEN)?;
                new.push(name);
            }
        }
        if !new.is_empty() {
            let now = self.now()?;
            marks.extend(new.into_iter().map(|name| (name, now)));
        }
        Ok(marks)
    }

    /// What readers need. `present` are the packs that there are.
    fn readers(&self, present: &HashSet<PackName>) -> Result<Readers, StoreError> {
        let mut needed = Readers::default();
        let (leases, _) = self.leases()?;
        for path in &leases.beside {
            let name = path.rsplit('/').next();
            let Some(needs) = name.and_then(|name| name.strip_prefix(NEEDS)) else {
                continue;
            };
            let id = needs.split_once('-').map_or(needs, |(id, _)| id);
            let bytes = match self.store.backend.get(path, MAX_NEEDS) {
                Err(StoreError::Missing { .. }) => continue,
                other => other?,
            };
            let (names, rest) = bytes.as_chunks::<PACK_NAME>();
            if !rest.is_empty() {
                return Err(StoreError::Damaged {
                    object: path.clone(),
                    why: format!("it has {} bytes", bytes.len()),
                });
            }
            let names = names.iter().map(|name| PackName(*name));
            for name in names.clone() {
                *needed.packs.entry(name).or_insert(0) += 1;
            }
            // Its chunks have moved to packs that it does not name. If it is still there, they are
            // in use anyway; else nobody knows where they are.
            if !self.live.has_snapshot(id) && names.into_iter().any(|name| !present.contains(&name))
            {
                needed.lost += 1;
            }
        }
        Ok(needed)
    }
}
