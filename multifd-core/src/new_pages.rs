//! Which parts of new memory have their pages yet, and huge pages for those that are written to enough.

use crate::memory::HUGE;
use crate::shutdown::lock;
use crate::{RamBlock, Run};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

/// Bytes of guest RAM that are taken to have their pages, or not, together.
const STRETCH: u64 = HUGE as u64;

/// New bytes about to be written by one packet, or one piece of a file, from which on the stretches they lie in are worth huge pages: half
/// of QEMU's packet.
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
        } else {
            self.in_a_row.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The stretches of a block.
#[derive(Debug)]
pub(crate) struct NewPages {
    stretches: Vec<Stretch>,
    misses: Misses,
}

impl NewPages {
    /// For a block of `len` bytes.
    pub(crate) fn new(len: u64) -> Self {
        let count = usize::try_from(len.div_ceil(STRETCH)).unwrap_or(usize::MAX);
        Self {
            stretches: (0..count).map(|_| Stretch::default()).collect(),
            misses: Misses::default(),
        }
    }

    fn stretch(&self, offset: u64) -> Option<&Stretch> {
        self.stretches.get(usize::try_from(offset / STRETCH).ok()?)
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

impl RamBlock {
    /// Whether `new`, which is about to be written and lies in one stretch, is to be given its pages.
    pub(crate) fn lacks_pages(&self, new: Run) -> bool {
        let pages = self.known_zeros.as_ref().map(|zeros| &zeros.pages);
        let Some(stretch) = pages.and_then(|pages| pages.stretch(new.offset)) else {
            return false;
        };
        let mut state = stretch.state.load(Ordering::Relaxed);
        if state == UNKNOWN {
            let has_pages = self
                .region(new.offset, new.len)
                .is_ok_and(|region| region.is_resident());
            state = if has_pages { PRESENT } else { ABSENT };
            // Unless somebody else has found out, or made it so, in the meantime.
            let known = stretch
                .state
                .compare_exchange(UNKNOWN, state, Ordering::Relaxed, Ordering::Relaxed);
            state = known.err().unwrap_or(state);
        }
        state == ABSENT
    }

    /// Gives huge pages to the stretches that `new` lies in, if it is enough and where the system can; `new` is about to be written, and each
    /// of it lies in one stretch.
    ///
    /// Not only to those it fills: who writes small pages at a stretch's beginning would spoil what the next one does for the rest.
    pub(crate) fn give_huge_pages(&self, new: impl Iterator<Item = Run> + Clone) {
        let len: usize = new.clone().map(|run| run.len).sum();
        let mut last = None;
        let firsts = new.filter(move |run| {
            let before = last.replace(run.offset / STRETCH);
            before != last
        });
        if len >= WORTH_HUGE && len >= firsts.clone().count() * WORTH_EACH {
            firsts.for_each(|first| self.give_huge_page(first));
        }
    }

    /// Asks once for a huge page for the stretch of `first`, which is the first there of what is about to be written.
    fn give_huge_page(&self, first: Run) {
        let Some(pages) = self.known_zeros.as_ref().map(|zeros| &zeros.pages) else {
            return;
        };
        if !self.huge_pages || !pages.misses.are_few() || !self.lacks_pages(first) {
            return;
        }
        let start = first.offset / STRETCH * STRETCH;
        let (Some(stretch), Ok(region)) = (pages.stretch(start), self.region(start, HUGE)) else {
            return;
        };
        let _turn = lock(&stretch.turn);
        if !self.lacks_pages(first) {
            return;
        }
        // There has to be one page to begin with.
        self.populate(Run {
            len: self.page_size() as usize,
            ..first
        });
        let made = region.make_huge();
        if made {
            stretch.state.store(PRESENT, Ordering::Relaxed);
        }
        pages.misses.note(made);
    }
}

#[cfg(test)]
#[allow(unsafe_code)] // A block at an address of the test's choice.
pub(crate) mod tests {
    use super::*;
    use crate::Prefault;
    use crate::memory::memory_file;
    use std::sync::Arc;

    const KIB: u64 = 1 << 10;

    fn run(offset: u64, len: u64) -> Run {
        let len = len as usize;
        Run { offset, len }
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

    pub(crate) fn resident(block: &RamBlock) -> u64 {
        let pages = (0..block.len()).step_by(4096);
        pages
            .filter(|&offset| block.page(offset).unwrap().is_resident())
            .count() as u64
    }

    /// A block of new memory that is given huge pages only when they are asked for, unless this system is set up otherwise.
    fn new_block(len: u64) -> RamBlock {
        let file = memory_file();
        file.set_len(len).unwrap();
        RamBlock::shared("b", &file, 4096).unwrap().with_known_zeros()
    }

    /// Whether this system gives huge pages when asked.
    fn has_huge_pages() -> bool {
        let block = new_block(STRETCH);
        block.populate(run(0, 4096));
        let given = block.region(0, STRETCH as usize).unwrap().make_huge();
        if !given {
            eprintln!("skipped in part: this system makes no huge pages");
        }
        given
    }

    #[test]
    fn what_is_written_to_enough_gets_huge_pages() {
        let given = has_huge_pages();
        let block = new_block(3 * STRETCH + 512 * KIB);
        block.page(STRETCH).unwrap().copy_from(&[7]);
        let too_little = [run(0, 128 * KIB), run(512 * KIB, 124 * KIB)];
        block.give_huge_pages(too_little.into_iter());
        assert_eq!(resident(&block), 1);
        assert!(block.lacks_pages(too_little[0]));

        // Enough, in pieces, of the second and the third, and of the last, which is too short.
        let new = [
            run(STRETCH + 64 * KIB, 128 * KIB),
            run(STRETCH + 512 * KIB, 124 * KIB),
            run(2 * STRETCH, 4 * KIB),
            run(3 * STRETCH, 512 * KIB),
        ];
        block.give_huge_pages(new.into_iter());
        assert_eq!(resident(&block), if given { 2 * STRETCH / 4096 } else { 3 });
        let lacking = new.map(|run| block.lacks_pages(run));
        assert_eq!(lacking, [!given, !given, !given, true]);
        let mut first = [0; 2];
        block.page(STRETCH).unwrap().copy_to(&mut first);
        assert_eq!(first, [7, 0], "what was there stays");
    }

    #[test]
    fn pages_here_and_there_get_no_huge_ones() {
        let block = new_block(16 * STRETCH);
        let new = (0..16).map(|stretch| run(stretch * STRETCH, 64 * KIB));
        block.give_huge_pages(new);
        assert_eq!(resident(&block), 0);
    }

    #[test]
    fn huge_pages_come_while_others_write() {
        const THREADS: u64 = 4;
        const CHUNK: u64 = 256 * KIB;
        let block = Arc::new(new_block(8 * STRETCH));
        let prefault = Prefault::new();
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let mut user = prefault.user();
                let block = &block;
                // Neighbouring chunks at the same time, each filled as soon as it is prepared.
                scope.spawn(move || {
                    for chunk in (thread..8 * STRETCH / CHUNK).step_by(THREADS as usize) {
                        let start = chunk * CHUNK;
                        user.prepare_to_write(block, [run(start, CHUNK)]);
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
    fn a_range_to_be_written_gets_huge_pages() {
        let given = has_huge_pages();
        let block = new_block(2 * STRETCH);
        block.prepare_to_write(STRETCH - 256 * KIB, (260 * KIB) as usize);
        let expected = if given { 2 * STRETCH } else { 260 * KIB };
        assert_eq!(resident(&block), expected / 4096);
    }

    #[test]
    fn no_huge_pages_where_they_are_not_wanted() {
        let block = new_block(STRETCH).without_huge_pages();
        block.give_huge_pages([run(0, STRETCH)].into_iter());
        assert_eq!(resident(&block), 0);
    }

    #[test]
    fn a_stretch_that_gets_none_is_asked_for_once_a_packet() {
        let whole = Arc::new(new_block(2 * STRETCH));
        let base = whole.page(4096).unwrap().as_mut_ptr();
        let len = whole.len() as usize - 4096;
        // SAFETY: the rest of a block, which owns its memory and is kept.
        let block = unsafe { RamBlock::from_raw_parts("b", base, len, 4096, Arc::clone(&whole)) };
        // Not aligned: there can be none.
        let block = block.unwrap().with_known_zeros();
        block.give_huge_pages((0..16).map(|at| run(at * 64 * KIB, 32 * KIB)));
        assert_eq!(resident(&block), 1);
        let misses = &block.known_zeros.as_ref().unwrap().pages.misses;
        assert_eq!(misses.in_a_row.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_block_that_gets_none_stops_asking() {
        let mut block = new_block(16 * STRETCH);
        // As if all of these had been in vain.
        let zeros = block.known_zeros.as_mut().unwrap();
        *zeros.pages.misses.in_a_row.get_mut() = MOST_MISSES;
        block.give_huge_pages([run(0, STRETCH)].into_iter());
        assert_eq!(resident(&block), 0);
    }
}
