//! A pack: chunks one after another, and behind them their index.

use super::cursor::Cursor;
use super::{ChunkRef, VERSION};
use crate::name::{CHUNK_NAME, ChunkName, PackName};
use crate::seal::{Kind, SEAL};
use crate::{OpenKeys, StoreError};

/// Bytes at a pack's end: the index's length, the version, the magic number.
pub const FOOTER: usize = 16;
/// A pack's last bytes.
const MAGIC: &[u8; 8] = b"MFDPACK\0";
/// Bytes of an index entry: name and length.
const ENTRY: usize = CHUNK_NAME + 4;
/// Most chunks of a pack.
pub const MAX_CHUNKS: usize = 1 << 16;
/// Most bytes of an index.
pub const MAX_INDEX: usize = 4 + MAX_CHUNKS * ENTRY + 32 + SEAL;
/// Most bytes of a pack.
pub const MAX_PACK: u64 = 64 << 20;

/// Appends the index and the footer to a pack's chunks, which lie one after another.
pub(crate) fn finish(
    pack: &mut Vec<u8>,
    name: PackName,
    chunks: &[ChunkRef],
    keys: Option<&OpenKeys>,
) -> Result<(), StoreError> {
    let mut index = Vec::with_capacity(4 + chunks.len() * ENTRY + 32);
    index.extend((chunks.len() as u32).to_le_bytes());
    for chunk in chunks {
        index.extend(chunk.name.0);
        index.extend(chunk.len_word().to_le_bytes());
    }
    let start = pack.len();
    if let Some(keys) = keys {
        keys.seal(Kind::PackIndex, &name.0, &index, pack)?;
    } else {
        pack.extend_from_slice(&index);
        pack.extend(blake3::hash(&index).as_bytes());
    }
    let len = (pack.len() - start) as u32;
    pack.extend(len.to_le_bytes());
    pack.extend(VERSION.to_le_bytes());
    pack.extend(MAGIC);
    Ok(())
}

/// How many bytes the index has, by the footer of a pack of `len` bytes.
///
/// # Errors
/// [`StoreError::Damaged`], [`StoreError::Version`].
pub fn index_len(name: PackName, len: u64, footer: &[u8]) -> Result<usize, StoreError> {
    let damaged = |why: String| StoreError::Damaged {
        object: name.path(),
        why,
    };
    let mut cursor = Cursor(footer);
    let (Some(index), Some(version), Some(magic)) =
        (cursor.u32(), cursor.u32(), cursor.array::<8>())
    else {
        return Err(damaged(format!("it has {len} bytes")));
    };
    if magic != *MAGIC {
        return Err(damaged("it does not end as a pack does".into()));
    }
    if version != VERSION {
        return Err(StoreError::Version {
            object: name.path(),
            found: version,
            known: VERSION,
        });
    }
    let limit = len
        .min(MAX_PACK)
        .saturating_sub(FOOTER as u64)
        .min(MAX_INDEX as u64);
    if u64::from(index) > limit || len > MAX_PACK {
        return Err(damaged(format!(
            "an index of {index} bytes in a pack of {len} bytes"
        )));
    }
    Ok(index as usize)
}

/// Reads an index. `index` is all of it; `data` bytes of chunks come before it. The chunks have
/// `pack` as the number of their pack.
///
/// # Errors
/// [`StoreError::Damaged`].
pub fn read_index(
    name: PackName,
    data: u64,
    index: &mut [u8],
    pack: u32,
    keys: Option<&OpenKeys>,
) -> Result<Vec<ChunkRef>, StoreError> {
    let damaged = |why: &str| StoreError::Damaged {
        object: name.path(),
        why: why.into(),
    };
    let plain: &[u8] = if let Some(keys) = keys {
        keys.open(Kind::PackIndex, &name.0, index)
            .ok_or_else(|| damaged("its index is not sealed with this key, or was changed"))?
    } else {
        let (index, hash) = index
            .split_last_chunk::<32>()
            .ok_or_else(|| damaged("its index is too short"))?;
        if blake3::hash(index) != *hash {
            return Err(damaged("its index does not have the hash it says"));
        }
        index
    };
    let mut cursor = Cursor(plain);
    let count = cursor.u32().ok_or_else(|| damaged("its index is empty"))? as usize;
    if count > MAX_CHUNKS || cursor.0.len() != count * ENTRY {
        return Err(damaged("its index does not have the length it says"));
    }
    let mut chunks = Vec::with_capacity(count);
    let mut offset = 0;
    for _ in 0..count {
        let (Some(chunk), Some(word)) = (cursor.array(), cursor.u32()) else {
            return Err(damaged("its index ends early"));
        };
        let (len, zstd) =
            ChunkRef::of_word(word).ok_or_else(|| damaged("a chunk's length is out of bounds"))?;
        let end = u64::from(offset) + u64::from(len);
        if end > data {
            return Err(damaged("a chunk reaches into the index"));
        }
        chunks.push(ChunkRef {
            name: ChunkName(chunk),
            pack,
            offset,
            len,
            zstd,
        });
        offset = end as u32;
    }
    Ok(chunks)
}
