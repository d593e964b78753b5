//! A destination that passes packets on: received by one engine, sent by another, without the
//! guest's RAM in between.

use multifd_core::packet::{Geometry, RamPacket};
use multifd_core::sync::{lock, wait};
use multifd_core::{
    BoxError, BufferQueue, CancelHandle, Destination, DeviceBuffer, DeviceSink, Error, Fill,
    IncomingPages, PacketQueue, PageBatch, Place, RamBlock, Sender, Unblock,
};
use std::sync::{Arc, Condvar, Mutex};

/// Passes packets and device state on to a [`Sender`], once it is known. Until then its channels
/// wait.
#[derive(Clone)]
pub(super) struct PassOn {
    geometry: Geometry,
    gate: Arc<Gate>,
    cancel: CancelHandle,
}

/// The sending side, as receiving channels see it.
#[derive(Clone)]
struct Exit {
    packets: PacketQueue,
    buffers: BufferQueue,
}

/// Where receiving channels wait until the sending side is open.
#[derive(Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    exit: Option<Exit>,
    stopped: bool,
}

impl PassOn {
    pub(super) fn new(geometry: Geometry, cancel: CancelHandle) -> Self {
        Self {
            geometry,
            gate: Arc::default(),
            cancel,
        }
    }

    /// Lets waiting channels go on, to `sender`.
    pub(super) fn open(&self, sender: &Sender) {
        lock(&self.gate.state).exit = Some(Exit {
            packets: sender.packets(),
            buffers: sender.buffers(),
        });
        self.gate.changed.notify_all();
    }

    /// Ends the wait of channels.
    pub(super) fn unblock_handle(&self) -> Box<dyn Unblock> {
        Box::new(Stop(Arc::clone(&self.gate)))
    }

    /// The sending side, once it is open.
    fn exit(&self) -> Result<Exit, Error> {
        let mut state = lock(&self.gate.state);
        loop {
            if let Some(exit) = &state.exit {
                return Ok(exit.clone());
            }
            if state.stopped {
                drop(state);
                return Err(self.cancel.error().unwrap_or(Error::Cancelled));
            }
            state = wait(&self.gate.changed, state);
        }
    }
}

struct Stop(Arc<Gate>);

impl Unblock for Stop {
    fn unblock(&self) {
        lock(&self.0.state).stopped = true;
        self.0.changed.notify_all();
    }
}

impl Destination for PassOn {
    fn start(&self) -> Result<Geometry, Error> {
        Ok(self.geometry)
    }

    fn place(&self, _: u8) -> Result<Box<dyn Place>, Error> {
        Ok(Box::new(Passing {
            to: self.clone(),
            exit: None,
        }))
    }
}

impl DeviceSink for PassOn {
    fn take(&self, buffer: DeviceBuffer) -> Result<(), BoxError> {
        // Buffers that came in order leave in order.
        Ok(self.exit()?.buffers.queue_in_order(buffer)?)
    }
}

/// One channel's way on.
struct Passing {
    to: PassOn,
    exit: Option<Exit>,
}

impl Place for Passing {
    fn take(&mut self, packet: &RamPacket<'_>, fill: &mut Fill<'_>) -> Result<(), Error> {
        let exit = match &mut self.exit {
            Some(exit) => exit,
            closed => closed.insert(self.to.exit()?),
        };
        let mut batch = match exit.packets.spare() {
            Some(batch) => batch,
            None => PageBatch::staged(staging(self.to.geometry)?),
        };
        batch.restage(packet);
        fill(&IncomingPages::staged(batch.block(), packet)?)?;
        exit.packets.queue(batch)
    }
}

/// Memory for the pages of one packet.
fn staging(geometry: Geometry) -> Result<Arc<RamBlock>, Error> {
    let page_size = geometry.page_size();
    let len = u64::from(page_size) * u64::from(geometry.pages_per_packet());
    Ok(Arc::new(RamBlock::anonymous("relay", len, page_size)?))
}
