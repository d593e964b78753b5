//! Threads that populate memory together with those that write to it, on processors that are idle.

use crate::populate::{CHUNK, populate};
use multifd_core::sync::{lock, wait};
use multifd_core::{RamBlock, Run, ThreadRole, ThreadStart};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

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

#[derive(Default)]
struct State {
    jobs: Vec<Job>,
    threads: Vec<JoinHandle<()>>,
    /// Helpers that wait.
    idle: usize,
    closed: bool,
    thread_start: Option<ThreadStart>,
}

pub(crate) struct Pool {
    processors: usize,
    users: AtomicUsize,
    state: Mutex<State>,
    /// There is something to do, or nothing any more: waits of the helpers.
    offered: Condvar,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool")
            .field("processors", &self.processors)
            .finish_non_exhaustive()
    }
}

impl Pool {
    pub(crate) fn new(processors: usize) -> Self {
        Self {
            processors,
            users: AtomicUsize::new(0),
            state: Mutex::default(),
            offered: Condvar::new(),
        }
    }

    pub(crate) fn set_thread_start(&self, start: Option<ThreadStart>) {
        lock(&self.state).thread_start = start;
    }

    /// One more thread that writes; returns its slot.
    pub(crate) fn add_user(&self) -> usize {
        self.users.fetch_add(1, Ordering::Relaxed);
        let mut state = lock(&self.state);
        state.jobs.push(Job::default());
        state.jobs.len() - 1
    }

    pub(crate) fn remove_user(&self) {
        self.users.fetch_sub(1, Ordering::Relaxed);
    }

    /// Ends the helpers. Called by the last holder, who is not one of them.
    pub(crate) fn close(&self) {
        let threads = {
            let mut state = lock(&self.state);
            state.closed = true;
            std::mem::take(&mut state.threads)
        };
        self.offered.notify_all();
        for thread in threads {
            let _ = thread.join();
        }
    }

    pub(crate) fn has_processors_left(&self) -> bool {
        self.users.load(Ordering::Relaxed) < self.processors
    }

    /// Gives `runs` their pages together with whoever is free. A helper may still be at its last
    /// one afterwards: that changes no contents, and it keeps the block.
    pub(crate) fn share(
        self: &Arc<Self>,
        slot: usize,
        block: &Arc<RamBlock>,
        runs: &mut VecDeque<Run>,
    ) {
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
            populate(block, chunk);
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
        let start = state.thread_start.clone();
        let thread = std::thread::Builder::new()
            .name(format!("multifd-fault-{}", state.threads.len()))
            .spawn(move || {
                if let Some(start) = start {
                    start(ThreadRole::Helper);
                }
                pool.help();
            });
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
                populate(&block, chunk);
                drop(block);
                state = lock(&self.state);
            } else {
                state.idle += 1;
                state = wait(&self.offered, state);
                state.idle -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Residency;
    use crate::testing::{new_ram, resident_pages};
    use multifd_core::memory::RamWriter;

    const LEN: u64 = 4 << 20;

    /// The part of a MiB that is to be written: two pieces of it.
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
            let ram = new_ram(LEN);
            let block = &ram.blocks()[0];
            let residency = Residency::on(&ram, processors).huge_pages(false);
            // All exist before the first begins, and until the last is done: helpers depend on how
            // many there are.
            let mut writers: Vec<_> = (0..users).map(|_| residency.writer()).collect();
            std::thread::scope(|scope| {
                for (user, writer) in (0_u64..).zip(&mut writers) {
                    scope.spawn(move || {
                        for mib in (user..4).step_by(users) {
                            writer.prepare(block, &mut runs(mib).into_iter());
                        }
                    });
                }
            });
            let helpers = lock(&residency.shared.pool.state).threads.len();
            let allowed = users.min(processors.saturating_sub(users));
            assert!(helpers <= allowed, "{helpers} for {users} on {processors}");
            if users == 1 {
                assert_eq!(helpers, allowed.min(1));
            }
            drop(writers);
            // Every helper has done its last chunk after this.
            drop(residency);
            let pages = |run: Run| (run.offset..run.offset + run.len as u64).step_by(4096);
            let expected: Vec<u64> = (0..4).flat_map(runs).flat_map(pages).collect();
            assert_eq!(resident_pages(block), expected, "{users} on {processors}");
        }
    }

    #[test]
    fn memory_written_before_and_runs_outside_are_left_alone() {
        let ram = new_ram(LEN);
        let block = &ram.blocks()[0];
        let residency = Residency::on(&ram, 2).huge_pages(false);
        let mut writer = residency.writer();
        for _ in 0..2 {
            writer.prepare(block, &mut runs(0).into_iter());
        }
        let outside = Run {
            offset: LEN,
            len: 1 << 20,
        };
        writer.prepare(block, &mut [outside].into_iter());
        drop((writer, residency));
        assert_eq!(resident_pages(block).len(), (456 << 10) / 4096);
    }
}
