//! Packets passing through: received by one engine, prepared anew and sent by the other, without the guest's RAM.

use crate::prepare_pool::PoolRun;
use crate::shutdown::lock;
use crate::work_queue::{Depth, Work, WorkQueue};
use crate::{
    BlockError, BufferQueue, Buffers, CancelHandle, ChannelError, ChannelSource, DeviceStateSink, Error,
    IncomingPages, MemoryBudget, Method, Progress, RamBlock, RamMap, Receiver, ReceiverConfig, Sender,
    SenderConfig, Stats, StatsHandle, SyncScope, Transport, Unblock, WriteFlags, ZeroPages,
};
use multifd_packet::{Geometry, RamPacket};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// How to relay.
pub struct RelayConfig {
    /// Methods that may be decoded. Empty means no compression only.
    pub methods: Vec<Arc<dyn Method>>,
    /// Bytes of a guest page: it says how long packets are.
    pub page_size: u32,
    /// How many channels come in; without it, those that have connected when the first packet comes on one of them. A QEMU,
    /// and our [`Sender`], open all of them before they send anything.
    pub incoming: Option<u8>,
    /// How many channels go out; without it, as many as come in.
    pub outgoing: Option<u8>,
    /// The only UUID accepted; without one, all channels must agree.
    pub uuid: Option<[u8; 16]>,
    /// Most bytes one device-state packet may carry.
    pub max_device_state: u32,
    /// What device state is counted in while it passes, over all channels.
    pub memory_budget: MemoryBudget,
    /// What the outgoing packets carry checksums on; [`Checksums::AtRest`](crate::Checksums::AtRest) holds here, as nobody
    /// else changes what passes through.
    pub checksums: crate::Checksums,
    /// Whether packets that come in must carry checksums.
    pub require_checksums: bool,
    /// The clock of all connections, incoming and outgoing: a slow way out is no stall.
    pub progress: Arc<Progress>,
    /// Ends the relay from elsewhere, and is told of its first error.
    pub cancel: CancelHandle,
    /// Called once, when both sides are open, with what reads the counts of the incoming and of the outgoing side.
    pub on_start: Option<Box<dyn FnOnce(StatsHandle, StatsHandle) + Send>>,
}

impl Default for RelayConfig {
    fn default() -> Self {
        let receiver = ReceiverConfig::default();
        Self {
            methods: Vec::new(),
            page_size: 4096,
            incoming: None,
            outgoing: None,
            uuid: None,
            max_device_state: receiver.max_device_state,
            memory_budget: receiver.memory_budget,
            checksums: crate::Checksums::Off,
            require_checksums: false,
            progress: receiver.progress,
            cancel: receiver.cancel,
            on_start: None,
        }
    }
}

impl std::fmt::Debug for RelayConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RelayConfig")
            .field("incoming", &self.incoming)
            .field("outgoing", &self.outgoing)
            .finish_non_exhaustive()
    }
}

/// What has passed through.
#[derive(Debug, Clone)]
pub struct Relayed {
    /// What came in.
    pub incoming: Stats,
    /// What went out.
    pub outgoing: Stats,
    /// Methods that came in.
    pub methods: Vec<multifd_packet::Method>,
    /// Rounds.
    pub rounds: u64,
}

/// Takes the channels of one transfer from `source`, and sends what comes over them on channels of `transport`, encoded by
/// `method`, round by round; returns when all of them have ended.
///
/// `transport` must be one of streams: the far end knows from the packets where pages go, a transport to fixed places would not
/// ([`PageBatch::wire_places`](crate::PageBatch::wire_places)).
///
/// Guest RAM is not held: memory is a few packets a channel, whatever the size of the guest. The main channel is the caller's,
/// who passes it through as it is. Which pages there may be is for the far end to check: it knows the RAM blocks.
///
/// # Errors
/// The first thing that went wrong, on either side. All threads are gone then.
pub fn relay(
    source: &mut dyn ChannelSource,
    transport: &dyn Transport,
    method: &dyn Method,
    mut config: RelayConfig,
) -> Result<Relayed, Error> {
    let gate = Arc::new(Gate::default());
    let _gate_guard = config.cancel.also_unblock(Box::new(Arc::clone(&gate)));
    let geometry = Geometry::new(config.page_size).map_err(BlockError::from)?;
    let mut receiver = Receiver::passing(
        Arc::clone(&gate),
        geometry,
        ReceiverConfig {
            methods: std::mem::take(&mut config.methods),
            uuid: config.uuid,
            max_channels: config.incoming.map_or(255, usize::from),
            max_device_state: config.max_device_state,
            device_state: Some(Arc::clone(&gate) as Arc<dyn DeviceStateSink>),
            memory_budget: config.memory_budget.clone(),
            require_checksums: config.require_checksums,
            progress: Arc::clone(&config.progress),
            cancel: config.cancel.clone(),
        },
    )?;
    gather(source, &mut receiver, &gate, &config)?;
    let channels = u8::try_from(receiver.channels()).unwrap_or(u8::MAX);
    let mut sender = Sender::start_with(
        geometry,
        RamMap::new(),
        method,
        transport,
        &SenderConfig {
            channels: config.outgoing.unwrap_or(channels),
            uuid: receiver.uuid().unwrap_or_default(),
            // The source has looked for them.
            zero_pages: ZeroPages::Off,
            // The memory is used again.
            flags: WriteFlags { zero_copy: false },
            checksums: config.checksums,
            max_device_state: config.max_device_state,
            progress: Some(Arc::clone(&config.progress)),
            cancel: config.cancel.clone(),
        },
        Depth::Copies,
    )?;
    if let Some(on_start) = config.on_start.take() {
        on_start(receiver.stats_handle(), sender.stats_handle());
    }
    gate.open(sender.passage(geometry));
    let mut rounds = 0;
    while receiver.hold_round()? {
        if config.incoming.is_none() {
            // Every channel has reached the round's end: a number that is missing is on a channel nobody knows of, and the far end
            // must not be told that the round is complete.
            receiver.check_numbers()?;
        }
        // Nothing of the next round goes out before every outgoing channel has ended this one.
        sender.sync(SyncScope::Peer)?;
        receiver.release_round();
        rounds += 1;
    }
    if rounds == 0 {
        // A source ends a round on every channel, however little it has to send.
        return Err(Error::EndedEarly { channel: 0 });
    }
    let methods = receiver.methods();
    let incoming = receiver.finish()?;
    Ok(Relayed {
        incoming,
        outgoing: sender.finish()?,
        methods,
        rounds,
    })
}

/// Takes in all channels there are.
fn gather(
    source: &mut dyn ChannelSource,
    receiver: &mut Receiver,
    gate: &Gate,
    config: &RelayConfig,
) -> Result<(), Error> {
    let expected = config.incoming.map(usize::from);
    loop {
        let have = receiver.channels();
        if expected == Some(have) {
            break;
        }
        let wait = expected.is_some() || have == 0;
        let next = source.next_channel(wait).map_err(|source| match source {
            ChannelError::Stopped => config.cancel.failure(),
            source => Error::Channel {
                channel: u8::try_from(have).unwrap_or(u8::MAX),
                doing: "accepting",
                source,
            },
        })?;
        match next {
            Some(channel) => receiver.attach(channel)?,
            None if wait => {
                return Err(Error::ChannelCount {
                    found: have,
                    expected: expected.unwrap_or(1),
                });
            }
            None => break,
        }
        if have == 0 && expected.is_none() {
            // When one channel speaks, all have connected.
            gate.wait_spoken().ok_or_else(|| config.cancel.failure())?;
        }
    }
    receiver.wait_identified()
}

#[derive(Default)]
struct GateState {
    /// A packet has come, or a channel's end.
    spoken: bool,
    passage: Option<Arc<Passage>>,
    stopped: bool,
}

/// Where incoming channels wait until the outgoing side is open.
#[derive(Default)]
pub(crate) struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

impl Gate {
    /// Says that a packet has come, or a channel's end.
    pub(crate) fn spoken(&self) {
        let mut state = lock(&self.state);
        if !state.spoken {
            state.spoken = true;
            self.changed.notify_all();
        }
    }

    fn wait<T>(&self, ready: impl Fn(&GateState) -> Option<T>) -> Option<T> {
        let mut state = lock(&self.state);
        loop {
            if let Some(found) = ready(&state) {
                return Some(found);
            }
            if state.stopped {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn wait_spoken(&self) -> Option<()> {
        self.wait(|state| state.spoken.then_some(()))
    }

    fn open(&self, passage: Passage) {
        lock(&self.state).passage = Some(Arc::new(passage));
        self.changed.notify_all();
    }

    /// The way out, once it is open; `None` if the transfer has been stopped.
    pub(crate) fn passage(&self) -> Option<Arc<Passage>> {
        self.wait(|state| state.passage.clone())
    }
}

impl Unblock for Arc<Gate> {
    fn unblock(&self) {
        lock(&self.state).stopped = true;
        self.changed.notify_all();
    }
}

impl DeviceStateSink for Gate {
    fn take(&self, buffers: Buffers) -> Result<(), String> {
        let passage = self.passage().ok_or("the relay was stopped")?;
        // What came in order leaves in order.
        passage.buffers.queue_in_order(buffers).map_err(|e| e.to_string())
    }
}

/// The outgoing side, as incoming channels see it.
pub(crate) struct Passage {
    pub(crate) queue: Arc<WorkQueue>,
    pub(crate) pool: Option<Arc<PoolRun>>,
    pub(crate) buffers: BufferQueue,
    pub(crate) geometry: Geometry,
    pub(crate) cancel: CancelHandle,
}

impl Passage {
    /// Has `unpack` put a packet's pages into memory for one packet, and queues them.
    pub(crate) fn pass(
        &self,
        packet: &RamPacket<'_>,
        unpack: impl FnOnce(&IncomingPages<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut batch = if let Some(batch) = self.queue.any_spare() {
            batch
        } else {
            let page_size = self.geometry.page_size();
            let len = u64::from(page_size) * u64::from(self.geometry.pages_per_packet());
            crate::PageBatch::new(Arc::new(RamBlock::anonymous("relay", len, page_size)?))
        };
        batch.restart_as(packet);
        unpack(&IncomingPages::passing(batch.block(), packet)?)?;
        match &self.pool {
            // Without contents there is nothing to prepare.
            Some(pool) if !packet.normal().is_empty() => self.queue.push_raw(batch).map(|()| pool.kick()),
            _ => self.queue.push(Work::Pages(batch)),
        }
        .map_err(|_| self.cancel.failure())
    }
}
