//! A channel's bytes, packet by packet.

use crate::{
    DEVICE_STATE_PACKET_LEN, DeviceStateFields, DeviceStatePacket, Geometry, HEADER_LEN, Header,
    INIT_PACKET_LEN, InitPacket, PacketError, RamPacket,
};

/// Any packet of a channel.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Packet<'a> {
    /// The first packet of every channel.
    Init(InitPacket),
    /// Pages, or the end of a round.
    Ram(RamPacket<'a>),
    /// A buffer that is not guest pages.
    DeviceState(DeviceStateFields<'a>),
}

impl Packet<'_> {
    /// Bytes of payload that follow the packet.
    pub fn payload_len(&self) -> usize {
        match self {
            Self::Init(_) => 0,
            Self::Ram(packet) => packet.fields().payload_len as usize,
            Self::DeviceState(fields) => fields.payload_len as usize,
        }
    }
}

/// A packet with its payload.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// Bytes of the stream before the packet.
    pub offset: usize,
    /// The packet, as it stands in the stream.
    pub bytes: &'a [u8],
    /// The packet, read.
    pub packet: Packet<'a>,
    /// Its payload, as it stands in the stream.
    pub payload: &'a [u8],
}

/// The packets of one channel: an iterator over the channel's bytes, from its first on.
///
/// It ends after the last byte, or after the first error: a packet or a payload that is cut off is
/// [`PacketError::Short`]. Nothing is allocated and nothing copied.
///
/// ```
/// use multifd_packet::{Geometry, INIT_PACKET_LEN, InitPacket, Packet, Packets, Uuid};
///
/// let mut bytes = [0; INIT_PACKET_LEN];
/// InitPacket { uuid: Uuid::NIL, channel: 1 }.encode(&mut bytes)?;
/// let mut packets = Packets::new(&bytes, Geometry::new(4096)?);
/// let first = packets.next().unwrap()?;
/// assert!(matches!(first.packet, Packet::Init(init) if init.channel == 1));
/// assert!(packets.next().is_none());
/// # Ok::<(), multifd_packet::PacketError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Packets<'a> {
    left: &'a [u8],
    geometry: Geometry,
    offset: usize,
    max_device_state: u32,
    started: bool,
}

impl<'a> Packets<'a> {
    /// The packets of a channel whose first byte is the first of `bytes`; RAM packets have the
    /// shape `geometry`.
    pub fn new(bytes: &'a [u8], geometry: Geometry) -> Self {
        Self {
            left: bytes,
            geometry,
            offset: 0,
            max_device_state: u32::MAX,
            started: false,
        }
    }

    /// Refuses device-state packets that announce more than `bytes` of payload.
    #[must_use]
    pub fn max_device_state(mut self, bytes: u32) -> Self {
        self.max_device_state = bytes;
        self
    }

    /// Bytes read so far.
    pub fn offset(&self) -> usize {
        self.offset
    }

    fn take(&mut self, what: &'static str, len: usize) -> Result<&'a [u8], PacketError> {
        let short = PacketError::Short {
            what,
            expected: len,
            found: self.left.len(),
        };
        let (taken, left) = self.left.split_at_checked(len).ok_or(short)?;
        self.left = left;
        self.offset += len;
        Ok(taken)
    }

    fn read(&mut self) -> Result<Message<'a>, PacketError> {
        let offset = self.offset;
        let (bytes, packet) = if !self.started {
            let bytes = self.take("init packet", INIT_PACKET_LEN)?;
            (bytes, Packet::Init(InitPacket::parse(bytes)?))
        } else if self.left.len() < HEADER_LEN {
            return Err(PacketError::Short {
                what: "packet header",
                expected: HEADER_LEN,
                found: self.left.len(),
            });
        } else if Header::parse(self.left)?.flags.is_device_state() {
            let bytes = self.take("device-state packet", DEVICE_STATE_PACKET_LEN)?;
            let fields = DeviceStatePacket::parse(bytes, self.max_device_state)?;
            (bytes, Packet::DeviceState(fields))
        } else {
            let bytes = self.take("RAM packet", self.geometry.packet_len())?;
            (bytes, Packet::Ram(RamPacket::parse(bytes, self.geometry)?))
        };
        self.started = true;
        let payload = self.take("payload", packet.payload_len())?;
        Ok(Message {
            offset,
            bytes,
            packet,
            payload,
        })
    }
}

impl<'a> Iterator for Packets<'a> {
    type Item = Result<Message<'a>, PacketError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left.is_empty() {
            return None;
        }
        let message = self.read();
        if message.is_err() {
            self.left = &[];
        }
        Some(message)
    }
}

impl core::iter::FusedIterator for Packets<'_> {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Compression, DeviceStateFields, Flags, MAX_RAM_PACKET_LEN, RamFields, Uuid};

    /// A channel with an init packet, pages, device state, and a SYNC.
    fn channel(geometry: Geometry) -> std::vec::Vec<u8> {
        let mut bytes = std::vec::Vec::new();
        let mut room = [0; MAX_RAM_PACKET_LEN];
        let init = InitPacket {
            uuid: Uuid([7; 16]),
            channel: 2,
        };
        let len = init.encode(&mut room).unwrap();
        bytes.extend_from_slice(&room[..len]);
        let data = RamFields {
            flags: Flags::data(Compression::None),
            payload_len: 8192,
            packet_num: 0,
            block: "pc.ram",
        };
        let len = RamPacket::encode(&data, geometry, &[0, 8192], &[4096], &mut room).unwrap();
        bytes.extend_from_slice(&room[..len]);
        bytes.extend_from_slice(&[5; 8192]);
        let state = DeviceStateFields {
            idstr: "0000:00:03.0/vfio",
            instance_id: 1,
            payload_len: 3,
        };
        let len = DeviceStatePacket::encode(&state, &mut room).unwrap();
        bytes.extend_from_slice(&room[..len]);
        bytes.extend_from_slice(b"abc");
        let sync = RamFields {
            flags: Flags::sync(),
            payload_len: 0,
            packet_num: 1,
            block: "",
        };
        let len = RamPacket::encode(&sync, geometry, &[], &[], &mut room).unwrap();
        bytes.extend_from_slice(&room[..len]);
        bytes
    }

    #[test]
    fn a_channel_is_read_packet_by_packet_and_every_cut_is_noticed() {
        let geometry = Geometry::new(4096).unwrap();
        let bytes = channel(geometry);
        let all: std::vec::Vec<_> = Packets::new(&bytes, geometry).map(Result::unwrap).collect();
        assert_eq!(all.len(), 4);
        assert!(matches!(all[0].packet, Packet::Init(init) if init.channel == 2));
        assert!(matches!(all[1].packet, Packet::Ram(ram) if ram.normal().len() == 2));
        assert_eq!(all[1].payload, [5; 8192]);
        assert_eq!(all[2].payload, b"abc");
        assert!(matches!(all[3].packet, Packet::Ram(ram) if ram.fields().flags.is_sync()));
        let ends: std::vec::Vec<_> = all
            .iter()
            .map(|message| message.offset + message.bytes.len() + message.payload.len())
            .collect();
        assert_eq!(ends.last(), Some(&bytes.len()));
        for cut in 0..bytes.len() {
            let last = Packets::new(&bytes[..cut], geometry).last();
            let whole = cut == 0 || ends.contains(&cut);
            assert_eq!(last.is_none_or(|last| last.is_ok()), whole, "cut at {cut}");
        }
    }

    #[test]
    fn nothing_comes_after_an_error() {
        let geometry = Geometry::new(4096).unwrap();
        let mut bytes = channel(geometry);
        bytes[INIT_PACKET_LEN] = 0;
        let mut packets = Packets::new(&bytes, geometry);
        assert!(packets.next().unwrap().is_ok());
        assert!(packets.next().unwrap().is_err());
        assert!(packets.next().is_none());
        let mut small = Packets::new(&bytes, geometry).max_device_state(2);
        assert!(small.nth(1).unwrap().is_err());
    }
}
