//! The device-state packet: buffers that are no guest pages.

use crate::header::{RawHeader, check_magic};
use crate::name::{self, NAME_LEN};
use crate::{Field, Flags, PacketError};
use zerocopy::byteorder::big_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a device-state packet, without its payload.
pub const DEVICE_STATE_PACKET_LEN: usize = 276;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawDeviceState {
    header: RawHeader,
    idstr: [u8; NAME_LEN],
    instance_id: U32,
    next_packet_size: U32,
}

/// What a device-state packet says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceStateFields<'a> {
    /// The device's label, 1 to 255 bytes without NUL.
    pub idstr: &'a str,
    /// Which instance of the device.
    pub instance_id: u32,
    /// Payload bytes that follow; never 0.
    pub payload_len: u32,
}

/// A checked device-state packet: `header | idstr char[256] | instance_id u32 | next_packet_size
/// u32`, big-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceStatePacket;

impl DeviceStatePacket {
    /// Reads a packet from the first [`DEVICE_STATE_PACKET_LEN`] bytes; the label is borrowed from
    /// them.
    ///
    /// # Errors
    /// A wrong magic, version or flags word; a label that is empty, unterminated or not UTF-8; a
    /// payload of 0 bytes, or of more than `max_payload`.
    pub fn parse(bytes: &[u8], max_payload: u32) -> Result<DeviceStateFields<'_>, PacketError> {
        let (raw, _) = RawDeviceState::ref_from_prefix(bytes).map_err(|_| PacketError::Short {
            what: "device-state packet",
            expected: DEVICE_STATE_PACKET_LEN,
            found: bytes.len(),
        })?;
        check_magic(raw.header.magic.get(), raw.header.version.get())?;
        let flags = Flags::from_wire(raw.header.flags.get())?;
        if !flags.is_device_state() {
            return Err(PacketError::Mismatch {
                field: Field::Flags,
                found: flags.bits().into(),
                expected: Flags::DEVICE_STATE.into(),
            });
        }
        let payload_len = raw.next_packet_size.get();
        check_payload(payload_len)?;
        if payload_len > max_payload {
            return Err(PacketError::TooLarge {
                field: Field::NextPacketSize,
                found: payload_len.into(),
                limit: max_payload.into(),
            });
        }
        Ok(DeviceStateFields {
            idstr: name::parse(&raw.idstr, Field::IdStr)?,
            instance_id: raw.instance_id.get(),
            payload_len,
        })
    }

    /// Writes a packet to the start of `out` and returns its length.
    ///
    /// # Errors
    /// [`PacketError::Short`], [`PacketError::BadName`], or [`PacketError::BadPayload`] for an
    /// empty payload.
    pub fn encode(fields: &DeviceStateFields<'_>, out: &mut [u8]) -> Result<usize, PacketError> {
        check_payload(fields.payload_len)?;
        let raw = RawDeviceState {
            header: RawHeader::new(Flags::device_state()),
            idstr: name::encode(fields.idstr, Field::IdStr)?,
            instance_id: U32::new(fields.instance_id),
            next_packet_size: U32::new(fields.payload_len),
        };
        raw.write_to_prefix(out).map_err(|_| PacketError::Short {
            what: "device-state packet",
            expected: DEVICE_STATE_PACKET_LEN,
            found: out.len(),
        })?;
        Ok(DEVICE_STATE_PACKET_LEN)
    }
}

fn check_payload(len: u32) -> Result<(), PacketError> {
    if len == 0 {
        return Err(PacketError::BadPayload {
            found: 0,
            expected: "device state is never empty",
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_state_survives_the_wire_and_its_limits_hold() {
        let fields = DeviceStateFields {
            idstr: "vfio/0000:01:00.0",
            instance_id: 3,
            payload_len: 4096,
        };
        let mut bytes = [0; DEVICE_STATE_PACKET_LEN];
        assert_eq!(DeviceStatePacket::encode(&fields, &mut bytes), Ok(276));
        assert_eq!(DeviceStatePacket::parse(&bytes, 4096), Ok(fields));
        assert_eq!(
            DeviceStatePacket::parse(&bytes, 4095),
            Err(PacketError::TooLarge {
                field: Field::NextPacketSize,
                found: 4096,
                limit: 4095
            })
        );
        let empty = DeviceStateFields {
            payload_len: 0,
            ..fields
        };
        assert!(matches!(
            DeviceStatePacket::encode(&empty, &mut bytes),
            Err(PacketError::BadPayload { found: 0, .. })
        ));
        bytes[11] = 0;
        assert!(matches!(
            DeviceStatePacket::parse(&bytes, 4096),
            Err(PacketError::Mismatch {
                field: Field::Flags,
                found: 0,
                expected: 0x40
            })
        ));
    }
}
