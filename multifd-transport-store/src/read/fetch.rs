//! Many chunks at once: those that lie together in a pack are read together.

use super::Snapshot;
use super::loader::Loader;
use crate::StoreError;
use crate::format::ChunkRef;
use crate::threads::on_threads;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of a pack that are read and not needed, rather than asking twice.
const GAP: u64 = 32 << 10;
/// Most bytes of a pack that are read at once.
const AT_ONCE: u64 = 1 << 20;

/// Chunks of one pack that are read together.
#[derive(Debug)]
struct Group {
    range: Range<u64>,
    chunks: Vec<usize>,
}

/// Chunks in groups, in the order in which each group's first chunk was asked for.
fn groups(all: &[ChunkRef], wanted: &[usize]) -> Vec<Group> {
    let mut order: Vec<(usize, usize)> = wanted.iter().copied().enumerate().collect();
    order.sort_by_key(|&(_, chunk)| (all[chunk].pack, all[chunk].offset));
    let mut groups: Vec<(usize, u32, Group)> = Vec::new();
    for (position, number) in order {
        let chunk = &all[number];
        let start = u64::from(chunk.offset);
        let end = start + u64::from(chunk.len);
        if let Some((first, pack, group)) = groups.last_mut()
            && *pack == chunk.pack
            && start <= group.range.end + GAP
            && end - group.range.start <= AT_ONCE
        {
            group.range.end = group.range.end.max(end);
            group.chunks.push(number);
            *first = position.min(*first);
        } else {
            let group = Group {
                range: start..end,
                chunks: vec![number],
            };
            groups.push((position, chunk.pack, group));
        }
    }
    groups.sort_by_key(|(first, ..)| *first);
    groups.into_iter().map(|(.., group)| group).collect()
}

impl Snapshot {
    /// Reads chunks, by their numbers in the manifest's list, on some threads. `take` gets each
    /// with its number, or the reason why it cannot be read; it returns whether to go on. Chunks
    /// that lie together in a pack are read together; apart from that the order is kept.
    ///
    /// # Errors
    /// [`StoreError`], if the storage does not answer; a chunk's own error goes to `take`.
    pub fn fetch(
        &self,
        chunks: &[usize],
        threads: usize,
        take: impl Fn(usize, Result<&[u8], StoreError>) -> bool + Sync,
    ) -> Result<(), StoreError> {
        let all = self.manifest().chunks();
        let groups = groups(all, chunks);
        let next = AtomicUsize::new(0);
        let threads = threads.clamp(1, groups.len().max(1));
        on_threads(threads, || self.fetch_groups(&groups, &next, &take))
    }

    fn fetch_groups(
        &self,
        groups: &[Group],
        next: &AtomicUsize,
        take: &(impl Fn(usize, Result<&[u8], StoreError>) -> bool + Sync),
    ) -> Result<(), StoreError> {
        let all = self.manifest().chunks();
        let mut loader = Loader::new()?;
        let mut contents = vec![0; self.manifest().head.chunk_size as usize];
        while let Some(group) = groups.get(next.fetch_add(1, Ordering::Relaxed)) {
            let pack = all[group.chunks[0]].pack;
            let read = self
                .pack_path(pack)
                .and_then(|path| loader.read(self.store(), &path, group.range.clone()));
            // Storage that does not answer says nothing of the chunks. A group that cannot be read
            // for another reason is tried chunk by chunk: not all may be damaged.
            if let Err(error @ StoreError::Storage { .. }) = read {
                next.store(groups.len(), Ordering::Relaxed);
                return Err(error);
            }
            for &number in &group.chunks {
                let chunk = &all[number];
                let out = &mut contents[..self.chunk_len(number)];
                let at = (u64::from(chunk.offset) - group.range.start) as usize;
                let result = if read.is_ok() {
                    let decoded = loader.decode(self.store(), chunk, at, out);
                    decoded.map_err(|why| self.chunk_error(number, &why))
                } else {
                    self.load(number, &mut loader, out)
                };
                if !take(number, result.map(|()| &*out)) {
                    next.store(groups.len(), Ordering::Relaxed);
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::ChunkName;

    #[test]
    fn neighbours_are_read_together() {
        let chunk = |pack, offset, len| ChunkRef {
            name: ChunkName([0; 32]),
            pack,
            offset,
            len,
            zstd: false,
        };
        let all = [
            chunk(0, 0, 100),
            chunk(0, 100, 100),
            chunk(1, 0, 100),
            chunk(0, 200 + GAP as u32, 100),
            chunk(0, 500 + 2 * GAP as u32, 100),
            chunk(1, 100, 100),
        ];
        let found = groups(&all, &[4, 5, 0, 1, 2, 3]);
        let found: Vec<_> = found.into_iter().map(|group| group.chunks).collect();
        assert_eq!(found, [vec![4], vec![2, 5], vec![0, 1, 3]]);
    }
}
