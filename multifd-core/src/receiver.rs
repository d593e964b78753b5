//! The receiving engine: one thread a channel, rounds joined by the client.

use crate::packet_numbers::PacketNumbers;
use crate::recv_worker::RecvWorker;
use crate::relay::Gate;
use crate::rounds::{Rounds, Stopped};
use crate::schedule::interrupt_nobody;
use crate::{
    BlockError, CancelHandle, DeviceStateSink, Error, MemoryBudget, Method, Prefault, Progress, RamMap,
    RecvChannel, Stats, StatsHandle, Unblock, UnblockGuard, checksum,
};
use multifd_packet::Geometry;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

/// What a [`Receiver`] is made with.
#[derive(Clone)]
pub struct ReceiverConfig {
    /// Methods that may be decoded; which one is used, each packet says. Empty means no compression only.
    pub methods: Vec<Arc<dyn Method>>,
    /// The only UUID accepted; without one, all channels must agree.
    pub uuid: Option<[u8; 16]>,
    /// Most channels that may connect.
    pub max_channels: usize,
    /// Most bytes one device-state packet may carry.
    pub max_device_state: u32,
    /// Who takes device state; without one it is refused.
    pub device_state: Option<Arc<dyn DeviceStateSink>>,
    /// What device state is counted in while it is taken, over all channels.
    pub memory_budget: MemoryBudget,
    /// Whether every packet must carry a checksum of itself and of its payload; those that do are checked in any case. Device state,
    /// which has no room for one, is refused then. Needs the feature `checksum`.
    pub require_checksums: bool,
    /// The clock of this transfer's connections.
    pub progress: Arc<Progress>,
    /// Ends this transfer from elsewhere, and is told of its first error. One a transfer.
    pub cancel: CancelHandle,
}

impl Default for ReceiverConfig {
    fn default() -> Self {
        Self {
            methods: Vec::new(),
            uuid: None,
            max_channels: 255,
            max_device_state: 16 << 20,
            device_state: None,
            memory_budget: MemoryBudget::default(),
            require_checksums: false,
            progress: Arc::new(Progress::new(Duration::from_secs(30))),
            cancel: CancelHandle::default(),
        }
    }
}

impl std::fmt::Debug for ReceiverConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReceiverConfig")
            .field("max_channels", &self.max_channels)
            .finish_non_exhaustive()
    }
}

/// Where pages go.
pub(crate) enum Target {
    /// Into these blocks.
    Ram(RamMap),
    /// On, to another engine.
    Passing(Arc<Gate>),
}

/// What the channels' threads share.
pub(crate) struct Shared {
    pub(crate) target: Target,
    pub(crate) methods: Vec<Arc<dyn Method>>,
    /// Methods that have been used: a bit each, in the order of their declaration.
    pub(crate) seen: AtomicU32,
    pub(crate) require_checksums: bool,
    pub(crate) uuid: OnceLock<[u8; 16]>,
    pub(crate) max_device_state: u32,
    pub(crate) device_state: Option<Arc<dyn DeviceStateSink>>,
    pub(crate) memory_budget: MemoryBudget,
    pub(crate) progress: Arc<Progress>,
    pub(crate) rounds: Arc<Rounds>,
    pub(crate) stats: StatsHandle,
    /// The numbers of the RAM packets that have come.
    pub(crate) numbers: PacketNumbers,
}

/// Receives pages and buffers over many channels. It ends complete or with an error, never in between.
///
/// The first error of any channel stops all of them and is what every later call returns. Dropping the receiver stops
/// the transfer too.
///
/// The channels' threads run with the policy `SCHED_BATCH`, if whoever attaches them has `SCHED_OTHER`: they interrupt nobody
/// when they wake up. Any other policy they inherit as threads do. A seccomp filter must let `sched_getscheduler` and
/// `sched_setscheduler` through, or refuse them with an error.
pub struct Receiver {
    shared: Arc<Shared>,
    cancel: CancelHandle,
    unblock: Vec<UnblockGuard>,
    threads: Vec<JoinHandle<()>>,
    geometry: Geometry,
    max_channels: usize,
    /// Gives new memory its pages; its threads end after the channels'.
    prefault: Prefault,
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver")
            .field("channels", &self.threads.len())
            .finish_non_exhaustive()
    }
}

impl Receiver {
    /// A receiver into `ram`, without channels yet.
    ///
    /// # Errors
    /// [`Error::Block`] if the RAM map has no packet geometry, or a block is frozen; [`Error::Config`].
    pub fn new(ram: RamMap, config: ReceiverConfig) -> Result<Self, Error> {
        let geometry = ram.geometry()?;
        if let Some(block) = ram.blocks().iter().find(|block| block.is_frozen()) {
            return Err(Error::Block(BlockError::Map {
                block: block.name().into(),
                reason: "it is frozen: nothing can be received into it",
            }));
        }
        Self::with(Target::Ram(ram), geometry, config)
    }

    /// A receiver whose pages go on to a sender, once `gate` is open.
    pub(crate) fn passing(
        gate: Arc<Gate>,
        geometry: Geometry,
        config: ReceiverConfig,
    ) -> Result<Self, Error> {
        Self::with(Target::Passing(gate), geometry, config)
    }

    fn with(target: Target, geometry: Geometry, config: ReceiverConfig) -> Result<Self, Error> {
        if config.require_checksums && !checksum::AVAILABLE {
            return Err(checksum::missing());
        }
        let rounds = Arc::new(Rounds::default());
        let unblock = vec![config.cancel.also_unblock(Box::new(Arc::clone(&rounds)))];
        let uuid = OnceLock::new();
        if let Some(expected) = config.uuid {
            let _ = uuid.set(expected);
        }
        let shared = Shared {
            target,
            methods: config.methods,
            seen: AtomicU32::new(0),
            require_checksums: config.require_checksums,
            uuid,
            max_device_state: config.max_device_state,
            device_state: config.device_state,
            memory_budget: config.memory_budget,
            progress: config.progress,
            rounds,
            stats: StatsHandle::new(256),
            numbers: PacketNumbers::default(),
        };
        let max_channels = config.max_channels.min(255);
        Ok(Self {
            shared: Arc::new(shared),
            cancel: config.cancel,
            unblock,
            threads: Vec::new(),
            geometry,
            max_channels,
            prefault: Prefault::new(),
        })
    }

    /// Takes a channel in and starts its thread. Its id is not known until its init packet has come.
    ///
    /// # Errors
    /// [`Error::ChannelCount`] if there are too many; [`Error::Channel`] if no thread can be had; else the
    /// transfer's first error.
    pub fn attach(&mut self, channel: Box<dyn RecvChannel>) -> Result<(), Error> {
        self.cancel.check()?;
        let attached = self.start(channel);
        if let Err(error) = &attached {
            // A channel that nobody serves would be waited for in vain.
            self.cancel.trip(error.clone());
        }
        attached
    }

    fn start(&mut self, mut channel: Box<dyn RecvChannel>) -> Result<(), Error> {
        if self.threads.len() >= self.max_channels {
            return Err(Error::ChannelCount {
                found: self.threads.len() + 1,
                expected: self.max_channels,
            });
        }
        let slot = self.shared.rounds.add();
        let id = u8::try_from(slot).unwrap_or(u8::MAX);
        let failed = |source| Error::Channel {
            channel: id,
            doing: "starting",
            source,
        };
        self.unblock_on_failure(channel.unblock_handle().map_err(failed)?);
        channel.set_progress(Arc::clone(&self.shared.progress));
        let worker = RecvWorker {
            shared: Arc::clone(&self.shared),
            slot,
            channel,
            geometry: self.geometry,
            id,
            packets: 0,
            unpackers: Vec::new(),
            pages_since_sync: false,
            last_sync: None,
            prefault: self.prefault.user(),
        };
        let cancel = self.cancel.clone();
        let thread = std::thread::Builder::new()
            .name(format!("multifd-recv-{slot}"))
            .spawn(move || {
                interrupt_nobody();
                let result = catch_unwind(AssertUnwindSafe(|| worker.run()));
                if let Err(error) = result.unwrap_or(Err(Error::Panicked { channel: id })) {
                    cancel.trip(error);
                }
            })
            .map_err(|e| failed(e.into()))?;
        self.threads.push(thread);
        Ok(())
    }

    /// How many channels have been attached.
    pub fn channels(&self) -> usize {
        self.shared.rounds.channels()
    }

    /// The methods of the packets with contents that have come so far, in the order of [`multifd_packet::Method::ALL`].
    pub fn methods(&self) -> Vec<multifd_packet::Method> {
        let seen = self.shared.seen.load(Ordering::Relaxed);
        let all = multifd_packet::Method::ALL.into_iter();
        all.filter(|&method| seen & (1 << method as u32) != 0).collect()
    }

    /// The VM's UUID, once a channel has said it; the one asked for, if there is one.
    pub fn uuid(&self) -> Option<[u8; 16]> {
        self.shared.uuid.get().copied()
    }

    /// Waits until every attached channel has said its id; the ids must be 0..[`Receiver::channels`].
    ///
    /// # Errors
    /// [`Error::ChannelOutOfRange`], or the transfer's first error.
    pub fn wait_identified(&self) -> Result<(), Error> {
        self.settle(self.shared.rounds.wait_identified())
    }

    /// Joins a round: returns when all that every channel sent before its SYNC is in place.
    ///
    /// # Errors
    /// [`Error::EndedEarly`], or the transfer's first error. A channel that stalls is one; having no channel, too.
    pub fn wait_sync(&self) -> Result<(), Error> {
        if self.threads.is_empty() {
            return Err(Error::ChannelCount {
                found: 0,
                expected: 1,
            });
        }
        self.settle(self.shared.rounds.join())
    }

    /// Waits for the round's end and lets no channel go on yet; `false` if the channels have ended instead.
    pub(crate) fn hold_round(&self) -> Result<bool, Error> {
        self.settle(self.shared.rounds.hold())
    }

    /// Lets the channels go on after [`Receiver::hold_round`].
    pub(crate) fn release_round(&self) {
        self.shared.rounds.release();
    }

    fn settle<T>(&self, outcome: Result<Result<T, Error>, Stopped>) -> Result<T, Error> {
        match outcome {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                self.cancel.trip(error);
                Err(self.failure())
            }
            Err(Stopped) => Err(self.failure()),
        }
    }

    fn unblock_on_failure(&mut self, handle: Box<dyn Unblock>) {
        self.unblock.push(self.cancel.also_unblock(handle));
    }

    fn failure(&self) -> Error {
        self.cancel.failure()
    }

    /// What has been received so far, by channel id.
    pub fn stats(&self) -> Stats {
        self.shared.stats.read_first(self.channels())
    }

    /// A handle to read the counts from elsewhere.
    pub fn stats_handle(&self) -> StatsHandle {
        self.shared.stats.clone()
    }

    /// A handle to cancel the transfer from elsewhere.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.cancel.clone()
    }

    /// Whether RAM packets are missing: a sender numbers them over all its channels, from 0 and
    /// without gaps. A packet that was lost shows so, and a channel that nobody knew of.
    /// [`Receiver::finish`] checks this, too.
    ///
    /// # Errors
    /// [`Error::MissingPackets`].
    pub fn check_numbers(&self) -> Result<(), Error> {
        let (found, expected) = self.shared.numbers.counts();
        if found < expected {
            return Err(Error::MissingPackets {
                found,
                expected,
                channels: self.channels(),
            });
        }
        Ok(())
    }

    /// Waits until every channel has ended, and joins the threads. `Ok` means complete: every
    /// channel ended where a message could have begun, nothing came after the last joined round,
    /// and no RAM packet is missing.
    ///
    /// # Errors
    /// The transfer's first error.
    pub fn finish(mut self) -> Result<Stats, Error> {
        self.shared.rounds.close();
        self.join();
        self.cancel.check()?;
        self.check_numbers()?;
        Ok(self.stats())
    }

    fn join(&mut self) {
        for thread in self.threads.drain(..) {
            // A panic has been caught and kept as the transfer's error.
            let _ = thread.join();
        }
        self.unblock.clear();
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.cancel.trip(Error::Cancelled);
        }
        self.join();
    }
}
