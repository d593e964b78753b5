//! What chunks, packs and snapshots are called.

use crate::StoreError;
use std::fmt;

/// Bytes of a chunk's name.
pub(crate) const CHUNK_NAME: usize = 32;
/// Bytes of a pack's name.
pub(crate) const PACK_NAME: usize = 16;
/// Bytes of the longest snapshot name.
const LONGEST: usize = 128;

/// A chunk's name: the BLAKE3 hash of its contents, keyed in an encrypted store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkName(pub [u8; CHUNK_NAME]);

/// A pack's name: random bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackName(pub [u8; PACK_NAME]);

fn hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

impl fmt::Display for ChunkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Debug for ChunkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Display for PackName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Debug for PackName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl PackName {
    /// A pack's path in a store.
    pub(crate) fn path(self) -> String {
        let name = self.to_string();
        format!("packs/{}/{name}", &name[..2])
    }

    /// The pack at a path, if it is one.
    pub(crate) fn of_path(path: &str) -> Option<Self> {
        let name = path.rsplit('/').next()?;
        from_hex(name).map(Self)
    }
}

/// Bytes written as lower-case hex digits, two a byte.
pub(crate) fn from_hex<const N: usize>(digits: &str) -> Option<[u8; N]> {
    let digits = digits.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(out)
}

/// Bytes as lower-case hex digits.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::new(), |mut out, byte| {
        // Writing to a String does not fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// Checks a snapshot's name: 1 to 128 letters, digits and `-_.:@+=`, not starting with a dot.
///
/// # Errors
/// [`StoreError::Name`].
pub(crate) fn check_snapshot_name(name: &str) -> Result<(), StoreError> {
    let refused = |why| {
        Err(StoreError::Name {
            name: name.into(),
            why,
        })
    };
    if name.is_empty() || name.len() > LONGEST {
        return refused("it must have 1 to 128 characters");
    }
    if name.starts_with('.') {
        return refused("it must not start with a dot");
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.:@+=".contains(c);
    if !name.chars().all(allowed) {
        return refused("only letters, digits and the characters - _ . : @ + = are allowed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_goes_both_ways_and_names_are_checked() {
        let name = PackName([0xa5; 16]);
        assert_eq!(PackName::of_path(&name.path()), Some(name));
        for bad in [
            "packs/a5/a5",
            "packs/a5/",
            "A5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5",
        ] {
            assert_eq!(PackName::of_path(bad), None, "{bad}");
        }
        assert_eq!(from_hex::<2>(&to_hex(&[1, 0xfe])), Some([1, 0xfe]));
        for good in ["a", "vm-1.2026-11-28T10:00:00+01:00", "a@b=c_"] {
            check_snapshot_name(good).unwrap();
        }
        for bad in [
            "",
            ".",
            "..",
            ".hidden",
            "a/b",
            "a b",
            "ä",
            "a#b",
            &"x".repeat(129),
        ] {
            check_snapshot_name(bad).unwrap_err();
        }
    }
}
