//! Compression methods as the flags word of a packet names them.

use core::fmt;
use core::str::FromStr;

/// How the payload of a RAM packet is encoded: bits 1..=5 of the flags word.
///
/// QEMU's methods set one bit, or none. [`Compression::Private`] sets the two highest, which no
/// QEMU accepts: two programs may agree on what it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Compression {
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
    /// A method of two programs that have agreed on it. QEMU refuses it.
    Private(PrivateCode),
}

/// The number of a private method, 0 to 7.
///
/// ```
/// use multifd_packet::{Compression, PrivateCode};
///
/// const LZ4: Compression = Compression::Private(PrivateCode::new(3).unwrap());
/// assert_eq!(LZ4.name(), "private-3");
/// assert_eq!(PrivateCode::new(8), None);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PrivateCode(u8);

impl PrivateCode {
    /// How many private methods there can be.
    pub const COUNT: u8 = 8;

    /// The private method with this number; `None` from [`PrivateCode::COUNT`] on.
    pub const fn new(number: u8) -> Option<Self> {
        if number < Self::COUNT {
            Some(Self(number))
        } else {
            None
        }
    }

    /// The number, 0 to 7.
    pub const fn number(self) -> u8 {
        self.0
    }
}

/// The private methods' names, by number.
const PRIVATE_NAMES: [&str; PrivateCode::COUNT as usize] = [
    "private-0",
    "private-1",
    "private-2",
    "private-3",
    "private-4",
    "private-5",
    "private-6",
    "private-7",
];

impl Compression {
    /// QEMU's methods, in the order of their bits.
    pub const ALL: [Self; 6] = [
        Self::None,
        Self::Zlib,
        Self::Zstd,
        Self::Qpl,
        Self::Uadk,
        Self::Qatzip,
    ];

    /// The method's five bits, in place in the flags word.
    pub const fn bits(self) -> u32 {
        let code = match self {
            Self::None => 0,
            Self::Zlib => 1,
            Self::Zstd => 2,
            Self::Qpl => 4,
            Self::Uadk => 8,
            Self::Qatzip => 16,
            Self::Private(code) => 0x18 | code.0 as u32,
        };
        code << 1
    }

    /// The method with these bits, in place in the flags word; `None` if it is not known.
    pub const fn from_bits(bits: u32) -> Option<Self> {
        Some(match bits >> 1 {
            0 => Self::None,
            1 => Self::Zlib,
            2 => Self::Zstd,
            4 => Self::Qpl,
            8 => Self::Uadk,
            16 => Self::Qatzip,
            code @ 0x18..=0x1f => Self::Private(PrivateCode((code & 7) as u8)),
            _ => return None,
        })
    }

    /// The name that QEMU's `multifd-compression` parameter gives the method, or `private-N`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
            Self::Qpl => "qpl",
            Self::Uadk => "uadk",
            Self::Qatzip => "qatzip",
            Self::Private(PrivateCode(number)) => PRIVATE_NAMES[(number & 7) as usize],
        }
    }

    /// The method in one line, for help texts.
    pub const fn summary(self) -> &'static str {
        match self {
            Self::None => "No compression",
            Self::Zlib => "One zlib stream a channel",
            Self::Zstd => "A zstd frame a packet",
            Self::Qpl => "Raw deflate a page, as Intel's IAA accelerator does",
            Self::Uadk => "A zlib stream a page, as Kunpeng's accelerators do",
            Self::Qatzip => "gzip over a packet's pages, as Intel's QAT accelerator does",
            Self::Private(_) => "A method that both ends have agreed on",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Compression {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        let private = (0..PrivateCode::COUNT)
            .filter_map(PrivateCode::new)
            .map(Self::Private);
        let mut all = Self::ALL.into_iter().chain(private);
        all.find(|method| method.name() == text).ok_or(UnknownName)
    }
}

/// Text that is not the name of a [`Compression`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("compression methods are none, zlib, zstd, qpl, uadk, qatzip and private-0 to private-7")]
pub struct UnknownName;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_a_method_or_unknown_and_every_name_is_read() {
        let mut known = 0;
        for code in 0..32 {
            let Some(method) = Compression::from_bits(code << 1) else {
                continue;
            };
            known += 1;
            assert_eq!(method.bits(), code << 1);
            assert_eq!(method.name().parse(), Ok(method));
            assert!(!method.summary().is_empty());
        }
        assert_eq!(
            known,
            Compression::ALL.len() + usize::from(PrivateCode::COUNT)
        );
        assert_eq!("lz4".parse::<Compression>(), Err(UnknownName));
    }
}
