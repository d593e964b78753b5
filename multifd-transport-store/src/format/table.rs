//! The binary part of a manifest: packs, chunks, and which chunk is where.

use super::ChunkRef;
use super::cursor::Cursor;
use crate::name::{CHUNK_NAME, ChunkName, PACK_NAME, PackName};
use std::io::{self, BufWriter, IntoInnerError, Write};
use zstd::stream::write::Encoder;

/// Bytes of a chunk in a manifest: name, pack, offset, length.
pub(crate) const CHUNK: usize = CHUNK_NAME + 12;

/// What the binary part says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Body {
    pub(crate) packs: Vec<PackName>,
    pub(crate) chunks: Vec<ChunkRef>,
    /// For each object, for each of its chunks: 0 for zeros, or the chunk's number plus one.
    pub(crate) tables: Vec<Vec<u32>>,
}

impl Body {
    /// Its bytes before compression.
    pub(crate) fn len(&self) -> usize {
        let entries: usize = self.tables.iter().map(Vec::len).sum();
        8 + self.packs.len() * PACK_NAME + self.chunks.len() * CHUNK + entries * 4
    }

    /// Its bytes, compressed as they are made: they are many.
    pub(crate) fn compress(self, level: i32) -> io::Result<Vec<u8>> {
        let mut out = Encoder::new(Vec::new(), level)?;
        out.set_pledged_src_size(Some(self.len() as u64))?;
        let mut out = BufWriter::new(out);
        out.write_all(&(self.packs.len() as u32).to_le_bytes())?;
        out.write_all(&(self.chunks.len() as u32).to_le_bytes())?;
        for pack in &self.packs {
            out.write_all(&pack.0)?;
        }
        for chunk in &self.chunks {
            out.write_all(&chunk.name.0)?;
            out.write_all(&chunk.pack.to_le_bytes())?;
            out.write_all(&chunk.offset.to_le_bytes())?;
            out.write_all(&chunk.len_word().to_le_bytes())?;
        }
        for entry in self.tables.iter().flatten() {
            out.write_all(&entry.to_le_bytes())?;
        }
        let out = out.into_inner().map_err(IntoInnerError::into_error)?;
        out.finish()
    }

    /// How many bytes a body has at most, with this many table entries in all.
    pub(crate) fn largest(entries: u64) -> u64 {
        // No entry has more than a chunk of its own, and no chunk more than a pack of its own.
        8 + entries.saturating_mul((PACK_NAME + CHUNK + 4) as u64)
    }

    /// Reads it; `counts` are the entries of each table. The error says what is wrong.
    pub(crate) fn read(bytes: &[u8], counts: &[u64]) -> Result<Self, &'static str> {
        const SHORT: &str = "its chunk table ends early";
        let mut cursor = Cursor(bytes);
        let packs = cursor.u32().ok_or(SHORT)? as usize;
        let chunks = cursor.u32().ok_or(SHORT)? as usize;
        let entries: u64 = counts.iter().sum();
        let len = (packs as u64 * PACK_NAME as u64)
            .saturating_add(chunks as u64 * CHUNK as u64)
            .saturating_add(entries.saturating_mul(4));
        if cursor.0.len() as u64 != len {
            return Err("its chunk table does not have the length it says");
        }
        // Each chunk is for some place.
        if chunks as u64 > entries {
            return Err("it lists more chunks than it has places for");
        }
        let mut body = Self {
            packs: Vec::with_capacity(packs),
            chunks: Vec::with_capacity(chunks),
            tables: Vec::with_capacity(counts.len()),
        };
        for _ in 0..packs {
            body.packs.push(PackName(cursor.array().ok_or(SHORT)?));
        }
        for _ in 0..chunks {
            let name = ChunkName(cursor.array().ok_or(SHORT)?);
            let pack = cursor.u32().ok_or(SHORT)?;
            let offset = cursor.u32().ok_or(SHORT)?;
            let word = cursor.u32().ok_or(SHORT)?;
            let (len, zstd) = ChunkRef::of_word(word).ok_or("a chunk's length is out of bounds")?;
            if pack as usize >= packs {
                return Err("a chunk is in a pack that is not listed");
            }
            if offset.checked_add(len).is_none() {
                return Err("a chunk's offset is out of bounds");
            }
            body.chunks.push(ChunkRef {
                name,
                pack,
                offset,
                len,
                zstd,
            });
        }
        for &count in counts {
            let bytes = cursor.take(count as usize * 4).ok_or(SHORT)?;
            let entries = bytes.chunks_exact(4);
            let table: Vec<u32> = entries
                .map(|entry| entry.try_into().map_or(0, u32::from_le_bytes))
                .collect();
            if table.iter().any(|&entry| entry as usize > chunks) {
                return Err("a chunk is used that is not listed");
            }
            body.tables.push(table);
        }
        Ok(body)
    }
}
