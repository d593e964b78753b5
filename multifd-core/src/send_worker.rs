//! One sending channel's thread: pull work, prepare it, send it.

use crate::checksum::{self, Checksums};
use crate::memory::IovBuf;
use crate::prepare_pool::PoolRun;
use crate::work_queue::{Seat, Work, WorkQueue};
use crate::{
    Buffers, ChannelError, ChannelStats, Error, Iov, Observer, Outgoing, PageBatch, PayloadBuf, Prepare,
    Progress, SendChannel, SentPacket, StatsHandle, SyncScope, WriteFlags, ZeroPages,
};
use multifd_packet::{
    DEVICE_STATE_PACKET_LEN, DeviceStateFields, DeviceStatePacket, Flags, Geometry, InitPacket,
    MAX_RAM_PACKET_LEN, Method, PacketError, RamFields, RamPacket,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

pub(crate) struct SendWorker {
    pub(crate) id: u8,
    pub(crate) uuid: [u8; 16],
    pub(crate) queue: Arc<WorkQueue>,
    pub(crate) stats: StatsHandle,
    /// Numbers packets over all channels.
    pub(crate) packet_num: Arc<AtomicU64>,
    pub(crate) geometry: Geometry,
    pub(crate) kind: Method,
    pub(crate) preparing: Preparing,
    pub(crate) observer: Option<Arc<dyn Observer>>,
    pub(crate) channel: Box<dyn SendChannel>,
    pub(crate) zero_pages: ZeroPages,
    pub(crate) flags: WriteFlags,
    pub(crate) checksums: Checksums,
    pub(crate) progress: Option<Arc<Progress>>,
}

/// Who prepares this channel's packets.
pub(crate) enum Preparing {
    /// Its own thread.
    Here(Box<dyn Prepare>),
    /// A pool.
    Pool(Arc<PoolRun>),
}

/// Sorts out zero pages, if they are looked for, and prepares the payload of the others.
pub(crate) fn prepare_batch(
    prepare: &mut dyn Prepare,
    zero_pages: ZeroPages,
    batch: &mut PageBatch,
    payload: &mut PayloadBuf,
) -> Result<(), Error> {
    if zero_pages == ZeroPages::Detect {
        batch.sort_out_zero_pages()?;
    }
    payload.clear();
    if batch.normal().is_empty() {
        return Ok(());
    }
    prepare
        .prepare(batch, payload)
        .map_err(|source| Error::Prepare { source })
}

/// Buffers a channel uses again for every packet.
struct Room {
    header: Vec<u8>,
    payload: PayloadBuf,
    iovs: IovBuf,
}

impl SendWorker {
    /// Does work until there is no more; returns the first error.
    pub(crate) fn run(mut self) -> Result<(), Error> {
        let mut room = Room {
            header: vec![0; MAX_RAM_PACKET_LEN],
            payload: PayloadBuf::default(),
            iovs: IovBuf::default(),
        };
        let init = InitPacket {
            uuid: self.uuid,
            channel: self.id,
        };
        let len = init.encode(&mut room.header).map_err(|e| self.packet(e))?;
        self.send(&mut room, len, None, &[], ChannelStats::default())?;
        let mut seat = Seat::of(self.id);
        let queue = Arc::clone(&self.queue);
        while let Some(work) = queue.pull(&mut seat) {
            if let Preparing::Pool(pool) = &self.preparing {
                pool.kick();
            }
            match work {
                Work::Pages(mut batch) => {
                    match &mut self.preparing {
                        Preparing::Here(prepare) => {
                            prepare_batch(prepare.as_mut(), self.zero_pages, &mut batch, &mut room.payload)
                                .map_err(|e| e.on_channel(self.id))?;
                        }
                        // What did not need the pool has no contents.
                        Preparing::Pool(_) => room.payload.clear(),
                    }
                    self.send_pages(&mut room, &batch)?;
                    queue.recycle(batch, None);
                }
                Work::Prepared(batch, mut payload) => {
                    std::mem::swap(&mut room.payload, &mut payload);
                    self.send_pages(&mut room, &batch)?;
                    queue.recycle(batch, Some(payload));
                }
                Work::Buffers(buffers) => self.send_buffers(&mut room, &buffers)?,
                Work::Sync(scope) => {
                    self.end_round(&mut room, scope)?;
                    queue.synced();
                }
            }
        }
        self.finish()
    }

    /// Ends the channel in an orderly way, unless the transfer has been stopped: a peer must not take an end that
    /// came early for a proper one.
    fn finish(&mut self) -> Result<(), Error> {
        if self.queue.is_stopped() {
            return Ok(());
        }
        self.channel.flush().map_err(|e| self.io("flushing", e))?;
        self.channel.close().map_err(|e| self.io("closing", e))
    }

    fn io(&self, doing: &'static str, source: ChannelError) -> Error {
        Error::Channel {
            channel: self.id,
            doing,
            source,
        }
    }

    fn packet(&self, source: PacketError) -> Error {
        let index = self.stats.packets(self.id);
        Error::Packet {
            channel: self.id,
            index,
            source,
        }
    }

    fn next_num(&self) -> u64 {
        self.packet_num.fetch_add(1, Ordering::Relaxed)
    }

    fn send_pages(&mut self, room: &mut Room, batch: &PageBatch) -> Result<(), Error> {
        let (block, normal, zero) = batch.wire_places();
        let fields = RamFields {
            flags: Flags::data(room.payload.method().unwrap_or(self.kind)),
            // A payload no packet can announce is refused by the encoder.
            payload_len: u32::try_from(room.payload.len()).unwrap_or(u32::MAX),
            packet_num: self.next_num(),
            block,
        };
        let len = RamPacket::encode(&fields, self.geometry, normal, zero, &mut room.header)
            .map_err(|e| self.packet(e))?;
        let payload_crc = checksum::payload_crc(self.checksums, batch, &room.payload)?;
        self.seal(room, len, payload_crc)?;
        let (normal, zero) = (normal.len() as u64, zero.len() as u64);
        let delta = ChannelStats {
            guest_bytes: (normal + zero) * u64::from(self.geometry.page_size()),
            normal_pages: normal,
            zero_pages: zero,
            packets: 1,
            ..ChannelStats::default()
        };
        self.send(room, len, Some(batch), &[], delta)
    }

    /// Puts checksums into the RAM packet at the start of the header's room.
    fn seal(&self, room: &mut Room, len: usize, payload: Option<u32>) -> Result<(), Error> {
        if self.checksums == Checksums::Off {
            return Ok(());
        }
        let packet = room.header.get_mut(..len).unwrap_or_default();
        checksum::seal(packet, payload).map_err(|e| self.packet(e))
    }

    fn send_buffers(&mut self, room: &mut Room, buffers: &Buffers) -> Result<(), Error> {
        let fields = DeviceStateFields {
            idstr: &buffers.label,
            instance_id: buffers.instance,
            payload_len: u32::try_from(buffers.data.len()).unwrap_or(0),
        };
        debug_assert!(room.header.len() >= DEVICE_STATE_PACKET_LEN);
        let len = DeviceStatePacket::encode(&fields, &mut room.header).map_err(|e| self.packet(e))?;
        room.payload.clear();
        let delta = ChannelStats {
            buffer_bytes: buffers.data.len() as u64,
            packets: 1,
            ..ChannelStats::default()
        };
        self.send(room, len, None, &buffers.data, delta)
    }

    fn end_round(&mut self, room: &mut Room, scope: SyncScope) -> Result<(), Error> {
        if scope == SyncScope::Peer {
            let fields = RamFields {
                flags: Flags::sync(),
                payload_len: 0,
                packet_num: self.next_num(),
                block: "",
            };
            let len = RamPacket::encode(&fields, self.geometry, &[], &[], &mut room.header)
                .map_err(|e| self.packet(e))?;
            self.seal(room, len, None)?;
            room.payload.clear();
            self.send(
                room,
                len,
                None,
                &[],
                ChannelStats {
                    packets: 1,
                    syncs: 1,
                    ..ChannelStats::default()
                },
            )?;
        }
        self.channel.flush().map_err(|e| self.io("flushing", e))
    }

    /// Sends header, the payload in `room`, and `data`; counts it when it has gone.
    fn send(
        &mut self,
        room: &mut Room,
        header_len: usize,
        pages: Option<&PageBatch>,
        data: &[u8],
        mut delta: ChannelStats,
    ) -> Result<(), Error> {
        let Room {
            header,
            payload,
            iovs,
        } = room;
        let iovs = iovs.begin();
        iovs.push(Iov::from(header.get(..header_len).unwrap_or_default()));
        if let Some(batch) = pages {
            for run in &payload.runs {
                iovs.push(batch.block().region(run.offset, run.len)?.into());
            }
        }
        for bytes in [payload.staged.as_slice(), data] {
            if !bytes.is_empty() {
                iovs.push(Iov::from(bytes));
            }
        }
        let message = Outgoing { iovs, pages };
        delta.wire_bytes = message.len() as u64;
        // Only guest pages stay where they are until the next sync; headers and staged bytes are used again.
        let guest_only = pages.is_some() && payload.staged.is_empty() && !payload.runs.is_empty();
        let flags = WriteFlags {
            zero_copy: self.flags.zero_copy && guest_only,
        };
        let observer = self.observer.as_ref().filter(|_| pages.is_some());
        let begun = observer.map(|_| Instant::now());
        self.channel
            .send(&message, flags)
            .map_err(|e| self.io("sending", e))?;
        if let (Some(observer), Some(begun)) = (observer, begun) {
            observer.sent(&SentPacket {
                channel: self.id,
                wire_bytes: delta.wire_bytes,
                sending: begun.elapsed(),
            });
        }
        if let Some(progress) = &self.progress {
            progress.touch();
        }
        self.stats.add(self.id, &delta);
        Ok(())
    }
}
