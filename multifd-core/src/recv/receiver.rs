//! The receiver: its channels, and the client's view of rounds and the end.

use super::device_handlers::DeviceSink;
use super::packet_numbers::PacketNumbers;
use super::rounds::{Halt, Rounds};
use super::shared::{SeenMethods, Shared};
use super::worker::RecvWorker;
use crate::{
    CancelHandle, ChannelError, ChannelSource, Common, Destination, Error, MemoryBudget, Method,
    RecvChannel, Stats, StatsHandle, ThreadRole, Unblock, UnblockGuard, checksum,
};
use crate::{event, trace};
use multifd_packet::{Compression, Uuid};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

config! {
    /// The configuration of a [`Receiver`].
    #[derive(Clone)]
    pub struct ReceiverConfig {
        /// What both engines are configured with.
        common: Common = Common::default(),
        /// Methods that may be decoded, one of each kind. Each packet says which one it uses.
        /// Empty: no compression only.
        methods: Vec<Arc<dyn Method>> = Vec::new(),
        /// The only UUID accepted. `None`: all channels must agree.
        uuid: Option<Uuid> = None,
        /// Most channels that may be attached, up to 255.
        max_channels: usize = 255,
        /// Who takes device state. `None`: it is refused.
        device_state: Option<Arc<dyn DeviceSink>> = None,
        /// Counts device state while it is taken, over all channels.
        memory_budget: MemoryBudget = MemoryBudget::default(),
        /// Whether every packet must carry a checksum of itself and of its payload; those that do
        /// are checked in any case. Device state, which has no place for one, is refused then.
        /// Needs the feature `checksum`.
        require_checksums: bool = false,
    }
}
common_setters!(ReceiverConfig, common);

impl std::fmt::Debug for ReceiverConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReceiverConfig")
            .field("common", &self.common)
            .field("max_channels", &self.max_channels)
            .finish_non_exhaustive()
    }
}

/// When the channels of a [`ChannelSource`] come: see [`Receiver::attach_all`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Gathering {
    /// They should all be there: another connection has said so.
    Due,
    /// The first one is waited for. When it sends its first packet, all have connected: QEMU, and
    /// our [`Sender`](crate::Sender), open all of them first.
    Awaited,
}

/// Receives pages and buffers over many channels. It ends complete or with an error.
///
/// The first error of any channel stops all of them and is what every later call returns. Dropping
/// the receiver stops the transfer, too.
pub struct Receiver {
    shared: Arc<Shared>,
    cancel: CancelHandle,
    unblock: Vec<UnblockGuard>,
    threads: Vec<JoinHandle<()>>,
    max_channels: usize,
    span: trace::Transfer,
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver")
            .field("channels", &self.threads.len())
            .finish_non_exhaustive()
    }
}

impl Receiver {
    /// A receiver into `destination`, such as a [`RamMap`](crate::RamMap), without channels yet.
    ///
    /// # Errors
    /// Those of [`Destination::start`]; [`Error::Misconfigured`] for two methods of one kind;
    /// [`Error::Unsupported`] for checksums without the feature.
    pub fn new(
        destination: impl Destination + 'static,
        config: ReceiverConfig,
    ) -> Result<Self, Error> {
        if config.require_checksums && !checksum::AVAILABLE {
            return Err(checksum::missing());
        }
        for (at, method) in config.methods.iter().enumerate() {
            let kind = method.kind();
            if config
                .methods
                .iter()
                .take(at)
                .any(|other| other.kind() == kind)
            {
                return Err(Error::Misconfigured(format!(
                    "two methods of the kind {kind} were given: packets could not tell them apart"
                )));
            }
        }
        let geometry = destination.start()?;
        let cancel = config.common.cancel.clone();
        let rounds = Arc::new(Rounds::default());
        let unblock = vec![cancel.also_unblock(Box::new(Arc::clone(&rounds)))];
        let shared = Shared {
            destination: Box::new(destination),
            geometry,
            methods: config.methods,
            seen: SeenMethods::default(),
            require_checksums: config.require_checksums,
            uuid: config.uuid.map_or_else(OnceLock::new, OnceLock::from),
            device_state: config.device_state,
            memory_budget: config.memory_budget,
            common: config.common,
            rounds,
            stats: StatsHandle::new(256),
            numbers: PacketNumbers::default(),
        };
        Ok(Self {
            shared: Arc::new(shared),
            cancel,
            unblock,
            threads: Vec::new(),
            max_channels: config.max_channels.min(255),
            span: trace::Transfer::new("recv"),
        })
    }

    /// Takes a channel in and starts its thread. Its number is not known until its init packet has
    /// come.
    ///
    /// # Errors
    /// [`Error::ChannelCount`] if there are too many; [`Error::Channel`] if no thread can be had;
    /// else the transfer's first error.
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
        let order = u8::try_from(slot).unwrap_or(u8::MAX);
        let failed = |cause| Error::Channel {
            channel: order,
            doing: "starting",
            cause,
        };
        self.unblock_on_failure(channel.unblock_handle().map_err(failed)?);
        // The clock may have been made long ago.
        self.shared.common.progress.touch();
        channel.set_progress(Arc::clone(&self.shared.common.progress));
        let worker = RecvWorker::new(Arc::clone(&self.shared), slot, channel);
        let (cancel, shared, span) = (
            self.cancel.clone(),
            Arc::clone(&self.shared),
            self.span.clone(),
        );
        let thread = std::thread::Builder::new()
            .name(format!("multifd-recv-{slot}"))
            .spawn(move || {
                let _transfer = span.enter();
                let _channel = trace::channel("recv", order);
                let result = catch_unwind(AssertUnwindSafe(|| {
                    shared.common.started(ThreadRole::Receive { order });
                    worker.run()
                }));
                if let Err(error) = result.unwrap_or(Err(Error::Panicked { channel: order })) {
                    cancel.trip(error);
                }
            })
            .map_err(|e| failed(e.into()))?;
        self.threads.push(thread);
        Ok(())
    }

    /// Takes in all channels of `source`, and waits until each has said its number. `expected` is
    /// how many there must be; without it, as many as have connected.
    ///
    /// # Errors
    /// [`Error::ChannelCount`] if there are fewer than expected; [`Error::Channel`] if one cannot
    /// be taken; else the transfer's first error.
    pub fn attach_all(
        &mut self,
        source: &mut dyn ChannelSource,
        expected: Option<usize>,
        gathering: Gathering,
    ) -> Result<(), Error> {
        loop {
            let have = self.channels();
            if expected == Some(have) {
                break;
            }
            let wait = expected.is_some() || (have == 0 && gathering == Gathering::Awaited);
            let next = match gathering {
                Gathering::Due if wait => source.due_channel(),
                Gathering::Due | Gathering::Awaited => source.next_channel(wait),
            };
            match next.map_err(|cause| self.accepting(have, cause))? {
                Some(channel) => self.attach(channel)?,
                None if wait => {
                    return Err(Error::ChannelCount {
                        found: have,
                        expected: expected.unwrap_or(1),
                    });
                }
                None => break,
            }
            if expected.is_none() && have == 0 && gathering == Gathering::Awaited {
                // When one channel speaks, all have connected.
                self.settle(self.shared.rounds.wait_spoken())?;
            }
        }
        event!(channels = self.channels(), "channels attached");
        self.wait_identified()
    }

    fn accepting(&self, have: usize, cause: ChannelError) -> Error {
        match cause {
            ChannelError::Stopped => self.cancel.error().unwrap_or(Error::Cancelled),
            cause => Error::Channel {
                channel: u8::try_from(have).unwrap_or(u8::MAX),
                doing: "accepting",
                cause,
            },
        }
    }

    /// Refuses a channel of `source` that came when no more were expected, if there is one by now.
    ///
    /// # Errors
    /// [`Error::ChannelCount`] if there is one; [`Error::Channel`].
    pub fn refuse_late(&self, source: &mut dyn ChannelSource) -> Result<(), Error> {
        let have = self.channels();
        let late = source.late_channel().map_err(|cause| Error::Channel {
            channel: u8::try_from(have).unwrap_or(u8::MAX),
            doing: "accepting",
            cause,
        })?;
        match late {
            Some(_) => Err(Error::ChannelCount {
                found: have + 1,
                expected: have,
            }),
            None => Ok(()),
        }
    }

    /// How many channels have been attached.
    pub fn channels(&self) -> usize {
        self.shared.rounds.channels()
    }

    /// The methods of the packets with contents that have come so far: QEMU's in the order of
    /// [`Compression::ALL`], then private ones.
    pub fn methods(&self) -> Vec<Compression> {
        self.shared.seen.all()
    }

    /// The VM's UUID, once a channel has said it; the one asked for, if there is one.
    pub fn uuid(&self) -> Option<Uuid> {
        self.shared.uuid.get().copied()
    }

    /// Waits until every attached channel has said its number; the numbers must be
    /// 0..[`Receiver::channels`].
    ///
    /// # Errors
    /// [`Error::ChannelOutOfRange`], or the transfer's first error.
    pub fn wait_identified(&self) -> Result<(), Error> {
        self.settle(self.shared.rounds.wait_identified())
    }

    /// Joins a round: returns when all that every channel sent before its SYNC is in place.
    ///
    /// # Errors
    /// [`Error::EndedEarly`], or the transfer's first error. A channel that stalls is one; having
    /// no channel, too.
    pub fn wait_sync(&self) -> Result<(), Error> {
        if self.threads.is_empty() {
            return Err(Error::ChannelCount {
                found: 0,
                expected: 1,
            });
        }
        let _transfer = self.span.enter();
        let _round = trace::round("recv", self.shared.rounds.ended());
        self.settle(self.shared.rounds.join())
    }

    /// Waits for a round's end without letting the channels go on: call
    /// [`Receiver::release_round`] for that. `false` if all channels have ended instead.
    ///
    /// # Errors
    /// [`Error::EndedEarly`], or the transfer's first error.
    pub fn hold_round(&self) -> Result<bool, Error> {
        self.settle(self.shared.rounds.hold())
    }

    /// Lets the channels go on after [`Receiver::hold_round`].
    pub fn release_round(&self) {
        self.shared.rounds.release();
    }

    fn settle<T>(&self, outcome: Result<T, Halt>) -> Result<T, Error> {
        outcome.map_err(|halt| {
            if let Halt::Failed(error) = halt {
                self.cancel.trip(error);
            }
            self.cancel.failure()
        })
    }

    fn unblock_on_failure(&mut self, handle: Box<dyn Unblock>) {
        self.unblock.push(self.cancel.also_unblock(handle));
    }

    /// The counts so far, by channel number.
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

    /// Checks that no RAM packet is missing: a sender numbers them over all its channels, from 0
    /// and without gaps. A packet that was lost shows here, and a channel that nobody knew of.
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
    /// and no RAM packet is missing. The sender does not learn of it: that is for a main connection
    /// ([`Incoming::accept`](crate::Incoming::accept)).
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
