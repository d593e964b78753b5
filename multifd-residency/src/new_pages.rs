//! Which parts of new memory have their pages yet, and huge pages for those that are written to
//! enough.

use crate::known_zeros::KnownZeros;
use crate::populate::populate;
use multifd_core::sync::lock;
use multifd_core::{RamBlock, Region, Run, event};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

/// Bytes of guest RAM that are taken to have their pages, or not, together.
const STRETCH: u64 = Region::HUGE as u64;

/// New bytes about to be written by one packet, or one piece of a file, from which on the stretches
/// they lie in are worth huge pages: half of QEMU's packet.
const WORTH_HUGE: usize = 256 << 10;

/// And how many at least for each of those: half a packet that lies across a border has as many.
const WORTH_EACH: usize = 128 << 10;

/// How often in a row a block asks for huge pages in vain.
const MOST_MISSES: u32 = 8;

/// Whether a stretch has its pages already: nobody has asked yet, it has not, it has.
const UNKNOWN: u8 = 0;
const ABSENT: u8 = 1;
const PRESENT: u8 = 2;

#[derive(Debug, Default)]
struct Stretch {
    state: AtomicU8,
    /// Held by who gives it a huge page: others that want one wait for it.
    turn: Mutex<()>,
}

/// How often in a row huge pages have been asked for in vain.
#[derive(Debug, Default)]
pub(crate) struct Misses {
    in_a_row: AtomicU32,
}

impl Misses {
    /// Whether another try may be worth it.
    pub(crate) fn are_few(&self) -> bool {
        self.in_a_row.load(Ordering::Relaxed) < MOST_MISSES
    }

    /// Notes whether a try has made a huge page.
    pub(crate) fn note(&self, made: bool) {
        if made {
            self.in_a_row.store(0, Ordering::Relaxed);
        } else if self.in_a_row.fetch_add(1, Ordering::Relaxed) == MOST_MISSES - 1 {
            event!("huge pages refused by the kernel: using ordinary ones");
        }
    }
}

/// The pieces of a run that lie in one stretch each.
pub(crate) fn by_stretch(run: Run) -> impl Iterator<Item = Run> + Clone {
    let mut rest = run;
    std::iter::from_fn(move || {
        let to_border = STRETCH - rest.offset % STRETCH;
        let len = usize::try_from(to_border).map_or(rest.len, |to_border| rest.len.min(to_border));
        let piece = Run { len, ..rest };
        rest.offset += len as u64;
        rest.len -= len;
        (len > 0).then_some(piece)
    })
}

/// A block of new memory: the pages that are still zero, and the stretches that have memory.
#[derive(Debug)]
pub(crate) struct NewBlock {
    page_size: u64,
    zeros: KnownZeros,
    stretches: Vec<Stretch>,
    misses: Misses,
}

impl NewBlock {
    /// For a block of `len` bytes.
    pub(crate) fn new(len: u64, page_size: u32) -> Self {
        let stretches = usize::try_from(len.div_ceil(STRETCH)).unwrap_or(usize::MAX);
        let page_size = u64::from(page_size);
        Self {
            page_size,
            zeros: KnownZeros::new(len / page_size),
            stretches: (0..stretches).map(|_| Stretch::default()).collect(),
            misses: Misses::default(),
        }
    }

    /// Whether nothing has been written to the page at `offset`.
    pub(crate) fn is_zero(&self, offset: u64) -> bool {
        self.zeros.contains(offset / self.page_size)
    }

    /// Notes that a run is about to be written; returns the first part of it that is new.
    pub(crate) fn note_writes(&self, block: &RamBlock, run: Run) -> Option<Run> {
        let first = run.offset / self.page_size;
        let pages = run.len as u64 / self.page_size;
        let all = first..first + pages;
        let new = all
            .clone()
            .take_while(|&page| self.zeros.contains(page))
            .count() as u64;
        all.for_each(|page| self.zeros.note(page));
        let new = Run {
            offset: run.offset,
            len: usize::try_from(new * self.page_size).unwrap_or(run.len),
        };
        (new.len > 0 && block.region(new.offset, new.len).is_ok()).then_some(new)
    }

    fn stretch(&self, offset: u64) -> Option<&Stretch> {
        self.stretches.get(usize::try_from(offset / STRETCH).ok()?)
    }

    /// Whether `new`, which is about to be written and lies in one stretch, should be populated.
    pub(crate) fn lacks_pages(&self, block: &RamBlock, new: Run) -> bool {
        let Some(stretch) = self.stretch(new.offset) else {
            return false;
        };
        let mut state = stretch.state.load(Ordering::Relaxed);
        if state == UNKNOWN {
            let has_pages = block
                .region(new.offset, new.len)
                .is_ok_and(|region| region.is_resident());
            state = if has_pages { PRESENT } else { ABSENT };
            // Unless another thread has found out, or populated it, in the meantime.
            let known = stretch.state.compare_exchange(
                UNKNOWN,
                state,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            state = known.err().unwrap_or(state);
        }
        state == ABSENT
    }

    /// Gives huge pages to the stretches of `new`, if it is enough and the system can. `new` is
    /// about to be written; each run of it lies in one stretch.
    ///
    /// Also to stretches that it does not fill: small pages at a stretch's beginning would spoil
    /// the rest for the next packet.
    pub(crate) fn give_huge_pages(&self, block: &RamBlock, new: impl Iterator<Item = Run> + Clone) {
        let len: usize = new.clone().map(|run| run.len).sum();
        let mut last = None;
        let firsts = new.filter(move |run| {
            let before = last.replace(run.offset / STRETCH);
            before != last
        });
        if len >= WORTH_HUGE && len >= firsts.clone().count() * WORTH_EACH {
            firsts.for_each(|first| self.give_huge_page(block, first));
        }
    }

    /// Asks once for a huge page for the stretch of `first`, the first run there that is about to
    /// be written.
    fn give_huge_page(&self, block: &RamBlock, first: Run) {
        if !self.misses.are_few() || !self.lacks_pages(block, first) {
            return;
        }
        let start = first.offset / STRETCH * STRETCH;
        let (Some(stretch), Ok(region)) = (self.stretch(start), block.region(start, Region::HUGE))
        else {
            return;
        };
        let _turn = lock(&stretch.turn);
        if !self.lacks_pages(block, first) {
            return;
        }
        // There must be one page to begin with.
        populate(
            block,
            Run {
                len: block.page_size() as usize,
                ..first
            },
        );
        let made = region.collapse();
        if made {
            stretch.state.store(PRESENT, Ordering::Relaxed);
        }
        self.misses.note(made);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Residency;
    use crate::testing::{has_huge_pages, new_ram, resident_count};
    use multifd_core::RamMap;
    use multifd_core::memory::RamWriter;
    use std::sync::Arc;

    const KIB: u64 = 1 << 10;

    fn run(offset: u64, len: u64) -> Run {
        let len = len as usize;
        Run { offset, len }
    }

    fn new_block(len: u64) -> (Arc<RamBlock>, NewBlock) {
        let block = Arc::clone(&new_ram(len).blocks()[0]);
        let new = NewBlock::new(len, 4096);
        (block, new)
    }

    #[test]
    fn runs_are_cut_at_borders() {
        let pieces = |offset, len| by_stretch(run(offset, len)).collect::<Vec<_>>();
        assert_eq!(pieces(0, 0), []);
        assert_eq!(pieces(4096, 4096), [run(4096, 4096)]);
        assert_eq!(pieces(0, STRETCH), [run(0, STRETCH)]);
        assert_eq!(
            pieces(STRETCH - 4096, STRETCH + 8192),
            [
                run(STRETCH - 4096, 4096),
                run(STRETCH, STRETCH),
                run(2 * STRETCH, 4096)
            ]
        );
    }

    #[test]
    fn stretches_that_are_written_to_enough_get_huge_pages() {
        let given = has_huge_pages();
        let (block, new) = new_block(3 * STRETCH + 512 * KIB);
        block.page(STRETCH).unwrap().copy_from(&[7]);
        let too_little = [run(0, 128 * KIB), run(512 * KIB, 124 * KIB)];
        new.give_huge_pages(&block, too_little.into_iter());
        assert_eq!(resident_count(&block), 1);
        assert!(new.lacks_pages(&block, too_little[0]));

        // Enough, in pieces, of the second and the third, and of the last, which is too short.
        let enough = [
            run(STRETCH + 64 * KIB, 128 * KIB),
            run(STRETCH + 512 * KIB, 124 * KIB),
            run(2 * STRETCH, 4 * KIB),
            run(3 * STRETCH, 512 * KIB),
        ];
        new.give_huge_pages(&block, enough.into_iter());
        assert_eq!(
            resident_count(&block),
            if given { 2 * STRETCH / 4096 } else { 3 }
        );
        let lacking = enough.map(|run| new.lacks_pages(&block, run));
        assert_eq!(lacking, [!given, !given, !given, true]);
        let mut first = [0; 2];
        block.page(STRETCH).unwrap().copy_to(&mut first);
        assert_eq!(first, [7, 0], "contents stay");
    }

    #[test]
    fn pages_here_and_there_get_no_huge_ones() {
        let (block, new) = new_block(16 * STRETCH);
        let runs = (0..16).map(|stretch| run(stretch * STRETCH, 64 * KIB));
        new.give_huge_pages(&block, runs);
        assert_eq!(resident_count(&block), 0);
    }

    #[test]
    fn huge_pages_come_while_others_write() {
        const THREADS: u64 = 4;
        const CHUNK: u64 = 256 * KIB;
        let ram = new_ram(8 * STRETCH);
        let block = &ram.blocks()[0];
        let residency = Residency::of_new(&ram);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let mut writer = residency.writer();
                // Neighbouring chunks at the same time, each filled when it is prepared.
                scope.spawn(move || {
                    for chunk in (thread..8 * STRETCH / CHUNK).step_by(THREADS as usize) {
                        let start = chunk * CHUNK;
                        writer.prepare(block, &mut [run(start, CHUNK)].into_iter());
                        for offset in (start..start + CHUNK).step_by(4096) {
                            let page = offset / 4096 + 1;
                            block.page(offset).unwrap().copy_from(&page.to_le_bytes());
                        }
                    }
                });
            }
        });
        for offset in (0..8 * STRETCH).step_by(4096) {
            let mut found = [0; 8];
            block.page(offset).unwrap().copy_to(&mut found);
            assert_eq!(u64::from_le_bytes(found), offset / 4096 + 1);
        }
    }

    #[test]
    fn a_run_across_a_border_gets_huge_pages_on_both_sides() {
        let given = has_huge_pages();
        let ram = new_ram(2 * STRETCH);
        let across = run(STRETCH - 256 * KIB, 260 * KIB);
        let residency = Residency::of_new(&ram);
        residency
            .writer()
            .prepare(&ram.blocks()[0], &mut [across].into_iter());
        let expected = if given { 2 * STRETCH } else { 260 * KIB };
        assert_eq!(resident_count(&ram.blocks()[0]), expected / 4096);
    }

    #[test]
    fn no_huge_pages_where_they_are_not_wanted() {
        let ram = new_ram(STRETCH);
        let residency = Residency::of_new(&ram).huge_pages(false);
        let half = run(0, STRETCH / 2);
        residency
            .writer()
            .prepare(&ram.blocks()[0], &mut [half].into_iter());
        drop(residency);
        assert_eq!(resident_count(&ram.blocks()[0]), STRETCH / 2 / 4096);
    }

    #[test]
    fn a_stretch_that_gets_none_is_asked_for_once_a_packet() {
        let ram = crate::testing::unaligned_ram(2 * STRETCH - 4096);
        let block: &Arc<RamBlock> = &ram.blocks()[0];
        let new = NewBlock::new(block.len(), 4096);
        new.give_huge_pages(block, (0..16).map(|at| run(at * 64 * KIB, 32 * KIB)));
        assert_eq!(new.misses.in_a_row.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_block_that_gets_none_stops_asking() {
        let (block, mut new) = new_block(16 * STRETCH);
        // After that many tries in vain.
        *new.misses.in_a_row.get_mut() = MOST_MISSES;
        new.give_huge_pages(&block, [run(0, STRETCH)].into_iter());
        assert_eq!(resident_count(&block), 0);
    }

    #[test]
    fn blocks_that_are_not_known_are_left_alone() {
        let (known, other) = (RamMap::new(), new_ram(STRETCH));
        let residency = Residency::of_new(&known);
        residency
            .writer()
            .prepare(&other.blocks()[0], &mut [run(0, STRETCH)].into_iter());
        assert_eq!(resident_count(&other.blocks()[0]), 0);
    }
}
