//! The bytes of a companion.

use super::{BlockDigest, CHUNK, Digest, GuestRange, MAX_RANGES, checksum};
use crate::FileError;

const MAGIC: [u8; 4] = *b"MFSM";
/// Without a memory layout, and with one.
const VERSIONS: [u32; 2] = [1, 2];
/// Most blocks a companion may name.
const MAX_BLOCKS: u32 = 65536;

impl Digest {
    /// The companion's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::from(MAGIC);
        let version = u32::from(!self.layout.is_empty()) + 1;
        out.extend(version.to_be_bytes());
        out.extend((CHUNK as u32).to_be_bytes());
        out.extend(self.uuid);
        out.extend(self.rest.to_be_bytes());
        out.extend((self.blocks.len() as u32).to_be_bytes());
        for block in &self.blocks {
            out.extend((block.name.len() as u16).to_be_bytes());
            out.extend(block.name.as_bytes());
            out.extend(block.used_length.to_be_bytes());
            out.extend(block.sums.iter().flat_map(|sum| sum.to_be_bytes()));
        }
        if !self.layout.is_empty() {
            out.extend((self.layout.len() as u32).to_be_bytes());
            for range in &self.layout {
                out.extend(range.address.to_be_bytes());
                out.extend(range.len.to_be_bytes());
                out.extend(range.block.to_be_bytes());
                out.extend(range.offset.to_be_bytes());
            }
        }
        out.extend(checksum(&out).to_be_bytes());
        out
    }

    /// Reads a companion's bytes.
    ///
    /// # Errors
    /// [`FileError::Companion`], saying what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Self, FileError> {
        let bad = |why: &str| FileError::Companion(why.into());
        let (body, sum) = bytes
            .split_last_chunk::<4>()
            .ok_or_else(|| bad("it is too short"))?;
        if !body.starts_with(&MAGIC) {
            return Err(bad("it does not start with \"MFSM\""));
        }
        if checksum(body) != u32::from_be_bytes(*sum) {
            return Err(bad("its own checksum is wrong: it is damaged"));
        }
        let mut left = body.get(MAGIC.len()..).unwrap_or_default();
        let short = || bad("it ends early");
        let (version, chunk) = (take_u32(&mut left), take_u32(&mut left));
        let has_layout = match (version.filter(|version| VERSIONS.contains(version)), chunk) {
            (Some(version), Some(chunk)) if u64::from(chunk) == CHUNK => version > 1,
            _ => return Err(bad("it is of another version")),
        };
        let uuid = take::<16>(&mut left).ok_or_else(short)?;
        let rest = take_u32(&mut left).ok_or_else(short)?;
        let count = take_u32(&mut left)
            .filter(|&n| n <= MAX_BLOCKS)
            .ok_or_else(short)?;
        let mut blocks = Vec::new();
        for _ in 0..count {
            let len = take::<2>(&mut left)
                .map(u16::from_be_bytes)
                .ok_or_else(short)?;
            let name = left.split_off(..usize::from(len)).ok_or_else(short)?;
            let used_length = take_u64(&mut left).ok_or_else(short)?;
            let size = usize::try_from(used_length.div_ceil(CHUNK))
                .ok()
                .and_then(|n| n.checked_mul(4));
            let sums = size
                .and_then(|size| left.split_off(..size))
                .ok_or_else(short)?;
            let (sums, _) = sums.as_chunks::<4>();
            blocks.push(BlockDigest {
                name: String::from_utf8(name.to_vec()).map_err(|_| bad("a name is not UTF-8"))?,
                used_length,
                sums: sums.iter().map(|sum| u32::from_be_bytes(*sum)).collect(),
            });
        }
        let mut layout = Vec::new();
        if has_layout {
            let count = take_u32(&mut left)
                .filter(|&n| n <= MAX_RANGES)
                .ok_or_else(short)?;
            for _ in 0..count {
                layout.push(GuestRange {
                    address: take_u64(&mut left).ok_or_else(short)?,
                    len: take_u64(&mut left).ok_or_else(short)?,
                    block: take_u32(&mut left).ok_or_else(short)?,
                    offset: take_u64(&mut left).ok_or_else(short)?,
                });
            }
            if layout
                .iter()
                .any(|range| range.block as usize >= blocks.len())
            {
                return Err(bad("its memory layout names a block that it does not have"));
            }
        }
        if !left.is_empty() {
            return Err(bad("it has more at its end"));
        }
        Ok(Self {
            uuid,
            rest,
            blocks,
            layout,
        })
    }
}

fn take<const N: usize>(left: &mut &[u8]) -> Option<[u8; N]> {
    let (now, rest) = left.split_first_chunk::<N>()?;
    *left = rest;
    Some(*now)
}

fn take_u32(left: &mut &[u8]) -> Option<u32> {
    take::<4>(left).map(u32::from_be_bytes)
}

fn take_u64(left: &mut &[u8]) -> Option<u64> {
    take::<8>(left).map(u64::from_be_bytes)
}
