//! One receiving channel's thread: read packets, check them, put their pages in place.

use super::device_handlers::panic_message;
use super::packet_numbers::Wrong;
use super::rounds::Halt;
use super::shared::Shared;
use crate::{
    Arrival, BoxError, ChannelError, ChannelStats, DeviceBuffer, Error, IncomingPages, Method,
    Place, Plain, RecvChannel, Unpack, checksum,
};
use bytes::Bytes;
use multifd_packet::{
    Compression, DEVICE_STATE_PACKET_LEN, DeviceStatePacket, HEADER_LEN, Header, INIT_PACKET_LEN,
    InitPacket, MAX_RAM_PACKET_LEN, PacketError, RamPacket,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

pub(super) struct RecvWorker {
    shared: Arc<Shared>,
    slot: usize,
    channel: Box<dyn RecvChannel>,
    /// The slot until the init packet has said the number.
    id: u8,
    packets: u64,
    /// Decoders, by method: made when they are first needed.
    unpackers: Vec<(Compression, Box<dyn Unpack>)>,
    pages_since_sync: bool,
    /// The number of the packet before, if that was a SYNC.
    last_sync: Option<u64>,
}

impl RecvWorker {
    pub(super) fn new(shared: Arc<Shared>, slot: usize, channel: Box<dyn RecvChannel>) -> Self {
        Self {
            shared,
            slot,
            channel,
            id: u8::try_from(slot).unwrap_or(u8::MAX),
            packets: 0,
            unpackers: Vec::new(),
            pages_since_sync: false,
            last_sync: None,
        }
    }

    /// Receives until the peer ends the channel; returns the first error. `Ok` too when the
    /// transfer was stopped: then its error is another's.
    pub(super) fn run(mut self) -> Result<(), Error> {
        let mut init = [0; INIT_PACKET_LEN];
        if !self.start(&mut init)? {
            let gone = ChannelError::Closed {
                received: 0,
                expected: INIT_PACKET_LEN,
            };
            return Err(self.io("receiving the init packet", gone));
        }
        self.identify(&init)?;
        let mut place = self.shared.destination.place(self.id)?;
        let mut buffer = vec![0; MAX_RAM_PACKET_LEN];
        while let Some((header, _)) = buffer.split_at_mut_checked(HEADER_LEN) {
            if !self.start(header)? {
                break;
            }
            let header = Header::parse(header).map_err(|e| self.packet(e))?;
            if self.packets == 0 {
                self.shared.rounds.speak();
            }
            let stopped = if header.flags.is_device_state() {
                self.take_device_state(&mut buffer)?;
                false
            } else {
                self.take_ram(&mut buffer, place.as_mut())?
            };
            self.packets += 1;
            self.shared.common.progress.touch();
            if stopped {
                return Ok(());
            }
        }
        if self.pages_since_sync {
            return Err(Error::EndedInRound { channel: self.id });
        }
        self.shared.rounds.end(self.slot);
        Ok(())
    }

    fn io(&self, doing: &'static str, cause: ChannelError) -> Error {
        Error::Channel {
            channel: self.id,
            doing,
            cause,
        }
    }

    fn packet(&self, cause: PacketError) -> Error {
        Error::Packet {
            channel: self.id,
            index: self.packets,
            cause,
        }
    }

    /// Reads the start of a message; `false` at the channel's end. A channel may be idle while
    /// others are not.
    fn start(&mut self, buffer: &mut [u8]) -> Result<bool, Error> {
        loop {
            match self
                .channel
                .recv_start(buffer)
                .map_err(|e| self.io("receiving a packet", e))?
            {
                Arrival::Message => return Ok(true),
                Arrival::End => return Ok(false),
                Arrival::Idle { .. } if self.shared.common.progress.is_stalled() => {
                    let deadline = self.shared.common.progress.deadline();
                    return Err(self.io("waiting for a packet", ChannelError::Stalled { deadline }));
                }
                Arrival::Idle { .. } => {}
            }
        }
    }

    fn identify(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let init = InitPacket::parse(bytes).map_err(|e| self.packet(e))?;
        self.id = init.channel;
        let expected = *self.shared.uuid.get_or_init(|| init.uuid);
        if init.uuid != expected {
            return Err(Error::Uuid {
                channel: self.id,
                found: init.uuid,
                expected,
            });
        }
        self.shared.rounds.identify(self.slot, self.id)?;
        self.shared.common.progress.touch();
        self.count(&ChannelStats {
            wire_bytes: INIT_PACKET_LEN as u64,
            ..ChannelStats::default()
        });
        Ok(())
    }

    fn count(&self, delta: &ChannelStats) {
        self.shared.stats.add(self.id, delta);
    }

    /// Takes the rest of a RAM packet, its payload, and the round's end; `true` if the transfer was
    /// stopped.
    fn take_ram(&mut self, buffer: &mut [u8], place: &mut dyn Place) -> Result<bool, Error> {
        let geometry = self.shared.geometry;
        let rest = buffer
            .get_mut(HEADER_LEN..geometry.packet_len())
            .unwrap_or_default();
        self.channel
            .recv(rest)
            .map_err(|e| self.io("receiving a packet", e))?;
        let packet = RamPacket::parse(buffer, geometry).map_err(|e| self.packet(e))?;
        let sealed = buffer.get(..geometry.packet_len()).unwrap_or_default();
        let fields = *packet.fields();
        let required = self.shared.require_checksums;
        let payload_crc = checksum::verify(sealed, fields.payload_len > 0, required)
            .map_err(|e| self.packet(e))?;
        let (normal, zero) = (packet.normal().len() as u64, packet.zero().len() as u64);
        let (sync, empty) = (fields.flags.is_sync(), normal + zero == 0);
        if sync || !empty || self.last_sync != Some(fields.packet_num) {
            self.number(fields.packet_num)?;
        }
        if sync && !empty {
            self.shared.numbers.one_is_nobodys();
        }
        self.last_sync = sync.then_some(fields.packet_num);
        if normal + zero > 0 {
            self.take_pages(&packet, payload_crc, place)?;
            self.pages_since_sync = true;
        }
        self.count(&ChannelStats {
            wire_bytes: geometry.packet_len() as u64 + u64::from(fields.payload_len),
            guest_bytes: (normal + zero) * u64::from(geometry.page_size()),
            normal_pages: normal,
            zero_pages: zero,
            packets: 1,
            syncs: u64::from(fields.flags.is_sync()),
            ..ChannelStats::default()
        });
        if fields.flags.is_sync() {
            self.pages_since_sync = false;
            self.shared.common.progress.touch();
            match self.shared.rounds.arrive(self.slot, self.id) {
                Ok(()) => {}
                Err(Halt::Stopped) => return Ok(true),
                Err(Halt::Failed(error)) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Takes note of a RAM packet's number, which no other packet of the transfer may have.
    fn number(&self, number: u64) -> Result<(), Error> {
        self.shared
            .numbers
            .insert(number)
            .map_err(|wrong| match wrong {
                Wrong::Again => Error::RepeatedPacket {
                    channel: self.id,
                    index: self.packets,
                    number,
                },
                Wrong::TooFar { missing } => Error::PacketNumber {
                    channel: self.id,
                    index: self.packets,
                    number,
                    missing,
                },
            })
    }

    /// Puts a packet's pages where they go.
    fn take_pages(
        &mut self,
        packet: &RamPacket<'_>,
        payload_crc: Option<u32>,
        place: &mut dyn Place,
    ) -> Result<(), Error> {
        let mut filled = 0;
        place.take(packet, &mut |pages| {
            filled += 1;
            pages.clear_zeros();
            self.unpack(packet, pages, payload_crc)
        })?;
        if filled == 1 {
            return Ok(());
        }
        // The next packet would be looked for in the middle of a payload.
        Err(Error::Destination {
            channel: self.id,
            block: packet.fields().block.into(),
            cause: BoxError::from(format!(
                "it had {filled} times its pages filled, not once; this is a bug"
            ))
            .into(),
        })
    }

    /// Takes a packet's payload, if it has one.
    fn unpack(
        &mut self,
        packet: &RamPacket<'_>,
        pages: &IncomingPages<'_>,
        payload_crc: Option<u32>,
    ) -> Result<(), Error> {
        if pages.is_empty() {
            return Ok(());
        }
        let method = packet.fields().flags.compression();
        let index = if let Some(index) = self
            .unpackers
            .iter()
            .position(|(known, _)| *known == method)
        {
            index
        } else {
            let unpacker = self.make_unpack(method)?;
            self.unpackers.push((method, unpacker));
            self.unpackers.len() - 1
        };
        let Some((_, unpack)) = self.unpackers.get_mut(index) else {
            return Ok(());
        };
        checksum::checked(self.channel.as_mut(), payload_crc, |channel| {
            unpack.unpack(pages, channel)
        })
        .map_err(|cause| Error::Payload {
            channel: self.id,
            block: packet.fields().block.into(),
            cause,
        })?
        .map_err(|e| self.packet(e))
    }

    /// A decoder for the method, if it is among those that may be used.
    fn make_unpack(&self, found: Compression) -> Result<Box<dyn Unpack>, Error> {
        let methods = &self.shared.methods;
        let plain: &dyn Method = &Plain;
        let known = || {
            methods
                .iter()
                .map(|m| &**m as &dyn Method)
                .chain(methods.is_empty().then_some(plain))
        };
        let Some(method) = known().find(|m| m.kind() == found) else {
            let names: Vec<_> = known().map(|m| m.kind().name()).collect();
            return Err(Error::UnexpectedMethod {
                channel: self.id,
                found,
                expected: names.join(" or "),
            });
        };
        self.shared.seen.note(found);
        method.unpacker().map_err(|cause| Error::Method {
            channel: self.id,
            cause,
        })
    }

    fn take_device_state(&mut self, buffer: &mut [u8]) -> Result<(), Error> {
        let rest = buffer
            .get_mut(HEADER_LEN..DEVICE_STATE_PACKET_LEN)
            .unwrap_or_default();
        self.channel
            .recv(rest)
            .map_err(|e| self.io("receiving a device-state packet", e))?;
        let fields = DeviceStatePacket::parse(buffer, self.shared.common.max_device_state)
            .map_err(|e| self.packet(e))?;
        let refuse = |cause: BoxError| Error::DeviceState {
            channel: self.id,
            label: fields.idstr.into(),
            instance: fields.instance_id,
            cause: cause.into(),
        };
        if self.shared.require_checksums {
            return Err(refuse(
                "it has no place for a checksum, and all must have one here".into(),
            ));
        }
        let sink = self
            .shared
            .device_state
            .as_ref()
            .ok_or_else(|| refuse("nobody here takes it".into()))?;
        let _held = self
            .shared
            .memory_budget
            .take("device state", fields.payload_len.into())
            .map_err(|over| refuse(over.into()))?;
        let mut data = vec![0; fields.payload_len as usize];
        self.channel
            .recv(&mut data)
            .map_err(|cause| Error::Channel {
                channel: self.id,
                doing: "receiving device state",
                cause,
            })?;
        let buffer = DeviceBuffer {
            label: fields.idstr.into(),
            instance: fields.instance_id,
            data: Bytes::from(data),
        };
        catch_unwind(AssertUnwindSafe(|| sink.take(buffer)))
            .unwrap_or_else(|panic| Err(panic_message(panic.as_ref()).into()))
            .map_err(refuse)?;
        self.count(&ChannelStats {
            wire_bytes: DEVICE_STATE_PACKET_LEN as u64 + u64::from(fields.payload_len),
            buffer_bytes: fields.payload_len.into(),
            packets: 1,
            ..ChannelStats::default()
        });
        Ok(())
    }
}
