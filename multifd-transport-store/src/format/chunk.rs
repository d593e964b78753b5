//! One chunk: compressed, perhaps sealed, and back.

use crate::name::ChunkName;
use crate::seal::{Kind, OpenKeys, SEAL};
use crate::{StoreError, format};
use zstd::bulk::{Compressor, Decompressor};

/// Bytes that a stored chunk has at most.
pub const STORED_MAX: u32 = *format::CHUNK_SIZES.end() + SEAL as u32;
/// Set in a stored length if the chunk is compressed.
const ZSTD: u32 = 1 << 31;

/// Where a chunk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkRef {
    /// Its name.
    pub name: ChunkName,
    /// The pack's number in the list of packs that goes with it.
    pub pack: u32,
    /// Offset in the pack, bytes.
    pub offset: u32,
    /// Length in the pack, bytes; at most [`STORED_MAX`].
    pub len: u32,
    /// Whether it is compressed.
    pub zstd: bool,
}

impl ChunkRef {
    /// The length as it stands in indexes and manifests: the highest bit says "compressed".
    pub(crate) fn len_word(&self) -> u32 {
        self.len | if self.zstd { ZSTD } else { 0 }
    }

    /// The length and whether it is compressed; `None` if it is longer than a chunk can be.
    pub(crate) fn of_word(word: u32) -> Option<(u32, bool)> {
        let len = word & !ZSTD;
        (len > 0 && len <= STORED_MAX).then_some((len, word & ZSTD != 0))
    }
}

/// Turns chunks into what is stored.
pub(crate) struct Encoder {
    compressor: Compressor<'static>,
    compressed: Vec<u8>,
    sealed: Vec<u8>,
}

impl Encoder {
    pub(crate) fn new(level: i32) -> Result<Self, StoreError> {
        let compressor = Compressor::new(level).map_err(|cause| StoreError::Path {
            path: "zstd".into(),
            doing: "setting up compression",
            cause,
        })?;
        Ok(Self {
            compressor,
            compressed: Vec::new(),
            sealed: Vec::new(),
        })
    }

    /// What is to be stored of a chunk, and whether it is compressed.
    pub(crate) fn encode<'e>(
        &'e mut self,
        name: &ChunkName,
        contents: &'e [u8],
        keys: Option<&OpenKeys>,
    ) -> Result<(&'e [u8], bool), StoreError> {
        self.compressed.clear();
        // Less than the chunk itself is the only result of use.
        self.compressed.reserve(contents.len());
        let result = self
            .compressor
            .compress_to_buffer(contents, &mut self.compressed);
        let zstd = result.is_ok_and(|len| len < contents.len());
        let plain = if zstd { &self.compressed } else { contents };
        let Some(keys) = keys else {
            return Ok((plain, zstd));
        };
        self.sealed.clear();
        keys.seal(Kind::Chunk, &name.0, plain, &mut self.sealed)?;
        Ok((&self.sealed, zstd))
    }
}

/// Turns what is stored back into chunks.
pub(crate) struct Decoder(Decompressor<'static>);

impl Decoder {
    pub(crate) fn new() -> Result<Self, StoreError> {
        let decompressor = Decompressor::new().map_err(|cause| StoreError::Path {
            path: "zstd".into(),
            doing: "setting up decompression",
            cause,
        })?;
        Ok(Self(decompressor))
    }

    /// Puts the chunk `name`, which must have exactly the length of `out`, into `out`. What is
    /// stored is opened in place if it is sealed. The error is what is wrong with it.
    pub(crate) fn decode(
        &mut self,
        name: &ChunkName,
        stored: &mut [u8],
        zstd: bool,
        keys: Option<&OpenKeys>,
        out: &mut [u8],
    ) -> Result<(), String> {
        let plain = match keys {
            None => stored,
            Some(keys) => keys
                .open(Kind::Chunk, &name.0, stored)
                .ok_or("it was not sealed with this key, or has been changed")?,
        };
        if zstd {
            let len = self
                .0
                .decompress_to_buffer(plain, out)
                .map_err(|error| format!("it cannot be decompressed: {error}"))?;
            if len != out.len() {
                return Err(format!("it has {len} bytes instead of {}", out.len()));
            }
        } else if plain.len() == out.len() {
            out.copy_from_slice(plain);
        } else {
            return Err(format!(
                "it has {} bytes instead of {}",
                plain.len(),
                out.len()
            ));
        }
        let found = name_of(out, keys);
        if found != *name {
            return Err(format!("its contents are those of {found}"));
        }
        Ok(())
    }
}

/// The name of a chunk with these contents.
pub(crate) fn name_of(contents: &[u8], keys: Option<&OpenKeys>) -> ChunkName {
    match keys {
        Some(keys) => keys.chunk_name(contents),
        None => ChunkName(*blake3::hash(contents).as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::StoreKey;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn chunks_come_back_and_damage_is_found(
            contents in prop_oneof![
                proptest::collection::vec(any::<u8>(), 1..9000),
                (any::<u8>(), 1_usize..9000).prop_map(|(byte, len)| vec![byte; len]),
            ],
            sealed in any::<bool>(),
            at in any::<prop::sample::Index>(),
            bit in 0_u8..8,
        ) {
            let keys = sealed.then(|| OpenKeys::new(&StoreKey::new([3; 32]), &[4; 16]));
            let keys = keys.as_ref();
            let name = name_of(&contents, keys);
            let mut encoder = Encoder::new(1).unwrap();
            let (stored, zstd) = encoder.encode(&name, &contents, keys).unwrap();
            prop_assert!(stored.len() <= contents.len() + SEAL);
            let mut decoder = Decoder::new().unwrap();
            let mut decode = |stored: &[u8], out: &mut [u8]| {
                decoder.decode(&name, &mut stored.to_vec(), zstd, keys, out)
            };
            let mut out = vec![0; contents.len()];
            decode(stored, &mut out).unwrap();
            prop_assert_eq!(&out, &contents);
            let mut bad = stored.to_vec();
            let at = at.index(bad.len());
            bad[at] ^= 1 << bit;
            // A change that decompresses to the same bytes is none.
            let result = decode(&bad, &mut out);
            prop_assert!(result.is_err() || out == contents);
            prop_assert!(decode(stored, &mut vec![0; contents.len() - 1]).is_err());
            prop_assert!(decode(stored, &mut vec![0; contents.len() + 1]).is_err());
        }
    }
}
