//! Checksums of a snapshot's memory, kept in a small companion file.

mod codec;
mod running;

pub(crate) use running::RunningSums;

use crate::{BlockReader, FileError, open_read};
use multifd_core::{RamBlock, RamMap};
use rayon::prelude::*;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Bytes of memory one checksum covers.
const CHUNK: u64 = 1 << 20;
/// Bytes of a file read at a time: they stay in the processor's caches until they are summed.
const PIECE: usize = 128 << 10;
/// Most ranges a memory layout may have.
const MAX_RANGES: u32 = 1 << 20;
/// Bytes of each.
const RANGE: u64 = 8 + 8 + 4 + 8;
/// Bytes of a companion beside what each block takes: the head, and the checksum at the end.
const FIXED: u64 = 4 + 4 + 4 + 16 + 4 + 4 + 4;

/// Checksums (CRC-32, as in gzip) of a snapshot: one for each MiB of each RAM block, and one for
/// everything else.
///
/// The companion of `FILE` is `FILE.crc`: big-endian, `magic "MFSM" | version u32 | chunk size u32
/// | uuid[16] | CRC of the rest u32 | block count u32`, then for each block `u16 length | name |
/// used length u64 | CRC u32 for each chunk`; in version 2, the memory layout, `range count u32`,
/// then for each range `guest physical address u64 | length u64
/// | index of the block u32 | offset in the block u64`; and last the CRC-32 of all that stands before it. It is of version 1
/// if there is no layout. A checksum covers memory, not the file: pages that are not stored count
/// as zeros. The rest is what the caller says it is: for a snapshot, the device sections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest {
    /// The VM's UUID, which a mapped-ram file does not keep; or zeros.
    pub uuid: [u8; 16],
    /// Checksum of everything but the memory.
    pub rest: u32,
    /// The RAM blocks.
    pub blocks: Vec<BlockDigest>,
    /// Where the blocks lay in the guest's physical address space, if that was known.
    pub layout: Vec<GuestRange>,
}

/// A piece of a RAM block at a guest physical address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestRange {
    /// Guest physical address of the first byte.
    pub address: u64,
    /// Bytes.
    pub len: u64,
    /// Index of the block in [`Digest::blocks`].
    pub block: u32,
    /// Offset of the first byte in the block, bytes.
    pub offset: u64,
}

/// Checksums of one RAM block.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlockDigest {
    /// The block's name.
    pub name: String,
    /// Its length in bytes.
    pub used_length: u64,
    /// One checksum for each MiB.
    pub sums: Vec<u32>,
}

/// CRC-32 of bytes.
fn checksum(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// The companion's path.
pub fn companion(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".crc");
    name.into()
}

fn chunks(len: u64) -> impl IndexedParallelIterator<Item = (u64, usize)> {
    let count = usize::try_from(len.div_ceil(CHUNK)).unwrap_or(usize::MAX);
    (0..count).into_par_iter().map(move |index| {
        let at = index as u64 * CHUNK;
        (at, usize::try_from(CHUNK.min(len - at)).unwrap_or(0))
    })
}

impl BlockDigest {
    /// Checksums of a block in memory, by all processors.
    ///
    /// # Errors
    /// None in practice: every chunk lies in the block.
    pub fn of(block: &RamBlock) -> Result<Self, FileError> {
        let sum = |(at, len): (u64, usize)| {
            let region = block.region(at, len)?;
            if region.is_zero() {
                return Ok(zeros(len));
            }
            let mut bytes = vec![0; len];
            region.copy_to(&mut bytes);
            Ok(checksum(&bytes))
        };
        Ok(Self {
            name: block.name().into(),
            used_length: block.len(),
            sums: chunks(block.len())
                .map(sum)
                .collect::<Result<_, FileError>>()?,
        })
    }

    /// Checksums of a block in a file, by all processors.
    ///
    /// # Errors
    /// [`FileError`] if the file cannot be read.
    pub fn of_file(reader: &BlockReader<'_>) -> Result<Self, FileError> {
        let block = reader.block();
        let len = block.layout.used_length();
        Ok(Self {
            name: block.name.clone(),
            used_length: len,
            sums: chunks(len)
                .map_init(Vec::new, |room, chunk| chunk_of_file(reader, chunk, room))
                .collect::<Result<_, FileError>>()?,
        })
    }

    /// Checks a block of a file against these checksums, by all processors; returns the offsets of
    /// the chunks that differ.
    ///
    /// # Errors
    /// [`FileError`] if the file cannot be read, or is of another length.
    pub fn check(&self, reader: &BlockReader<'_>) -> Result<Vec<u64>, FileError> {
        let len = reader.block().layout.used_length();
        if len != self.used_length {
            return Err(FileError::Companion(format!(
                "RAM block {:?} has {len:#x} bytes in the file and {:#x} in the companion",
                self.name, self.used_length
            )));
        }
        let check = |room: &mut Vec<u8>, (chunk, &sum): ((u64, usize), &u32)| {
            let found = chunk_of_file(reader, chunk, room)?;
            Ok((found != sum).then_some(chunk.0))
        };
        let found: Vec<Option<u64>> = chunks(len)
            .zip(&self.sums)
            .map_init(Vec::new, check)
            .collect::<Result<_, FileError>>()?;
        Ok(found.into_iter().flatten().collect())
    }
}

/// Checksum of a chunk of a file: `len` bytes at `at`.
fn chunk_of_file(
    reader: &BlockReader<'_>,
    (at, len): (u64, usize),
    room: &mut Vec<u8>,
) -> Result<u32, FileError> {
    if !reader.is_stored(at, len as u64) {
        return Ok(zeros(len));
    }
    room.resize(PIECE, 0);
    let mut hasher = crc32fast::Hasher::new();
    for start in (0..len).step_by(PIECE) {
        let piece = PIECE.min(len - start);
        let bytes = room.get_mut(..piece).unwrap_or_default();
        reader.read(at + start as u64, bytes)?;
        hasher.update(bytes);
    }
    Ok(hasher.finalize())
}

/// Checksum of `len` zeros.
fn zeros(len: usize) -> u32 {
    static CHUNK_OF_ZEROS: OnceLock<u32> = OnceLock::new();
    if len as u64 == CHUNK {
        *CHUNK_OF_ZEROS.get_or_init(|| zeros_counted(len))
    } else {
        zeros_counted(len)
    }
}

fn zeros_counted(len: usize) -> u32 {
    const ROOM: [u8; 4096] = [0; 4096];
    let mut hasher = crc32fast::Hasher::new();
    let mut left = len;
    while left > 0 {
        let n = left.min(ROOM.len());
        hasher.update(ROOM.get(..n).unwrap_or_default());
        left -= n;
    }
    hasher.finalize()
}

impl Digest {
    /// Checksum of everything but memory, in pieces one after another.
    pub fn of_rest(pieces: &[&[u8]]) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        for piece in pieces {
            hasher.update(piece);
        }
        hasher.finalize()
    }

    /// Checksums of a VM in memory; `rest` is everything but its memory, in pieces one after
    /// another.
    ///
    /// # Errors
    /// None in practice.
    pub fn of(ram: &RamMap, uuid: [u8; 16], rest: &[&[u8]]) -> Result<Self, FileError> {
        let blocks = ram.blocks().iter().map(|block| BlockDigest::of(block));
        Ok(Self {
            uuid,
            rest: Self::of_rest(rest),
            blocks: blocks.collect::<Result<_, _>>()?,
            layout: Vec::new(),
        })
    }

    /// Bytes of the largest companion that RAM blocks can have, given the length of each one's name
    /// and its used length, both in bytes.
    pub fn largest(blocks: impl Iterator<Item = (usize, u64)>) -> u64 {
        let block = |(name, len): (usize, u64)| 2 + name as u64 + 8 + 4 * len.div_ceil(CHUNK);
        let blocks: u64 = blocks.map(block).fold(0, u64::saturating_add);
        blocks
            .saturating_add(FIXED)
            .saturating_add(4 + u64::from(MAX_RANGES) * RANGE)
    }

    /// Reads the companion of `file`, which must be a regular file of at most `limit` bytes (see
    /// [`Digest::largest`]); `None` if it has none.
    ///
    /// # Errors
    /// [`FileError::Path`], [`FileError::NotRegular`], [`FileError::Companion`].
    pub fn read(file: &Path, limit: u64) -> Result<Option<Self>, FileError> {
        let path = companion(file);
        let failed = |cause| FileError::Path {
            path: path.clone(),
            doing: "reading",
            cause,
        };
        let file = match open_read(&path) {
            Ok(file) => file,
            Err(FileError::Path { cause, .. }) if cause.kind() == std::io::ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        // One byte more shows that it is too long, whatever its length is said to be.
        let read = file.take(limit.saturating_add(1)).read_to_end(&mut bytes);
        if read.map_err(failed)? as u64 > limit {
            return Err(FileError::Companion(format!(
                "it has more than the {limit} bytes that this file's can have"
            )));
        }
        Self::decode(&bytes).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_companion_reads_as_it_was_written_and_damage_is_noticed() {
        let mut ram = RamMap::new();
        ram.add(RamBlock::anonymous("pc.ram", (2 << 20) + 4096, 4096).unwrap())
            .unwrap();
        ram.add(RamBlock::anonymous("pc.bios", 4096, 4096).unwrap())
            .unwrap();
        ram.blocks()[0].page(1 << 20).unwrap().copy_from(b"hello");
        let mut digest = Digest::of(&ram, [7; 16], &[b"dev", b"ices"]).unwrap();
        let bytes = digest.encode();
        assert_eq!(bytes[4..8], [0, 0, 0, 1], "as before there were layouts");
        assert_eq!(Digest::decode(&bytes).unwrap(), digest);
        digest.layout = vec![GuestRange {
            address: 1 << 32,
            len: 4096,
            block: 1,
            offset: 0,
        }];
        assert_eq!(digest.blocks[0].sums.len(), 3);
        assert_eq!(digest.blocks[0].sums[0], zeros(1 << 20));
        assert_ne!(digest.blocks[0].sums[1], zeros(1 << 20));
        let bytes = digest.encode();
        assert_eq!(Digest::decode(&bytes).unwrap(), digest);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(Digest::decode(&damaged).is_err(), "{at}");
            assert!(Digest::decode(&bytes[..at]).is_err(), "{at}");
        }
    }

    #[test]
    fn checksums_are_those_of_gzip() {
        assert_eq!(checksum(b"123456789"), 0xcbf4_3926);
        assert_eq!(zeros(10_000), checksum(&[0; 10_000]));
    }
}
