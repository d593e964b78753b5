//! Is a snapshot's file whole, and does it hold what it was written with?

use super::SnapshotFile;
use crate::PlacedBlock;
use multifd_transport_file::{BlockReader, Digest, FileError};
use std::fs::File;

/// What [`SnapshotFile::verify`] has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verification {
    /// Pages stored, over all blocks.
    pub stored_pages: u64,
    /// Whether there were checksums to check against.
    pub digest: bool,
    /// What is wrong, in words. Empty: nothing.
    pub problems: Vec<String>,
    /// Pieces of memory that differ from their checksums.
    pub damaged: Vec<Damage>,
}

/// A piece of memory that differs from its checksum.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Damage {
    /// The RAM block.
    pub block: String,
    /// Offset of the piece, a MiB, in the block, bytes.
    pub offset: u64,
    /// The guest physical address of its first byte, if the companion says where memory lies.
    pub address: Option<u64>,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "RAM block {:?}: the MiB at {:#x} differs from its checksum",
            self.block, self.offset
        )?;
        match self.address {
            Some(address) => write!(f, " (guest physical address {address:#x})"),
            None => Ok(()),
        }
    }
}

impl SnapshotFile {
    /// Checks the file's structure, and all memory against the checksums of its companion, if it
    /// has one. It is read piece by piece, by all processors.
    pub fn verify(&self) -> Verification {
        let mut found = Verification::default();
        if self.mapped().tail.sections().is_none() {
            found.problems.push(
                "the device sections and QEMU's description of them do not fit, or it is missing"
                    .into(),
            );
        }
        let mut readers = Vec::with_capacity(self.mapped().blocks.len());
        for block in &self.mapped().blocks {
            match BlockReader::new(self.file(), block).and_then(|reader| {
                check_block(&reader, self.file(), &mut found.problems)?;
                Ok(reader)
            }) {
                Ok(reader) => readers.push(reader),
                Err(error) => {
                    let name = &block.name;
                    found.problems.push(format!("RAM block {name:?}: {error}"));
                }
            }
        }
        let stored = |reader: &BlockReader<'_>| reader.stored().count();
        found.stored_pages = readers.iter().map(stored).sum();
        match self.companion() {
            Ok(Some(digest)) => {
                found.digest = true;
                self.check_digest(&digest, &readers, &mut found);
            }
            Ok(None) => {}
            Err(error) => found.problems.push(error.to_string()),
        }
        found
    }

    fn check_digest(&self, digest: &Digest, readers: &[BlockReader<'_>], found: &mut Verification) {
        let Verification {
            problems, damaged, ..
        } = found;
        let tail = &self.mapped().tail;
        if Digest::of_rest(&[tail.early(), tail.bytes()]) != digest.rest {
            problems.push("the device sections differ from their checksum".into());
        }
        for (index, block) in digest.blocks.iter().enumerate() {
            let name = &block.name;
            let Some(reader) = readers.iter().find(|reader| reader.block().name == *name) else {
                problems.push(format!(
                    "RAM block {name:?} has checksums, and is not in the file"
                ));
                continue;
            };
            match block.check(reader) {
                Ok(chunks) => damaged.extend(chunks.into_iter().map(|offset| Damage {
                    block: name.clone(),
                    offset,
                    address: address(digest, index, offset),
                })),
                Err(error) => problems.push(format!("RAM block {name:?}: {error}")),
            }
        }
        problems.extend(damaged.iter().map(Damage::to_string));
        for reader in readers {
            let name = &reader.block().name;
            if !digest.blocks.iter().any(|block| block.name == *name) {
                problems.push(format!("RAM block {name:?} has no checksums"));
            }
        }
    }
}

/// Where in guest physical memory a byte of a block lies.
fn address(digest: &Digest, block: usize, offset: u64) -> Option<u64> {
    let range = digest.layout.iter().find(|range| {
        range.block as usize == block && (range.offset..range.offset + range.len).contains(&offset)
    })?;
    Some(range.address + (offset - range.offset))
}

/// Are all stored pages within the file, and is nothing said of pages that do not exist?
fn check_block(
    reader: &BlockReader<'_>,
    file: &File,
    problems: &mut Vec<String>,
) -> Result<(), FileError> {
    let PlacedBlock { name, layout } = reader.block();
    let (stored, page_size) = (reader.stored(), layout.header().page_size);
    let beyond = stored.count_in(layout.pages()..layout.bitmap_len() * 8);
    if beyond > 0 {
        problems.push(format!(
            "RAM block {name:?}: the bitmap has {beyond} pages that do not exist"
        ));
    }
    let last = stored.runs(0..layout.pages()).last().map(|run| run.end - 1);
    let end = file.metadata().map_or(0, |data| data.len());
    if let Some(last) = last {
        let needed = layout.header().pages_offset + (last + 1) * page_size;
        if needed > end {
            return Err(FileError::Short {
                what: "pages",
                offset: layout.header().pages_offset,
                len: (last + 1) * page_size,
                end,
            });
        }
    }
    Ok(())
}
