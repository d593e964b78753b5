//! The UUID of a VM.

use core::fmt;
use core::str::FromStr;

/// A VM's UUID (`-uuid`), 16 bytes in the order they are written. All zeros: none.
///
/// ```
/// use multifd_packet::Uuid;
///
/// let uuid: Uuid = "5eed5eed-0000-4000-8000-00000000c0de".parse()?;
/// assert_eq!(uuid.0[..2], [0x5e, 0xed]);
/// assert_eq!(uuid.to_string(), "5eed5eed-0000-4000-8000-00000000c0de");
/// # Ok::<(), multifd_packet::UuidError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// The UUID of a VM that has none.
    pub const NIL: Self = Self([0; 16]);

    /// Whether the VM has none.
    pub fn is_nil(self) -> bool {
        self == Self::NIL
    }
}

impl From<[u8; 16]> for Uuid {
    fn from(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// Text that is not a UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("write it as 01234567-89ab-cdef-0123-456789abcdef")]
pub struct UuidError;

impl FromStr for Uuid {
    type Err = UuidError;

    fn from_str(text: &str) -> Result<Self, UuidError> {
        let mut groups = [0; 5];
        let mut lengths = text.split('-').map(str::len);
        for group in &mut groups {
            *group = lengths.next().ok_or(UuidError)?;
        }
        if groups != [8, 4, 4, 4, 12] || lengths.next().is_some() {
            return Err(UuidError);
        }
        let mut value = 0u128;
        for c in text.chars().filter(|&c| c != '-') {
            value = value << 4 | u128::from(c.to_digit(16).ok_or(UuidError)?);
        }
        Ok(Self(value.to_be_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_usual_form_is_read() {
        let uuid: Uuid = "5eed5eed-0000-4000-8000-00000000C0DE".parse().unwrap();
        assert_eq!(uuid.0[..4], [0x5e, 0xed, 0x5e, 0xed]);
        assert_eq!(uuid.0[14..], [0xc0, 0xde]);
        for bad in [
            "",
            "5eed",
            "5eed5eed000040008000-00000000c0de",
            "+eed5eed-0000-4000-8000-00000000c0de",
            "5eed5eed-0000-4000-8000-00000000c0de-",
        ] {
            assert_eq!(bad.parse::<Uuid>(), Err(UuidError), "{bad}");
        }
    }
}
