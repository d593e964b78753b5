//! The indexes of a store's packs.

use crate::backend::Meta;
use crate::format::ChunkRef;
use crate::format::pack::{FOOTER, index_len, read_index};
use crate::name::PackName;
use crate::threads::read_each;
use crate::{Store, StoreError};
use std::collections::HashSet;

/// Bytes read from a pack's end at once: the index of most packs.
const LAST_READ: u64 = 64 << 10;
/// Requests that run at the same time.
const AT_ONCE: usize = 16;

/// A pack in a store, by its listing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pack {
    pub(crate) name: PackName,
    pub(crate) len: u64,
    pub(crate) modified: i64,
}

impl Store {
    /// All packs, in the order of their names.
    pub(crate) fn packs(&self) -> Result<Vec<Pack>, StoreError> {
        let of = |meta: Meta| {
            Some(Pack {
                name: PackName::of_path(&meta.path)?,
                len: meta.len,
                modified: meta.modified,
            })
        };
        Ok(self
            .backend
            .list("packs")?
            .into_iter()
            .filter_map(of)
            .collect())
    }

    /// The chunks of a pack, which get `number` as their pack's.
    pub(crate) fn pack_chunks(
        &self,
        pack: &Pack,
        number: u32,
    ) -> Result<Vec<ChunkRef>, StoreError> {
        let path = pack.name.path();
        let short = || StoreError::Damaged {
            object: path.clone(),
            why: "it is shorter than its listing says".into(),
        };
        if pack.len < FOOTER as u64 {
            return Err(short());
        }
        let start = pack.len.saturating_sub(LAST_READ);
        let last = self.backend.get_range(&path, start..pack.len)?;
        if last.len() as u64 != pack.len - start {
            return Err(short());
        }
        let footer = &last[last.len() - FOOTER..];
        let len = index_len(pack.name, pack.len, footer)?;
        let data = pack.len - (FOOTER + len) as u64;
        let mut index = if data >= start {
            let at = (data - start) as usize;
            last[at..last.len() - FOOTER].to_vec()
        } else {
            let range = data..pack.len - FOOTER as u64;
            self.backend.get_range(&path, range)?
        };
        read_index(pack.name, data, &mut index, number, self.keys.as_deref())
    }

    /// The chunks of many packs, read at the same time; `take` gets each pack's in any order. A
    /// pack that has gone since it was listed, or whose index cannot be read, is left out: its chunks
    /// are as good as missing there.
    pub(crate) fn all_chunks(
        &self,
        packs: &[Pack],
        mut take: impl FnMut(usize, Vec<ChunkRef>) + Send,
    ) -> Result<(), StoreError> {
        let threads = if packs.len() < 4 {
            1
        } else {
            AT_ONCE.min(packs.len())
        };
        let read = |number: usize, pack: &Pack| self.pack_chunks(pack, number as u32);
        read_each(packs, threads, read, |number, chunks| {
            match chunks {
                Ok(chunks) => take(number, chunks),
                Err(
                    StoreError::Missing { .. }
                    | StoreError::Damaged { .. }
                    | StoreError::Version { .. },
                ) => {}
                Err(error) => return Err(error),
            }
            Ok(())
        })
    }

    /// Packs that a garbage collection is about to remove.
    pub(crate) fn condemned_names(&self) -> Result<HashSet<PackName>, StoreError> {
        let condemned = self.backend.list("condemned")?.into_iter();
        Ok(condemned
            .filter_map(|meta| PackName::of_path(&meta.path))
            .collect())
    }
}
