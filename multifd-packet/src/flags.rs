//! The flags word of a packet.

use crate::{Compression, PacketError};

/// The flags word of a packet header, checked: only known bits, a known method, no contradiction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(u32);

impl Flags {
    /// The packet ends its channel's round.
    pub const SYNC: u32 = 1;
    /// The bits of the compression method.
    pub const COMPRESSION_MASK: u32 = 0x1f << 1;
    /// The packet carries device state, not RAM.
    pub const DEVICE_STATE: u32 = 32 << 1;

    /// Flags of a data packet encoded with `compression`.
    pub const fn data(compression: Compression) -> Self {
        Self(compression.bits())
    }

    /// Flags of a SYNC packet; its method bits are 0 under every method.
    pub const fn sync() -> Self {
        Self(Self::SYNC)
    }

    /// Flags of a device-state packet.
    pub const fn device_state() -> Self {
        Self(Self::DEVICE_STATE)
    }

    /// Checks a flags word from the wire.
    ///
    /// # Errors
    /// [`PacketError::UnknownCompression`] for method bits that are not a [`Compression`];
    /// [`PacketError::BadFlags`] for bits without a meaning, and for device state together with
    /// SYNC or a compression method.
    pub const fn from_wire(flags: u32) -> Result<Self, PacketError> {
        let unknown = flags & !(Self::SYNC | Self::COMPRESSION_MASK | Self::DEVICE_STATE);
        if unknown != 0 {
            return Err(PacketError::BadFlags {
                flags,
                bits: unknown,
            });
        }
        let bits = flags & Self::COMPRESSION_MASK;
        if Compression::from_bits(bits).is_none() {
            return Err(PacketError::UnknownCompression { flags, bits });
        }
        if flags & Self::DEVICE_STATE != 0 && flags != Self::DEVICE_STATE {
            return Err(PacketError::BadFlags {
                flags,
                bits: flags & !Self::DEVICE_STATE,
            });
        }
        Ok(Self(flags))
    }

    /// The word as it is on the wire (before big-endian encoding).
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether the packet ends its channel's round.
    pub const fn is_sync(self) -> bool {
        self.0 & Self::SYNC != 0
    }

    /// Whether the packet carries device state.
    pub const fn is_device_state(self) -> bool {
        self.0 & Self::DEVICE_STATE != 0
    }

    /// The compression method.
    pub const fn compression(self) -> Compression {
        match Compression::from_bits(self.0 & Self::COMPRESSION_MASK) {
            Some(compression) => compression,
            None => Compression::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PrivateCode;

    #[test]
    fn every_method_survives_the_wire() {
        let private = Compression::Private(PrivateCode::new(7).unwrap());
        for method in Compression::ALL.into_iter().chain([private]) {
            assert_eq!(
                Flags::from_wire(method.bits()).unwrap().compression(),
                method
            );
            let with_sync = Flags::from_wire(method.bits() | Flags::SYNC).unwrap();
            assert!(with_sync.is_sync());
            assert_eq!(with_sync.compression(), method);
        }
    }

    #[test]
    fn two_methods_at_once_are_unknown() {
        assert_eq!(
            Flags::from_wire(0x06),
            Err(PacketError::UnknownCompression {
                flags: 0x06,
                bits: 0x06
            })
        );
    }

    #[test]
    fn unknown_and_contradicting_bits_are_refused() {
        assert_eq!(
            Flags::from_wire(0x81),
            Err(PacketError::BadFlags {
                flags: 0x81,
                bits: 0x80
            })
        );
        assert_eq!(
            Flags::from_wire(0x41),
            Err(PacketError::BadFlags {
                flags: 0x41,
                bits: 1
            })
        );
        assert_eq!(
            Flags::from_wire(0x42),
            Err(PacketError::BadFlags {
                flags: 0x42,
                bits: 2
            })
        );
    }
}
