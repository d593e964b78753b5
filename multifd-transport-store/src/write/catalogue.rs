//! The chunks of a snapshot that is being written, together with those of the store that new ones
//! may be equal to.

use crate::format::ChunkRef;
use crate::name::{ChunkName, PackName};
use crate::{Store, StoreError};
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use multifd_core::sync::lock;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};

/// Parts of the catalogue, each with a lock of its own.
const SHARDS: usize = 64;
/// The pack of a chunk that is not in one yet.
const NO_PACK: u32 = u32::MAX;
/// Set in a slot's length if the snapshot has the chunk. A chunk's length needs fewer bits.
const USED: u32 = 1 << 30;

/// One chunk, in 44 bytes.
struct Slot {
    name: ChunkName,
    pack: u32,
    offset: u32,
    /// [`ChunkRef::len_word`], and [`USED`].
    len: u32,
}

impl Slot {
    fn of(chunk: &ChunkRef) -> Self {
        Self {
            name: chunk.name,
            pack: chunk.pack,
            offset: chunk.offset,
            len: chunk.len_word(),
        }
    }

    fn chunk(&self) -> Option<ChunkRef> {
        let (len, zstd) = ChunkRef::of_word(self.len & !USED)?;
        (self.pack != NO_PACK).then_some(ChunkRef {
            name: self.name,
            pack: self.pack,
            offset: self.offset,
            len,
            zstd,
        })
    }
}

/// Where a chunk is in the catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Id(u32);

impl Id {
    fn new(shard: usize, slot: usize) -> Self {
        Self((slot * SHARDS + shard) as u32)
    }

    fn shard(self) -> usize {
        self.0 as usize % SHARDS
    }

    fn slot(self) -> usize {
        self.0 as usize / SHARDS
    }

    /// As it stands in a table, where 0 is a chunk of zeros.
    pub(super) fn entry(self) -> u32 {
        self.0 + 1
    }
}

#[derive(Default)]
struct Shard {
    slots: Vec<Slot>,
    /// Slots by name.
    numbers: HashTable<u32>,
}

impl Shard {
    fn push(&mut self, slot: Slot) {
        // Not twice as much each time: this is most of a writer's memory.
        if self.slots.len() == self.slots.capacity() {
            self.slots.reserve_exact(self.slots.len() / 8 + 64);
        }
        self.slots.push(slot);
    }
}

/// The part that a chunk is in.
fn shard_of(name: &ChunkName) -> usize {
    usize::from(name.0[0]) % SHARDS
}

/// Chunks by name.
pub(super) struct Catalogue {
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
}

/// What a session leaves.
pub(super) struct Used {
    /// The snapshot's chunks, with the packs' numbers of the session.
    pub(super) chunks: Vec<ChunkRef>,
    /// For each shard and slot, the chunk's number in that list.
    numbers: Vec<Vec<u32>>,
}

impl Used {
    /// Turns a table's entries into numbers in the list, plus one.
    pub(super) fn renumber(&self, table: &mut [u32]) {
        for entry in table.iter_mut().filter(|entry| **entry != 0) {
            let id = Id(*entry - 1);
            *entry = self.numbers[id.shard()][id.slot()] + 1;
        }
    }
}

impl Catalogue {
    pub(super) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
        }
    }

    /// The chunks of the newest packs, until `limit` are known, and the names of those packs: a
    /// chunk's pack is its number there. Packs that are about to be removed are left out.
    pub(super) fn of_store(
        store: &Store,
        limit: usize,
    ) -> Result<(Self, Vec<PackName>), StoreError> {
        let condemned = store.condemned_names()?;
        let mut packs = store.packs()?;
        packs.retain(|pack| !condemned.contains(&pack.name));
        packs.sort_by_key(|pack| (std::cmp::Reverse(pack.modified), pack.name));
        let catalogue = Self::new();
        let mut free = limit;
        let mut rest = packs.as_slice();
        let mut first = 0;
        // A batch at a time, so that the newest come first.
        while !rest.is_empty() && free > 0 {
            let (batch, later) = rest.split_at(rest.len().min(64));
            store.all_chunks(batch, |number, found| {
                let pack = (first + number) as u32;
                for chunk in found {
                    if free > 0 && catalogue.add(ChunkRef { pack, ..chunk }) {
                        free -= 1;
                    }
                }
            })?;
            first += batch.len();
            rest = later;
        }
        let names = packs.into_iter().map(|pack| pack.name).collect();
        Ok((catalogue, names))
    }

    /// Enters a chunk that is stored; says whether it is the first of its name.
    fn add(&self, chunk: ChunkRef) -> bool {
        self.find_or_insert(&chunk.name, |_| (), || Slot::of(&chunk))
            .1
    }

    fn find_or_insert(
        &self,
        name: &ChunkName,
        found: impl FnOnce(&mut Slot),
        new: impl FnOnce() -> Slot,
    ) -> (Id, bool) {
        let number = shard_of(name);
        let mut shard = lock(&self.shards[number]);
        let Shard { slots, numbers } = &mut *shard;
        let free = slots.len();
        let entry = numbers.entry(
            self.hasher.hash_one(name.0),
            |&slot| slots[slot as usize].name == *name,
            |&slot| self.hasher.hash_one(slots[slot as usize].name.0),
        );
        match entry {
            Entry::Occupied(entry) => {
                let slot = *entry.get() as usize;
                found(&mut slots[slot]);
                (Id::new(number, slot), false)
            }
            Entry::Vacant(entry) => {
                entry.insert(free as u32);
                shard.push(new());
                (Id::new(number, free), true)
            }
        }
    }

    /// Whether a chunk is known.
    pub(super) fn has(&self, name: &ChunkName) -> bool {
        let shard = lock(&self.shards[shard_of(name)]);
        let is_it = |&slot: &u32| shard.slots[slot as usize].name == *name;
        let found = shard.numbers.find(self.hasher.hash_one(name.0), is_it);
        found.is_some()
    }

    /// Notes that the snapshot has a chunk. If it is `true` that it is a new one, the caller has
    /// to store it, and to say where with [`Catalogue::place`].
    pub(super) fn claim(&self, name: &ChunkName) -> (Id, bool) {
        let new = || Slot {
            name: *name,
            pack: NO_PACK,
            offset: 0,
            len: USED,
        };
        self.find_or_insert(name, |slot| slot.len |= USED, new)
    }

    /// Notes where a claimed chunk is now.
    pub(super) fn place(&self, id: Id, chunk: &ChunkRef) {
        let mut shard = lock(&self.shards[id.shard()]);
        if let Some(slot) = shard.slots.get_mut(id.slot()) {
            *slot = Slot::of(chunk);
            slot.len |= USED;
        }
    }

    /// The chunks that the snapshot has. `None` if one of them was never stored.
    pub(super) fn finish(self) -> Option<Used> {
        let mut shards: Vec<_> = self
            .shards
            .into_iter()
            .map(|shard| shard.into_inner().unwrap_or_else(PoisonError::into_inner))
            .map(|shard| shard.slots)
            .collect();
        let is_used = |slot: &&Slot| slot.len & USED != 0;
        let count = shards.iter().flatten().filter(is_used).count();
        let mut chunks = Vec::with_capacity(count);
        let mut numbers = Vec::with_capacity(SHARDS);
        for shard in &mut shards {
            // Taken one after another: all of them together would need twice the memory.
            let slots = std::mem::take(shard);
            let mut its_numbers = Vec::with_capacity(slots.len());
            for slot in slots {
                its_numbers.push(chunks.len() as u32);
                if is_used(&&slot) {
                    chunks.push(slot.chunk()?);
                }
            }
            numbers.push(its_numbers);
        }
        let places = sort(&mut chunks);
        for number in numbers.iter_mut().flatten() {
            // A slot that is not used has the number of the next one that is, or of none.
            *number = places.get(*number as usize).copied().unwrap_or(0);
        }
        Some(Used { chunks, numbers })
    }
}

/// Sorts chunks as they lie in their packs, and returns the new place of each.
fn sort(chunks: &mut [ChunkRef]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..chunks.len() as u32).collect();
    order.sort_unstable_by_key(|&old| {
        let chunk = &chunks[old as usize];
        (chunk.pack, chunk.offset)
    });
    let mut places = vec![0; order.len()];
    for (new, &old) in order.iter().enumerate() {
        places[old as usize] = new as u32;
    }
    // Each swap brings one chunk to its place.
    let mut moving = places.clone();
    for at in 0..chunks.len() {
        while moving[at] as usize != at {
            let to = moving[at] as usize;
            chunks.swap(at, to);
            moving.swap(at, to);
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(n: u32) -> ChunkRef {
        ChunkRef {
            name: ChunkName(*blake3::hash(&n.to_le_bytes()).as_bytes()),
            pack: n % 7,
            offset: n,
            len: n % 100 + 1,
            zstd: n.is_multiple_of(2),
        }
    }

    #[test]
    fn each_chunk_is_claimed_once_and_numbered() {
        let catalogue = Catalogue::new();
        for n in 0..1000 {
            assert!(catalogue.add(chunk(n)));
            assert!(!catalogue.add(ChunkRef {
                pack: 99,
                ..chunk(n)
            }));
        }
        let mut table = vec![0];
        // Some of the store's, some new, each twice.
        for n in (500..1500).chain(500..1500) {
            let name = chunk(n).name;
            assert_eq!(catalogue.has(&name), n < 1000 || table.len() > 1000);
            let (id, is_new) = catalogue.claim(&name);
            assert_eq!(is_new, n >= 1000 && table.len() <= 1000, "{n}");
            if is_new {
                catalogue.place(id, &chunk(n));
            }
            table.push(id.entry());
        }
        let used = catalogue.finish().unwrap();
        assert_eq!(used.chunks.len(), 1000);
        let place = |chunk: &ChunkRef| (chunk.pack, chunk.offset);
        assert!(used.chunks.is_sorted_by_key(place));
        used.renumber(&mut table);
        assert_eq!(table[0], 0);
        for (n, entry) in (500..1500).chain(500..1500).zip(&table[1..]) {
            assert_eq!(used.chunks[*entry as usize - 1], chunk(n));
        }
    }

    #[test]
    fn a_chunk_that_was_never_stored_is_noticed() {
        let catalogue = Catalogue::new();
        catalogue.add(chunk(1));
        catalogue.claim(&chunk(2).name);
        assert!(catalogue.finish().is_none());
    }
}
