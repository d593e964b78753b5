//! New memory gets its pages before it is written to, from all the processors that have nothing else to do.

use crate::new_pages::by_stretch;
use crate::shutdown::lock;
use crate::{RamBlock, Run};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Bytes that get their pages by one system call where they are shared out.
const CHUNK: usize = 128 << 10;

/// Helps threads that write to blocks with known zeros (see [`RamBlock::with_known_zeros`]): where there are fewer of them than
/// processors, threads of its own give the memory its pages, together with those that are about to write. A new page takes several times
/// as long as what is then copied into it.
///
/// It starts its threads when there is something for them to do, one for each processor that is left over, and no more than there are
/// users; they end with it.
///
/// ```
/// use multifd_core::{Prefault, RamBlock, RamMap, Run};
///
/// let mut ram = RamMap::new();
/// ram.add(RamBlock::anonymous("pc.ram", 1 << 20, 4096)?.with_known_zeros())?;
/// let prefault = Prefault::new();
/// let mut writer = prefault.user();
/// let written = Run { offset: 0, len: 512 << 10 };
/// writer.prepare_to_write(&ram.blocks()[0], [written]);
/// // ... and now the contents.
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Prefault {
    pool: Arc<Pool>,
}

impl Default for Prefault {
    fn default() -> Self {
        Self::new()
    }
}

impl Prefault {
    /// Without users and threads yet.
    pub fn new() -> Self {
        Self::on(std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
    }

    fn on(processors: usize) -> Self {
        Self {
            pool: Arc::new(Pool {
                processors,
                users: AtomicUsize::new(0),
                state: Mutex::default(),
                offered: Condvar::new(),
            }),
        }
    }

    /// One more thread that writes.
    pub fn user(&self) -> PrefaultUser {
        self.pool.users.fetch_add(1, Ordering::Relaxed);
        let mut state = lock(&self.pool.state);
        state.jobs.push(Job::default());
        PrefaultUser {
            pool: Arc::clone(&self.pool),
            slot: state.jobs.len() - 1,
            room: VecDeque::new(),
        }
    }
}

impl Drop for Prefault {
    fn drop(&mut self) {
        let threads = {
            let mut state = lock(&self.pool.state);
            state.closed = true;
            std::mem::take(&mut state.threads)
        };
        self.pool.offered.notify_all();
        for thread in threads {
            let _ = thread.join();
        }
    }
}

/// A thread's access to a [`Prefault`].
#[derive(Debug)]
pub struct PrefaultUser {
    pool: Arc<Pool>,
    slot: usize,
    /// Empty between calls.
    room: VecDeque<Run>,
}

impl PrefaultUser {
    /// Does what [`RamBlock::prepare_to_write`] does, for all of `runs`.
    pub fn prepare_to_write(&mut self, block: &Arc<RamBlock>, runs: impl IntoIterator<Item = Run>) {
        let new = runs
            .into_iter()
            .filter_map(|run| block.note_writes(run.offset, run.len));
        self.room.extend(new.flat_map(by_stretch));
        block.give_huge_pages(self.room.iter().copied());
        self.room
            .retain(|run| block.is_worth_a_call(*run) && block.lacks_pages(*run));
        let len: usize = self.room.iter().map(|run| run.len).sum();
        if len > CHUNK && self.pool.has_processors_left() {
            self.pool.share(self.slot, block, &mut self.room);
        } else {
            self.room.drain(..).for_each(|run| block.populate(run));
        }
    }
}

impl Drop for PrefaultUser {
    fn drop(&mut self) {
        self.pool.users.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What one user has to have done: itself from the front, helpers from the back.
#[derive(Debug, Default)]
struct Job {
    block: Option<Arc<RamBlock>>,
    runs: VecDeque<Run>,
}

impl Job {
    fn take_first(&mut self) -> Option<Run> {
        let run = self.runs.front_mut()?;
        let first = Run {
            offset: run.offset,
            len: run.len.min(CHUNK),
        };
        run.offset += first.len as u64;
        run.len -= first.len;
        if run.len == 0 {
            self.runs.pop_front();
        }
        Some(first)
    }

    fn take_last(&mut self) -> Option<Run> {
        let run = self.runs.back_mut()?;
        let len = run.len.min(CHUNK);
        run.len -= len;
        let last = Run {
            offset: run.offset + run.len as u64,
            len,
        };
        if run.len == 0 {
            self.runs.pop_back();
        }
        Some(last)
    }
}

#[derive(Debug, Default)]
struct State {
    jobs: Vec<Job>,
    threads: Vec<JoinHandle<()>>,
    /// Helpers that wait.
    idle: usize,
    closed: bool,
}

#[derive(Debug)]
struct Pool {
    processors: usize,
    users: AtomicUsize,
    state: Mutex<State>,
    /// There is something to do, or nothing any more: waits of the helpers.
    offered: Condvar,
}

impl Pool {
    fn has_processors_left(&self) -> bool {
        self.users.load(Ordering::Relaxed) < self.processors
    }

    /// Gives `runs` their pages together with whoever is free. A helper may still be at its last one afterwards: that changes no
    /// contents, and it keeps the block.
    fn share(self: &Arc<Self>, slot: usize, block: &Arc<RamBlock>, runs: &mut VecDeque<Run>) {
        let mut state = lock(&self.state);
        if let Some(job) = state.jobs.get_mut(slot) {
            job.block = Some(Arc::clone(block));
            std::mem::swap(&mut job.runs, runs);
        }
        if state.idle == 0 {
            self.add_helper(&mut state);
        } else {
            self.offered.notify_one();
        }
        while let Some(chunk) = state.jobs.get_mut(slot).and_then(Job::take_first) {
            drop(state);
            block.populate(chunk);
            state = lock(&self.state);
        }
        if let Some(job) = state.jobs.get_mut(slot) {
            job.block = None;
            std::mem::swap(&mut job.runs, runs);
        }
    }

    /// One more helper, if there may be. Without it, it only takes longer.
    fn add_helper(self: &Arc<Self>, state: &mut State) {
        let users = self.users.load(Ordering::Relaxed);
        if state.threads.len() >= users.min(self.processors.saturating_sub(users)) {
            return;
        }
        let pool = Arc::clone(self);
        let thread = std::thread::Builder::new()
            .name(format!("multifd-fault-{}", state.threads.len()))
            .spawn(move || pool.help());
        state.threads.extend(thread);
    }

    fn help(&self) {
        let mut state = lock(&self.state);
        while !state.closed {
            let found = state.jobs.iter_mut().find_map(|job| {
                let chunk = job.take_last()?;
                Some((job.block.clone()?, chunk))
            });
            if let Some((block, chunk)) = found {
                drop(state);
                block.populate(chunk);
                drop(block);
                state = lock(&self.state);
            } else {
                state.idle += 1;
                state = self.offered.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: u64 = 4 << 20;

    fn resident(block: &RamBlock) -> Vec<u64> {
        let pages = (0..LEN).step_by(4096);
        pages
            .filter(|&offset| block.page(offset).unwrap().is_resident())
            .collect()
    }

    fn new_block() -> RamBlock {
        let file = crate::memory::memory_file();
        file.set_len(LEN).unwrap();
        RamBlock::shared("b", &file, 4096).unwrap()
    }

    /// What is to be written of a MiB: two pieces of it.
    fn runs(mib: u64) -> [Run; 2] {
        let start = mib << 20;
        [(0, 256 << 10), (512 << 10, 200 << 10)].map(|(offset, len)| Run {
            offset: start + offset,
            len,
        })
    }

    #[test]
    fn exactly_what_is_to_be_written_gets_pages_however_many_help() {
        for (processors, users) in [(1, 1_usize), (2, 1), (8, 1), (2, 2), (3, 2), (8, 4)] {
            let block = new_block();
            let block = Arc::new(block.with_known_zeros().without_huge_pages());
            let prefault = Prefault::on(processors);
            // All are there before the first begins, and until the last is done: helpers depend on how many there are.
            let mut writers: Vec<_> = (0..users).map(|_| prefault.user()).collect();
            std::thread::scope(|scope| {
                for (user, writer) in (0_u64..).zip(&mut writers) {
                    let block = &block;
                    scope.spawn(move || {
                        for mib in (user..4).step_by(users) {
                            writer.prepare_to_write(block, runs(mib));
                        }
                    });
                }
            });
            let helpers = lock(&prefault.pool.state).threads.len();
            let allowed = users.min(processors.saturating_sub(users));
            assert!(helpers <= allowed, "{helpers} for {users} on {processors}");
            if users == 1 {
                assert_eq!(helpers, allowed.min(1));
            }
            drop(writers);
            // Nobody is at a last chunk after this.
            drop(prefault);
            let pages = |run: Run| (run.offset..run.offset + run.len as u64).step_by(4096);
            let expected: Vec<u64> = (0..4).flat_map(runs).flat_map(pages).collect();
            assert_eq!(resident(&block), expected, "{users} on {processors}");
        }
    }

    #[test]
    fn memory_written_before_and_runs_outside_are_left_alone() {
        let block = new_block();
        let block = Arc::new(block.with_known_zeros().without_huge_pages());
        let prefault = Prefault::on(2);
        let mut writer = prefault.user();
        for _ in 0..2 {
            writer.prepare_to_write(&block, runs(0));
        }
        let outside = Run {
            offset: LEN,
            len: 1 << 20,
        };
        writer.prepare_to_write(&block, [outside]);
        drop(prefault);
        assert_eq!(resident(&block).len(), (456 << 10) / 4096);
    }
}
