//! The sending engine: one thread a channel, idle channels pull.

use crate::busy::limit_of_all;
use crate::prepare_pool::PoolRun;
use crate::relay::Passage;
use crate::send_worker::{Preparing, SendWorker};
use crate::work_queue::{Depth, Work, WorkQueue};
use crate::{
    BlockError, BufferQueue, Buffers, CancelHandle, Checksums, Error, Method, PageBatch, Progress, RamBlock,
    RamMap, Stats, StatsHandle, Transport, Unblock, UnblockGuard, WriteFlags, ZeroPages, checksum,
};
use multifd_packet::Geometry;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// How far a sync reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncScope {
    /// All that was queued is out of our hands.
    Local,
    /// And every channel has sent a SYNC packet, so that the peer can join the round.
    Peer,
}

/// What a [`Sender`] is made with.
#[derive(Debug, Clone)]
pub struct SenderConfig {
    /// How many channels, and threads: 1 to 255.
    pub channels: u8,
    /// The VM's UUID, or zeros.
    pub uuid: [u8; 16],
    /// Whether zero pages are looked for.
    pub zero_pages: ZeroPages,
    /// How guest pages are written.
    pub flags: WriteFlags,
    /// What carries checksums; needs the feature `checksum`.
    pub checksums: Checksums,
    /// Most bytes one device-state packet carries; a receiver takes 16 MiB unless it is told otherwise.
    pub max_device_state: u32,
    /// A clock that is touched whenever something has been sent.
    pub progress: Option<Arc<Progress>>,
    /// Ends this transfer from elsewhere, and is told of its first error. One a transfer.
    pub cancel: CancelHandle,
}

impl Default for SenderConfig {
    fn default() -> Self {
        Self {
            channels: 2,
            uuid: [0; 16],
            zero_pages: ZeroPages::default(),
            flags: WriteFlags::default(),
            checksums: Checksums::Off,
            max_device_state: 16 << 20,
            progress: None,
            cancel: CancelHandle::default(),
        }
    }
}

/// Sends pages and buffers over many channels. The caller keeps nothing across rounds.
///
/// The first error of any channel stops all of them and is what every later call returns. Dropping the sender does the
/// same, without anyone to tell.
pub struct Sender {
    ram: RamMap,
    queue: Arc<WorkQueue>,
    pool: Option<Arc<PoolRun>>,
    max_device_state: u32,
    cancel: CancelHandle,
    unblock: Vec<UnblockGuard>,
    stats: StatsHandle,
    threads: Vec<JoinHandle<()>>,
    filling: Option<PageBatch>,
    /// Pages have been queued since the last sync.
    open: bool,
    zero_pages: ZeroPages,
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender")
            .field("channels", &self.threads.len())
            .finish_non_exhaustive()
    }
}

impl Sender {
    /// Opens the channels and starts their threads.
    ///
    /// # Errors
    /// [`Error::Config`] for 0 channels; [`Error::Channel`] if one can not be opened; [`Error::Method`].
    pub fn start(
        ram: RamMap,
        method: &dyn Method,
        transport: &dyn Transport,
        config: &SenderConfig,
    ) -> Result<Self, Error> {
        let geometry = ram.geometry()?;
        let sender = Self::start_with(geometry, ram, method, transport, config, Depth::References)?;
        if let Some(block) = sender.ram.blocks().first() {
            sender.queue.stock(block);
        }
        Ok(sender)
    }

    /// Starts, for packets of a shape that `ram` may not show.
    pub(crate) fn start_with(
        geometry: Geometry,
        ram: RamMap,
        method: &dyn Method,
        transport: &dyn Transport,
        config: &SenderConfig,
        depth: Depth,
    ) -> Result<Self, Error> {
        if config.channels == 0 {
            return Err(Error::Config("a transfer needs at least one channel".into()));
        }
        if config.checksums != Checksums::Off && !checksum::AVAILABLE {
            return Err(checksum::missing());
        }
        let channels = usize::from(config.channels);
        let workers = method.pool().map(|pool| pool.workers);
        let threads = workers.as_ref().map_or(0, |workers| workers.threads().max(1));
        let mut sender = Self {
            queue: Arc::new(WorkQueue::new(channels, threads, depth)),
            pool: None,
            max_device_state: config.max_device_state,
            cancel: config.cancel.clone(),
            unblock: Vec::with_capacity(channels + 1),
            stats: StatsHandle::new(channels),
            threads: Vec::with_capacity(channels),
            filling: None,
            open: false,
            zero_pages: config.zero_pages,
            ram,
        };
        sender.unblock_on_failure(Box::new(Arc::clone(&sender.queue)));
        let started = (|| {
            if let Some(workers) = workers {
                let preparers = (0..threads).map(|_| method.preparer()).collect::<Result<_, _>>();
                sender.pool = Some(Arc::new(PoolRun {
                    queue: Arc::clone(&sender.queue),
                    workers,
                    threads,
                    preparers: Mutex::new(preparers.map_err(|source| Error::Prepare { source })?),
                    zero_pages: config.zero_pages,
                    cancel: config.cancel.clone(),
                }));
            }
            sender.open_channels(geometry, method, transport, config)
        })();
        if let Err(error) = started {
            // Known to whoever holds the handle before the engine's own end cancels the transfer.
            sender.cancel.trip(error.clone());
            return Err(error);
        }
        Ok(sender)
    }

    fn open_channels(
        &mut self,
        geometry: Geometry,
        method: &dyn Method,
        transport: &dyn Transport,
        config: &SenderConfig,
    ) -> Result<(), Error> {
        let packet_num = Arc::new(AtomicU64::new(0));
        let observer = method.observer();
        let mut busy = Vec::with_capacity(config.channels.into());
        for id in 0..config.channels {
            let failed = |source| Error::Channel {
                channel: id,
                doing: "connecting",
                source,
            };
            let channel = transport.open(id).map_err(failed)?;
            self.unblock_on_failure(channel.unblock_handle().map_err(failed)?);
            busy.push(channel.busy_at_once());
            let preparing = match &self.pool {
                Some(pool) => Preparing::Pool(Arc::clone(pool)),
                None => Preparing::Here(
                    method
                        .preparer()
                        .map_err(|source| Error::Method { channel: id, source })?,
                ),
            };
            let worker = SendWorker {
                id,
                uuid: config.uuid,
                queue: Arc::clone(&self.queue),
                stats: self.stats.clone(),
                packet_num: Arc::clone(&packet_num),
                geometry,
                kind: method.kind(),
                preparing,
                observer: observer.clone(),
                channel,
                zero_pages: config.zero_pages,
                flags: config.flags,
                checksums: config.checksums,
                progress: config.progress.clone(),
            };
            let cancel = self.cancel.clone();
            let thread = std::thread::Builder::new()
                .name(format!("multifd-send-{id}"))
                .spawn(move || {
                    let result = catch_unwind(AssertUnwindSafe(|| worker.run()));
                    if let Err(error) = result.unwrap_or(Err(Error::Panicked { channel: id })) {
                        cancel.trip(error);
                    }
                })
                .map_err(|e| failed(e.into()))?;
            self.threads.push(thread);
        }
        if let Some(most) = limit_of_all(&busy) {
            self.queue.limit_busy(most);
        }
        Ok(())
    }

    /// Queues the page at `offset` (bytes) of the block at index `block` of the RAM map.
    ///
    /// # Errors
    /// [`Error::Block`] for a page that does not exist, [`Error::Config`] for a block that does not exist or an offset
    /// that is not page-aligned; else the transfer's first error.
    pub fn queue_page(&mut self, block: usize, offset: u64) -> Result<(), Error> {
        let target = self.block(block)?;
        self.push(&target, offset)
    }

    /// Queues all pages of `len` bytes from `offset` of the block at index `block`.
    ///
    /// # Errors
    /// As [`Sender::queue_page`].
    pub fn queue_range(&mut self, block: usize, offset: u64, len: u64) -> Result<(), Error> {
        let target = self.block(block)?;
        let end = offset
            .checked_add(len)
            .filter(|&end| end <= target.len())
            .ok_or_else(|| BlockError::Outside {
                block: target.name().into(),
                offset,
                len,
                block_len: target.len(),
            })?;
        let mut at = offset;
        while at < end {
            self.push(&target, at)?;
            at += u64::from(target.page_size());
        }
        Ok(())
    }

    /// Queues the pages whose bit is set in a dirty bitmap: bit `i % 64` of word `i / 64` is page `i` of the block.
    ///
    /// # Errors
    /// As [`Sender::queue_page`].
    pub fn queue_bitmap(&mut self, block: usize, bitmap: &[u64]) -> Result<(), Error> {
        let target = self.block(block)?;
        for (index, &word) in bitmap.iter().enumerate() {
            let mut left = word;
            while left != 0 {
                let number = index as u64 * 64 + u64::from(left.trailing_zeros());
                self.push(&target, number.saturating_mul(target.page_size().into()))?;
                left &= left - 1;
            }
        }
        Ok(())
    }

    fn block(&self, index: usize) -> Result<Arc<RamBlock>, Error> {
        self.ram
            .get(index)
            .cloned()
            .ok_or_else(|| Error::Config(format!("there is no RAM block {index}")))
    }

    fn push(&mut self, target: &Arc<RamBlock>, offset: u64) -> Result<(), Error> {
        if !offset.is_multiple_of(target.page_size().into()) {
            return Err(Error::Config(format!(
                "offset {offset:#x} of RAM block {:?} is not a multiple of its page size {:#x}",
                target.name(),
                target.page_size()
            )));
        }
        target.page(offset)?;
        if let Some(batch) = &self.filling
            && (batch.is_full() || !Arc::ptr_eq(batch.block(), target))
        {
            self.hand_over()?;
        }
        self.open = true;
        self.filling
            .get_or_insert_with(|| self.queue.spare(target))
            .push(offset);
        Ok(())
    }

    /// Queues a buffer that is no guest pages; it passes straight through to a channel. See [`Sender::buffers`] for more
    /// ways to.
    ///
    /// # Errors
    /// As [`BufferQueue::queue`].
    pub fn queue_buffers(&self, buffers: Buffers) -> Result<(), Error> {
        self.buffers().queue(buffers)
    }

    /// Where buffers that are no guest pages are queued, by several threads at once, beside pages.
    pub fn buffers(&self) -> BufferQueue {
        BufferQueue {
            queue: Arc::clone(&self.queue),
            channels: self.threads.len(),
            max: self.max_device_state,
            cancel: self.cancel.clone(),
        }
    }

    /// The way in for packets that another engine has received.
    pub(crate) fn passage(&self, geometry: Geometry) -> Passage {
        Passage {
            queue: Arc::clone(&self.queue),
            pool: self.pool.clone(),
            buffers: self.buffers(),
            geometry,
            cancel: self.cancel.clone(),
        }
    }

    /// Ends a round: returns when all that was queued has been sent, as far as `scope` says.
    ///
    /// # Errors
    /// The transfer's first error.
    pub fn sync(&mut self, scope: SyncScope) -> Result<(), Error> {
        self.hand_over()?;
        self.queue.sync(scope).map_err(|_| self.failure())?;
        self.open = false;
        Ok(())
    }

    /// What has been sent so far.
    pub fn stats(&self) -> Stats {
        self.stats.read_first(self.stats.counters.len())
    }

    /// A handle to read the counts from elsewhere.
    pub fn stats_handle(&self) -> StatsHandle {
        self.stats.clone()
    }

    /// A handle to cancel the transfer from elsewhere.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.cancel.clone()
    }

    /// Sends what is still queued, closes the channels and joins their threads.
    ///
    /// # Errors
    /// [`Error::Config`] if pages were queued after the last [`Sender::sync`], which no receiver takes; else the
    /// transfer's first error.
    pub fn finish(mut self) -> Result<Stats, Error> {
        self.cancel.check()?;
        if self.open {
            return Err(Error::Config(
                "pages were queued and no sync came after them: a receiver would refuse the transfer".into(),
            ));
        }
        self.hand_over()?;
        self.queue.close();
        self.join();
        self.cancel.check()?;
        Ok(self.stats())
    }

    fn unblock_on_failure(&mut self, handle: Box<dyn Unblock>) {
        self.unblock.push(self.cancel.also_unblock(handle));
    }

    fn failure(&self) -> Error {
        self.cancel.failure()
    }

    /// Gives the batch being filled to the channels, or to the pool.
    fn hand_over(&mut self) -> Result<(), Error> {
        match self.filling.take() {
            Some(batch) if !batch.is_empty() => self.give(batch),
            _ => self.cancel.check(),
        }
    }

    fn give(&self, mut batch: PageBatch) -> Result<(), Error> {
        // Rather than wait for the channels, do some of what they would.
        if self.zero_pages == ZeroPages::Detect && self.queue.is_ahead() {
            batch.sort_out_zero_pages()?;
        }
        match &self.pool {
            None => self.queue.push(Work::Pages(batch)),
            Some(pool) => self.queue.push_raw(batch).map(|()| pool.kick()),
        }
        .map_err(|_| self.failure())
    }

    fn join(&mut self) {
        for thread in self.threads.drain(..) {
            // A panic has been caught and kept as the transfer's error.
            let _ = thread.join();
        }
        self.queue.wait_jobs();
        self.unblock.clear();
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.cancel.trip(Error::Cancelled);
        }
        self.join();
    }
}
