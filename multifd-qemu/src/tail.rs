//! What follows the RAM: device sections, whose bodies have no length on the wire, and the
//! description that knows them.

use crate::sections::{EOF, FOOTER, FULL, VMDESC};
use crate::{Error, Limits};
use serde::Deserialize;
use serde::de::IgnoredAny;

/// A VM's device sections, byte for byte: those that come before the RAM's pages, and everything
/// after the RAM section, which is device sections, the end mark, and mostly QEMU's description of
/// all of them (vmdesc).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tail {
    early: Vec<u8>,
    bytes: Vec<u8>,
    vmdesc: Option<usize>,
}

impl Tail {
    /// Checks that `bytes`, which begin with a section's type byte `offset` bytes into the channel,
    /// are a whole tail.
    ///
    /// It must end in the end mark and a description, `0x00 | 0x06 | u32 len | JSON`, exactly to
    /// the last byte. Without `need_vmdesc`, for machines with `suppress-vmdesc=on`, a section's
    /// footer and the end mark will do; then a source that stopped between the two is not noticed.
    ///
    /// # Errors
    /// [`Error::Truncated`] for one that ends otherwise: the source stopped in the middle.
    pub fn new(
        bytes: Vec<u8>,
        offset: u64,
        need_vmdesc: bool,
        limits: &Limits,
    ) -> Result<Self, Error> {
        let vmdesc = find_vmdesc(&bytes, limits.vmdesc_bytes);
        let last = bytes.len().checked_sub(6).and_then(|at| bytes.get(at..));
        let ends_in_footer = matches!(last, Some([FOOTER, _, _, _, _, EOF]));
        let whole = match bytes.first() {
            Some(&FULL) => vmdesc.is_some() || (ends_in_footer && !need_vmdesc),
            Some(&EOF) => vmdesc == Some(6) || (bytes.len() == 1 && !need_vmdesc),
            _ => false,
        };
        if !whole {
            return Err(Error::Truncated {
                offset: offset + bytes.len() as u64,
                what: "the device sections and their description",
            });
        }
        Ok(Self {
            early: Vec::new(),
            bytes,
            vmdesc,
        })
    }

    /// The tail of a VM without devices.
    pub fn empty(page_size: u32) -> Self {
        let json = format!("{{\"page_size\":{page_size},\"configuration\":{{}},\"devices\":[]}}");
        let mut bytes = vec![EOF, VMDESC];
        bytes.extend(u32::try_from(json.len()).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend(json.as_bytes());
        Self {
            early: Vec::new(),
            bytes,
            vmdesc: Some(6),
        }
    }

    /// These device sections, and before them `early`, which stand before the RAM's pages: whole
    /// sections with their footers, such as virtio-mem's.
    #[must_use]
    pub fn with_early(mut self, early: Vec<u8>) -> Self {
        self.early = early;
        self
    }

    /// The device sections before the RAM's pages, as they go over the wire.
    pub fn early(&self) -> &[u8] {
        &self.early
    }

    /// All bytes after the RAM section, as they go over the wire.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// QEMU's description of the device sections, as JSON, if it was sent.
    pub fn vmdesc(&self) -> Option<&str> {
        let json = self.bytes.get(self.vmdesc?..)?;
        std::str::from_utf8(json).ok()
    }
}

/// What a description must have, whatever is in it: nothing of that is kept.
#[derive(Deserialize)]
struct Shape {
    #[serde(rename = "devices")]
    _devices: Vec<IgnoredAny>,
}

/// Where the description's JSON starts, if the bytes end in one: its length must reach exactly to
/// the end.
fn find_vmdesc(bytes: &[u8], limit: usize) -> Option<usize> {
    // Searched from the end of what can be its header, no further than its limit.
    let first = bytes.len().saturating_sub(limit).max(6);
    let mut starts = (first..bytes.len()).rev();
    starts.find(|&at| {
        let Some([EOF, VMDESC, a, b, c, d]) = bytes.get(at - 6..at) else {
            return false;
        };
        let len = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        let json = bytes.get(at..).unwrap_or_default();
        len == json.len() && serde_json::from_slice::<Shape>(json).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_whole_or_refused() {
        let limits = Limits::default();
        let mut bytes = vec![
            FULL, 0, 0, 0, 3, 1, b'x', 0, 0, 0, 0, 0, 0, 0, 1, 9, 9, 9, FOOTER, 0, 0, 0, 3,
        ];
        let sections = bytes.len();
        bytes.extend(Tail::empty(4096).bytes());
        let tail = Tail::new(bytes.clone(), 100, true, &limits).unwrap();
        assert_eq!(tail.bytes(), bytes);
        assert!(tail.vmdesc().unwrap().starts_with("{\"page_size\":4096"));
        for len in 0..bytes.len() {
            let outcome = |need| Tail::new(bytes[..len].to_vec(), 100, need, &limits);
            let error = outcome(true).unwrap_err();
            assert!(
                matches!(error, Error::Truncated { offset, .. } if offset == 100 + len as u64),
                "{len}"
            );
            assert_eq!(outcome(false).is_ok(), len == sections + 1, "{len}");
        }
        bytes.push(0);
        assert!(Tail::new(bytes, 0, false, &limits).is_err());
        assert_eq!(
            Tail::new(vec![EOF], 0, false, &limits).unwrap().vmdesc(),
            None
        );
        let empty = Tail::empty(4096);
        assert_eq!(
            Tail::new(empty.bytes().to_vec(), 0, true, &limits).unwrap(),
            empty
        );
        assert!(Tail::new(vec![1, 2, 3], 0, false, &limits).is_err());
    }
}
