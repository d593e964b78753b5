//! The flags word of a packet, and the compression method in it.

use crate::PacketError;

/// How the payload of a RAM packet is encoded (bits 1..=5 of the flags word, one-hot but for `None`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Method {
    /// Raw pages, one after another.
    #[default]
    None,
    /// One zlib stream for the life of the channel.
    Zlib,
    /// zstd frames, one for the life of the channel or one a packet.
    Zstd,
    /// Intel QPL (IAA): a table of lengths, then a raw deflate stream a page.
    Qpl,
    /// UADK: a table of lengths, then a zlib stream a page.
    Uadk,
    /// Intel `QATzip`: gzip members over all pages of the packet.
    Qatzip,
}

impl Method {
    /// All methods, in the order of their bits.
    pub const ALL: [Self; 6] = [
        Self::None,
        Self::Zlib,
        Self::Zstd,
        Self::Qpl,
        Self::Uadk,
        Self::Qatzip,
    ];

    /// The method's bits, in place in the flags word.
    pub const fn bits(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Zlib => 1 << 1,
            Self::Zstd => 2 << 1,
            Self::Qpl => 4 << 1,
            Self::Uadk => 8 << 1,
            Self::Qatzip => 16 << 1,
        }
    }

    /// The name QEMU's `multifd-compression` parameter gives the method.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
            Self::Qpl => "qpl",
            Self::Uadk => "uadk",
            Self::Qatzip => "qatzip",
        }
    }
}

impl core::fmt::Display for Method {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

/// The flags word of a packet header, checked: only known bits, a known method, no contradiction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(u32);

impl Flags {
    /// The packet ends its channel's round.
    pub const SYNC: u32 = 1;
    /// The bits of the compression method.
    pub const METHOD_MASK: u32 = 0x1f << 1;
    /// The packet carries device state, not RAM.
    pub const DEVICE_STATE: u32 = 32 << 1;

    /// Flags of a data packet encoded with `method`.
    pub const fn data(method: Method) -> Self {
        Self(method.bits())
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
    /// [`PacketError::UnknownMethod`] for method bits that are no [`Method`]; [`PacketError::BadFlags`] for bits
    /// without a meaning, and for device state together with SYNC or a compression method.
    pub const fn from_wire(flags: u32) -> Result<Self, PacketError> {
        let unknown = flags & !(Self::SYNC | Self::METHOD_MASK | Self::DEVICE_STATE);
        if unknown != 0 {
            return Err(PacketError::BadFlags { flags, bits: unknown });
        }
        let bits = flags & Self::METHOD_MASK;
        if bits.count_ones() > 1 {
            return Err(PacketError::UnknownMethod { flags, bits });
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
    pub const fn method(self) -> Method {
        match (self.0 & Self::METHOD_MASK) >> 1 {
            1 => Method::Zlib,
            2 => Method::Zstd,
            4 => Method::Qpl,
            8 => Method::Uadk,
            16 => Method::Qatzip,
            _ => Method::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_survives_the_wire() {
        for method in Method::ALL {
            assert_eq!(Flags::from_wire(method.bits()).unwrap().method(), method);
            let with_sync = Flags::from_wire(method.bits() | Flags::SYNC).unwrap();
            assert!(with_sync.is_sync());
            assert_eq!(with_sync.method(), method);
        }
    }

    #[test]
    fn two_methods_at_once_are_unknown() {
        assert_eq!(
            Flags::from_wire(0x06),
            Err(PacketError::UnknownMethod {
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
            Err(PacketError::BadFlags { flags: 0x41, bits: 1 })
        );
        assert_eq!(
            Flags::from_wire(0x42),
            Err(PacketError::BadFlags { flags: 0x42, bits: 2 })
        );
    }
}
