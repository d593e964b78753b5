//! One sending channel's thread: pull work, prepare it, send it.

use super::SyncScope;
use super::pool::PoolRun;
use super::prepare::prepare_batch;
use super::queue::{Seat, Work, WorkQueue};
use crate::checksum::{self, Checksums};
use crate::memory::IovBuf;
use crate::{
    ChannelError, ChannelStats, DeviceBuffer, Error, Iov, Message, Observer, PageBatch, PayloadBuf,
    Prepare, Progress, SendChannel, SentPacket, StatsHandle, WriteFlags, ZeroPages,
};
use multifd_packet::{
    Compression, DEVICE_STATE_PACKET_LEN, DeviceStateFields, DeviceStatePacket, Flags, Geometry,
    InitPacket, MAX_RAM_PACKET_LEN, PacketError, RamFields, RamPacket, Uuid,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

pub(super) struct SendWorker {
    pub(super) id: u8,
    pub(super) uuid: Uuid,
    pub(super) queue: Arc<WorkQueue>,
    pub(super) stats: StatsHandle,
    /// Numbers packets over all channels.
    pub(super) packet_num: Arc<AtomicU64>,
    pub(super) geometry: Geometry,
    pub(super) kind: Compression,
    pub(super) preparing: Preparing,
    pub(super) observer: Option<Arc<dyn Observer>>,
    pub(super) channel: Box<dyn SendChannel>,
    pub(super) zero_pages: ZeroPages,
    pub(super) flags: WriteFlags,
    pub(super) checksums: Checksums,
    pub(super) progress: Arc<Progress>,
}

/// Who prepares this channel's packets.
pub(super) enum Preparing {
    /// Its own thread.
    Here(Box<dyn Prepare>),
    /// A pool.
    Pool(Arc<PoolRun>),
}

/// Buffers that a channel uses again for every packet.
struct Scratch {
    header: Vec<u8>,
    payload: PayloadBuf,
    iovs: IovBuf,
}

impl SendWorker {
    /// Does work until there is no more; returns the first error.
    pub(super) fn run(mut self) -> Result<(), Error> {
        let mut scratch = Scratch {
            header: vec![0; MAX_RAM_PACKET_LEN],
            payload: PayloadBuf::default(),
            iovs: IovBuf::default(),
        };
        let init = InitPacket {
            uuid: self.uuid,
            channel: self.id,
        };
        let len = init
            .encode(&mut scratch.header)
            .map_err(|e| self.packet(e))?;
        self.send(&mut scratch, len, None, &[], ChannelStats::default())?;
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
                            prepare_batch(
                                prepare.as_mut(),
                                &self.zero_pages,
                                &mut batch,
                                &mut scratch.payload,
                            )
                            .map_err(|e| e.on_channel(self.id))?;
                        }
                        // What did not need the pool has no contents.
                        Preparing::Pool(_) => scratch.payload.clear(),
                    }
                    self.send_pages(&mut scratch, &batch)?;
                    queue.recycle(batch, None);
                }
                Work::Prepared(batch, mut payload) => {
                    std::mem::swap(&mut scratch.payload, &mut payload);
                    self.send_pages(&mut scratch, &batch)?;
                    queue.recycle(batch, Some(payload));
                }
                Work::Buffer(buffer) => self.send_buffer(&mut scratch, &buffer)?,
                Work::Sync(scope) => {
                    self.end_round(&mut scratch, scope)?;
                    queue.synced();
                }
            }
        }
        self.finish()
    }

    /// Ends the channel in an orderly way, unless the transfer has been stopped: a peer must not
    /// take an end that came early for a proper one.
    fn finish(&mut self) -> Result<(), Error> {
        if self.queue.is_stopped() {
            return Ok(());
        }
        self.channel.flush().map_err(|e| self.io("flushing", e))?;
        self.channel.close().map_err(|e| self.io("closing", e))
    }

    fn io(&self, doing: &'static str, cause: ChannelError) -> Error {
        Error::Channel {
            channel: self.id,
            doing,
            cause,
        }
    }

    fn packet(&self, cause: PacketError) -> Error {
        let index = self.stats.packets(self.id);
        Error::Packet {
            channel: self.id,
            index,
            cause,
        }
    }

    fn next_num(&self) -> u64 {
        self.packet_num.fetch_add(1, Ordering::Relaxed)
    }

    fn send_pages(&mut self, scratch: &mut Scratch, batch: &PageBatch) -> Result<(), Error> {
        let (block, normal, zero) = batch.wire_places();
        let fields = RamFields {
            flags: Flags::data(scratch.payload.compression().unwrap_or(self.kind)),
            // A payload no packet can announce is refused by the encoder.
            payload_len: u32::try_from(scratch.payload.len()).unwrap_or(u32::MAX),
            packet_num: self.next_num(),
            block,
        };
        let len = RamPacket::encode(&fields, self.geometry, normal, zero, &mut scratch.header)
            .map_err(|e| self.packet(e))?;
        let payload_crc = checksum::payload_crc(self.checksums, batch, &scratch.payload)?;
        self.seal(scratch, len, payload_crc)?;
        let (normal, zero) = (normal.len() as u64, zero.len() as u64);
        let delta = ChannelStats {
            guest_bytes: (normal + zero) * u64::from(self.geometry.page_size()),
            normal_pages: normal,
            zero_pages: zero,
            packets: 1,
            ..ChannelStats::default()
        };
        self.send(scratch, len, Some(batch), &[], delta)
    }

    /// Puts checksums into the RAM packet at the start of the header's scratch.
    fn seal(&self, scratch: &mut Scratch, len: usize, payload: Option<u32>) -> Result<(), Error> {
        if self.checksums == Checksums::Off {
            return Ok(());
        }
        let packet = scratch.header.get_mut(..len).unwrap_or_default();
        checksum::seal(packet, payload).map_err(|e| self.packet(e))
    }

    fn send_buffer(&mut self, scratch: &mut Scratch, buffer: &DeviceBuffer) -> Result<(), Error> {
        let fields = DeviceStateFields {
            idstr: &buffer.label,
            instance_id: buffer.instance,
            payload_len: u32::try_from(buffer.data.len()).unwrap_or(0),
        };
        debug_assert!(scratch.header.len() >= DEVICE_STATE_PACKET_LEN);
        let len =
            DeviceStatePacket::encode(&fields, &mut scratch.header).map_err(|e| self.packet(e))?;
        scratch.payload.clear();
        let delta = ChannelStats {
            buffer_bytes: buffer.data.len() as u64,
            packets: 1,
            ..ChannelStats::default()
        };
        self.send(scratch, len, None, &buffer.data, delta)
    }

    fn end_round(&mut self, scratch: &mut Scratch, scope: SyncScope) -> Result<(), Error> {
        if scope == SyncScope::Peer {
            let fields = RamFields {
                flags: Flags::sync(),
                payload_len: 0,
                packet_num: self.next_num(),
                block: "",
            };
            let len = RamPacket::encode(&fields, self.geometry, &[], &[], &mut scratch.header)
                .map_err(|e| self.packet(e))?;
            self.seal(scratch, len, None)?;
            scratch.payload.clear();
            self.send(
                scratch,
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

    /// Sends header, the payload in `scratch`, and `data`; counts it when it has gone.
    fn send(
        &mut self,
        scratch: &mut Scratch,
        header_len: usize,
        pages: Option<&PageBatch>,
        data: &[u8],
        mut delta: ChannelStats,
    ) -> Result<(), Error> {
        let Scratch {
            header,
            payload,
            iovs,
        } = scratch;
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
        let message = Message { iovs, pages };
        delta.wire_bytes = message.len() as u64;
        // Only guest pages stay where they are until the next sync; headers and staged bytes are
        // used again.
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
        self.progress.touch();
        self.stats.add(self.id, &delta);
        Ok(())
    }
}
