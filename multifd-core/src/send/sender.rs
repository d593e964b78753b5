//! The sender: its channels, and the client's view of queueing, rounds and the end.

use super::config::{SenderConfig, check};
use super::pool::PoolRun;
use super::queue::{Depth, Work, WorkQueue};
use super::sync_scope::SyncScope;
use super::worker::{Preparing, SendWorker};
use super::{BufferQueue, PacketQueue};
use crate::{
    BlockError, CancelHandle, Common, DeviceBuffer, Encode, Error, PageBatch, Placement, RamBlock,
    RamMap, Stats, StatsHandle, ThreadRole, Transport, Unblock, UnblockGuard, ZeroPages,
};
use crate::{event, trace};
use multifd_packet::Geometry;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Sends pages and buffers over many channels. The caller keeps nothing across rounds.
///
/// The first error of any channel stops all of them and is what every later call returns. Dropping
/// the sender without [`Sender::finish`] stops them, too, and the receiver sees a failure.
pub struct Sender {
    ram: RamMap,
    queue: Arc<WorkQueue>,
    pool: Option<Arc<PoolRun>>,
    common: Common,
    cancel: CancelHandle,
    unblock: Vec<UnblockGuard>,
    stats: StatsHandle,
    threads: Vec<JoinHandle<()>>,
    filling: Option<PageBatch>,
    /// Pages have been queued since the last sync.
    open: bool,
    zero_pages: ZeroPages,
    placement: Placement,
    geometry: Geometry,
    rounds: u64,
    span: trace::Transfer,
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender")
            .field("channels", &self.threads.len())
            .finish_non_exhaustive()
    }
}

impl Sender {
    /// Opens the channels and starts their threads, for pages of `ram`.
    ///
    /// # Errors
    /// [`Error::Misconfigured`] for 0 channels; [`Error::Unsupported`] for what the transport or
    /// this build cannot do; [`Error::Channel`] if a channel cannot be opened; [`Error::Method`].
    pub fn start<'a>(
        ram: RamMap,
        encode: impl Into<Encode<'a>>,
        transport: &dyn Transport,
        config: &SenderConfig,
    ) -> Result<Self, Error> {
        let geometry = ram.geometry()?;
        let first = ram.blocks().first().cloned();
        let sender = Self::start_with(
            (geometry, ram),
            &encode.into(),
            transport,
            config,
            Depth::References,
        )?;
        if let Some(block) = first {
            sender.queue.stock(&block);
        }
        Ok(sender)
    }

    /// Opens the channels and starts their threads, for packets of the shape `geometry` whose pages
    /// lie elsewhere: see [`Sender::packets`].
    ///
    /// # Errors
    /// As [`Sender::start`].
    pub fn start_for_packets<'a>(
        geometry: Geometry,
        encode: impl Into<Encode<'a>>,
        transport: &dyn Transport,
        config: &SenderConfig,
    ) -> Result<Self, Error> {
        if transport.capabilities().placement == Placement::Fixed {
            return Err(Error::Unsupported(
                "packets cannot go to fixed places: their RAM blocks are not here".into(),
            ));
        }
        let shape = (geometry, RamMap::new());
        Self::start_with(shape, &encode.into(), transport, config, Depth::Copies)
    }

    fn start_with(
        (geometry, ram): (Geometry, RamMap),
        encode: &Encode<'_>,
        transport: &dyn Transport,
        config: &SenderConfig,
        depth: Depth,
    ) -> Result<Self, Error> {
        let capabilities = transport.capabilities();
        check(encode.method.kind(), capabilities, config)?;
        let channels = usize::from(config.channels);
        let workers = encode.workers.clone();
        let threads = workers
            .as_ref()
            .map_or(0, |workers| workers.threads().max(1));
        let depth = config.queue_depth.map_or(depth, Depth::Fixed);
        let mut sender = Self {
            queue: Arc::new(WorkQueue::new(channels, threads, depth)),
            pool: None,
            common: config.common.clone(),
            cancel: config.common.cancel.clone(),
            unblock: Vec::with_capacity(channels + 1),
            stats: StatsHandle::new(channels),
            threads: Vec::with_capacity(channels),
            filling: None,
            open: false,
            zero_pages: config.zero_pages.clone(),
            placement: capabilities.placement,
            geometry,
            rounds: 0,
            span: trace::Transfer::new("send"),
            ram,
        };
        sender.unblock_on_failure(Box::new(Arc::clone(&sender.queue)));
        let started = (|| {
            if let Some(workers) = workers {
                let preparers = (0..threads).map(|_| encode.method.preparer());
                let preparers = preparers.collect::<Result<_, _>>();
                sender.pool = Some(Arc::new(PoolRun {
                    queue: Arc::clone(&sender.queue),
                    workers,
                    threads,
                    preparers: Mutex::new(preparers.map_err(|cause| Error::Prepare { cause })?),
                    zero_pages: config.zero_pages.clone(),
                    cancel: sender.cancel.clone(),
                }));
            }
            sender.open_channels(encode, transport, config)
        })();
        if let Err(error) = started {
            // Known to all holders of the handle before the engine's own end cancels the transfer.
            sender.cancel.trip(error.clone());
            return Err(error);
        }
        Ok(sender)
    }

    fn open_channels(
        &mut self,
        encode: &Encode<'_>,
        transport: &dyn Transport,
        config: &SenderConfig,
    ) -> Result<(), Error> {
        let packet_num = Arc::new(AtomicU64::new(0));
        let observer = encode.method.observer();
        for id in 0..config.channels {
            let failed = |cause| Error::Channel {
                channel: id,
                doing: "connecting",
                cause,
            };
            let channel = transport.open(id).map_err(failed)?;
            self.unblock_on_failure(channel.unblock_handle().map_err(failed)?);
            let preparing = match &self.pool {
                Some(pool) => Preparing::Pool(Arc::clone(pool)),
                None => Preparing::Here(
                    encode
                        .method
                        .preparer()
                        .map_err(|cause| Error::Method { channel: id, cause })?,
                ),
            };
            let worker = SendWorker {
                id,
                uuid: config.uuid,
                queue: Arc::clone(&self.queue),
                stats: self.stats.clone(),
                packet_num: Arc::clone(&packet_num),
                geometry: self.geometry,
                kind: encode.method.kind(),
                preparing,
                observer: observer.clone(),
                channel,
                zero_pages: config.zero_pages.clone(),
                flags: config.flags,
                checksums: config.checksums,
                progress: Arc::clone(&self.common.progress),
            };
            let (cancel, common, span) =
                (self.cancel.clone(), self.common.clone(), self.span.clone());
            let thread = std::thread::Builder::new()
                .name(format!("multifd-send-{id}"))
                .spawn(move || {
                    let _transfer = span.enter();
                    let _channel = trace::channel("send", id);
                    let result = catch_unwind(AssertUnwindSafe(|| {
                        common.started(ThreadRole::Send { channel: id });
                        worker.run()
                    }));
                    if let Err(error) = result.unwrap_or(Err(Error::Panicked { channel: id })) {
                        cancel.trip(error);
                    }
                })
                .map_err(|e| failed(e.into()))?;
            self.threads.push(thread);
        }
        let useful = config
            .busy_channels
            .or(transport.capabilities().useful_channels);
        if let Some(most) = useful {
            event!(most, "fewer channels get work at once");
            self.queue.limit_busy(most);
        }
        Ok(())
    }

    /// Queues the page at `offset` (bytes) of the block at index `block` of the RAM map. Blocks while
    /// the queue is full.
    ///
    /// # Errors
    /// [`Error::Block`] for a page that does not exist, [`Error::NoSuchBlock`],
    /// [`Error::Misconfigured`] for an offset that is not page-aligned; else the transfer's first
    /// error.
    pub fn queue_page(&mut self, block: usize, offset: u64) -> Result<(), Error> {
        let target = self.block(block)?;
        self.push(&target, offset)
    }

    /// Queues all pages of `len` bytes from `offset` of the block at index `block`. Blocks while the
    /// queue is full: most of a large range has been sent when this returns.
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
        check_aligned(&target, offset)?;
        let mut at = offset;
        while at < end {
            at = self.room(&target)?.fill(at, end);
        }
        Ok(())
    }

    /// Queues the pages whose bit is set in a dirty bitmap: bit `i % 64` of word `i / 64` is page
    /// `i` of the block. Blocks while the queue is full.
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
        let blocks = self.ram.blocks().len();
        let block = self.ram.get(index).cloned();
        block.ok_or(Error::NoSuchBlock { index, blocks })
    }

    fn push(&mut self, target: &Arc<RamBlock>, offset: u64) -> Result<(), Error> {
        check_aligned(target, offset)?;
        target.page(offset)?;
        self.room(target)?.push(offset);
        Ok(())
    }

    /// The batch that is being filled, with room for a page of this block.
    fn room(&mut self, target: &Arc<RamBlock>) -> Result<&mut PageBatch, Error> {
        if let Some(batch) = &self.filling
            && (batch.is_full() || !Arc::ptr_eq(batch.block(), target))
        {
            self.hand_over()?;
        }
        self.open = true;
        Ok(self.filling.get_or_insert_with(|| self.queue.spare(target)))
    }

    /// Queues a buffer that is not guest pages; it goes straight to a channel. See
    /// [`Sender::buffers`] for more ways.
    ///
    /// # Errors
    /// As [`BufferQueue::queue`].
    pub fn queue_buffer(&self, buffer: DeviceBuffer) -> Result<(), Error> {
        self.buffers().queue(buffer)
    }

    /// Where several threads at once queue buffers that are not guest pages, beside pages.
    pub fn buffers(&self) -> BufferQueue {
        BufferQueue {
            queue: Arc::clone(&self.queue),
            channels: self.threads.len(),
            max: self.common.max_device_state,
            placement: self.placement,
            cancel: self.cancel.clone(),
        }
    }

    /// Where several threads at once queue whole packets that another engine has received.
    pub fn packets(&self) -> PacketQueue {
        PacketQueue {
            queue: Arc::clone(&self.queue),
            pool: self.pool.clone(),
            cancel: self.cancel.clone(),
        }
    }

    /// Ends a round: returns when all that was queued has been sent, as far as `scope` says.
    ///
    /// # Errors
    /// The transfer's first error.
    pub fn sync(&mut self, scope: SyncScope) -> Result<(), Error> {
        let _transfer = self.span.enter();
        let _round = trace::round("send", self.rounds);
        self.rounds += 1;
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

    /// Sends what is still queued, closes the channels and joins their threads. That all was sent
    /// does not say that it has arrived: that is for a main connection
    /// ([`Outgoing::finish`](crate::Outgoing::finish)).
    ///
    /// # Errors
    /// [`Error::Misconfigured`] if pages were queued after the last [`Sender::sync`], which no
    /// receiver takes; else the transfer's first error.
    pub fn finish(mut self) -> Result<Stats, Error> {
        self.cancel.check()?;
        if self.open {
            return Err(Error::Misconfigured(
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
        if !matches!(self.zero_pages, ZeroPages::Off) && self.queue.is_ahead() {
            batch.sort_out_zero_pages(&self.zero_pages)?;
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

fn check_aligned(block: &RamBlock, offset: u64) -> Result<(), Error> {
    if offset.is_multiple_of(block.page_size().into()) {
        return Ok(());
    }
    Err(Error::Misconfigured(format!(
        "offset {offset:#x} of RAM block {:?} is not a multiple of its page size {:#x}",
        block.name(),
        block.page_size()
    )))
}
