//! Where RAM blocks lie in the guest's physical address space.

mod derive;
mod flat_view;
mod plugged;

use crate::Tail;

/// Most ranges a map may have: virtio-mem can leave memory in many pieces.
pub const MAX_RANGES: usize = 1 << 20;

/// What addresses, lengths and offsets must be multiples of: an x86 page, in bytes.
const PAGE: u64 = 4096;
/// Most bytes of memory a map may have: no core could be longer.
const MAX_BYTES: u64 = 1 << 56;

/// A piece of a RAM block at a guest physical address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PhysicalRange {
    /// Guest physical address of the first byte.
    pub address: u64,
    /// Bytes.
    pub len: u64,
    /// The RAM block's name.
    pub block: String,
    /// Offset of the first byte in the block, bytes.
    pub offset: u64,
}

/// A guest's physical memory: every address at which RAM or ROM can be read, in order, without
/// overlaps.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PhysicalMap {
    ranges: Vec<PhysicalRange>,
}

/// Why a map cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// The text is not what the monitor's `info mtree -f` prints.
    #[error("line {line} of the memory layout: {reason}")]
    Text {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A range does not fit: it overlaps another one, or lies outside its block.
    #[error("the memory layout does not fit the snapshot: {0}")]
    Range(String),
    /// QEMU's monitor does not show the layout.
    #[error("QEMU's monitor does not show it")]
    NotShown,
    /// Nothing proves where memory lies.
    #[error("where this machine's memory lies is not known: {0}")]
    Unknown(String),
}

impl PhysicalMap {
    /// A map of these ranges, which are put in order, and joined where they go on in the same
    /// block.
    ///
    /// # Errors
    /// [`LayoutError::Range`] if two overlap, or one is empty or reaches beyond the end of the
    /// address space.
    pub fn new(mut ranges: Vec<PhysicalRange>) -> Result<Self, LayoutError> {
        let bad = |range: &PhysicalRange, why: &str| {
            let PhysicalRange {
                address,
                len,
                block,
                ..
            } = range;
            LayoutError::Range(format!("{len:#x} bytes of {block:?} at {address:#x} {why}"))
        };
        if ranges.len() > MAX_RANGES {
            return Err(LayoutError::Range(format!(
                "it has {} ranges, more than the limit of {MAX_RANGES}",
                ranges.len()
            )));
        }
        ranges.sort_by_key(|range| range.address);
        let mut joined: Vec<PhysicalRange> = Vec::new();
        let mut total = 0u64;
        for range in ranges {
            let ends = range
                .address
                .checked_add(range.len)
                .zip(range.offset.checked_add(range.len));
            if range.len == 0 || ends.is_none() {
                return Err(bad(&range, "cannot be"));
            }
            if [range.address, range.len, range.offset]
                .iter()
                .any(|at| !at.is_multiple_of(PAGE))
            {
                return Err(bad(&range, "are not whole pages"));
            }
            total = total.saturating_add(range.len);
            match joined.last_mut() {
                Some(last) if last.address + last.len > range.address => {
                    return Err(bad(
                        &range,
                        &format!("overlap {:?} at {:#x}", last.block, last.address),
                    ));
                }
                Some(last)
                    if last.address + last.len == range.address
                        && last.block == range.block
                        && last.offset + last.len == range.offset =>
                {
                    last.len += range.len;
                }
                _ => joined.push(range),
            }
        }
        if total > MAX_BYTES {
            return Err(LayoutError::Range(format!(
                "it has {total:#x} bytes, more than the limit of {MAX_BYTES:#x}"
            )));
        }
        Ok(Self { ranges: joined })
    }

    /// The ranges in order of their addresses.
    pub fn ranges(&self) -> &[PhysicalRange] {
        &self.ranges
    }

    /// Checks that every range lies in one of these RAM blocks, given by their names and lengths in
    /// bytes.
    ///
    /// # Errors
    /// [`LayoutError::Range`].
    pub fn check(&self, blocks: &[(&str, u64)]) -> Result<(), LayoutError> {
        for range in &self.ranges {
            let block = blocks.iter().find(|(name, _)| *name == range.block);
            let fits = block.is_some_and(|(_, len)| range.offset + range.len <= *len);
            if !fits {
                return Err(LayoutError::Range(format!(
                    "{:#x} bytes at {:#x} are said to be those from {:#x} on in RAM block {:?}, which the snapshot does not have",
                    range.len, range.address, range.offset, range.block
                )));
            }
        }
        Ok(())
    }

    /// The map that the monitor's command `info mtree -f` shows, for a snapshot with these RAM
    /// blocks (name, bytes) and device sections: what is memory there, and plugged.
    ///
    /// # Errors
    /// [`LayoutError`], as when the text shows memory that is none of these blocks.
    pub fn from_flat_view(
        text: &str,
        blocks: &[(&str, u64)],
        tail: &Tail,
    ) -> Result<Self, LayoutError> {
        let ranges = plugged::only(flat_view::parse(text, blocks)?, tail)?;
        let map = Self::new(ranges)?;
        map.check(blocks)?;
        Ok(map)
    }

    /// The map of a PC (machine types `pc-i440fx-*` and `pc-q35-*`) whose memory is one RAM block,
    /// as the machine's own CMOS memory and memory controller show it: RAM, where it is to be read
    /// at its addresses, and the firmware below 4 GiB. Video memory and option ROMs are not in it.
    ///
    /// # Errors
    /// [`LayoutError::Unknown`] for other machines, and where the device sections do not prove it.
    pub fn of_pc(machine: &str, blocks: &[(&str, u64)], tail: &Tail) -> Result<Self, LayoutError> {
        Self::new(derive::pc(machine, blocks, tail)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(address: u64, len: u64, block: &str, offset: u64) -> PhysicalRange {
        PhysicalRange {
            address,
            len,
            block: block.into(),
            offset,
        }
    }

    #[test]
    fn ranges_are_ordered_and_joined_and_may_not_overlap() {
        let map = PhysicalMap::new(vec![
            range(0x3000, 0x1000, "a", 0x2000),
            range(0x1000, 0x2000, "a", 0),
            range(0x4000, 0x1000, "b", 0x3000),
            range(0x5000, 0x1000, "b", 0),
        ]);
        assert_eq!(
            map.unwrap().ranges(),
            [
                range(0x1000, 0x3000, "a", 0),
                range(0x4000, 0x1000, "b", 0x3000),
                range(0x5000, 0x1000, "b", 0)
            ]
        );
        for bad in [
            vec![range(0, 0x2000, "a", 0), range(0x1000, 0x1000, "b", 0)],
            vec![range(0, 0, "a", 0)],
            vec![range(0x800, 0x1000, "a", 0)],
            vec![range(0, 0x1800, "a", 0)],
            vec![range(0, 0x1000, "a", 0x10)],
            vec![range(0, 1 << 57, "a", 0)],
            vec![range(u64::MAX, 2, "a", 0)],
            vec![range(0, 2, "a", u64::MAX)],
        ] {
            assert!(PhysicalMap::new(bad).is_err());
        }
    }

    #[test]
    fn ranges_must_lie_in_their_blocks() {
        let map = PhysicalMap::new(vec![range(0, 0x2000, "a", 0x1000)]).unwrap();
        map.check(&[("a", 0x3000)]).unwrap();
        assert!(map.check(&[("a", 0x2000)]).is_err());
        assert!(map.check(&[("b", 0x3000)]).is_err());
    }
}
