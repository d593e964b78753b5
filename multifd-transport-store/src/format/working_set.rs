//! A working set: which chunks a guest read first, in order.

use super::VERSION;
use super::cursor::Cursor;
use crate::name::{from_hex, to_hex};
use crate::seal::Kind;
use crate::{OpenKeys, StoreError};

const MAGIC: &[u8; 8] = b"MFDWSET\0";
/// Bytes of a manifest's id.
const ID: usize = 16;
/// Most chunks of a working set.
pub const MAX: usize = 1 << 22;

/// The bytes of a working set whose path is `object`: numbers of chunks in the list of the manifest
/// with this id.
pub(crate) fn write(
    object: &str,
    id: &str,
    chunks: &[u32],
    keys: Option<&OpenKeys>,
) -> Result<Vec<u8>, StoreError> {
    let mut plain = Vec::with_capacity(ID + chunks.len() * 4);
    plain.extend(from_hex::<ID>(id).unwrap_or_default());
    plain.extend(chunks.iter().flat_map(|chunk| chunk.to_le_bytes()));
    let mut out = Vec::with_capacity(plain.len() + 64);
    out.extend(MAGIC);
    out.extend(VERSION.to_le_bytes());
    if let Some(keys) = keys {
        keys.seal(Kind::WorkingSet, object.as_bytes(), &plain, &mut out)?;
    } else {
        out.extend_from_slice(&plain);
        out.extend(blake3::hash(&plain).as_bytes());
    }
    Ok(out)
}

/// Reads one: the id of the manifest that it belongs to, and the numbers.
///
/// # Errors
/// [`StoreError::Damaged`], [`StoreError::Version`].
pub fn read(
    object: &str,
    bytes: &mut [u8],
    keys: Option<&OpenKeys>,
) -> Result<(String, Vec<u32>), StoreError> {
    let damaged = |why: &str| StoreError::Damaged {
        object: object.into(),
        why: why.into(),
    };
    let mut cursor = Cursor(bytes);
    let (magic, version) = (cursor.array::<8>(), cursor.u32());
    if magic.as_ref() != Some(MAGIC) {
        return Err(damaged("it does not begin as a working set does"));
    }
    match version {
        Some(VERSION) => {}
        found => {
            return Err(StoreError::Version {
                object: object.into(),
                found: found.unwrap_or(0),
                known: VERSION,
            });
        }
    }
    let stored = &mut bytes[12..];
    let plain: &[u8] = if let Some(keys) = keys {
        keys.open(Kind::WorkingSet, object.as_bytes(), stored)
            .ok_or_else(|| damaged("it is not sealed with this key, or was changed"))?
    } else {
        let (plain, hash) = stored
            .split_last_chunk::<32>()
            .ok_or_else(|| damaged("it is too short"))?;
        if blake3::hash(plain) != *hash {
            return Err(damaged("it does not have the hash it says"));
        }
        plain
    };
    let (id, numbers) = plain
        .split_first_chunk::<ID>()
        .ok_or_else(|| damaged("it is too short"))?;
    if !numbers.len().is_multiple_of(4) || numbers.len() / 4 > MAX {
        return Err(damaged("its length is out of bounds"));
    }
    let numbers = numbers.chunks_exact(4);
    let numbers = numbers.map(|number| number.try_into().map_or(0, u32::from_le_bytes));
    Ok((to_hex(id), numbers.collect()))
}
