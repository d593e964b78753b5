//! `multifd verify`: is a mapped-ram file whole, and does it hold what it was written with?

use crate::args::Verify;
use crate::failure::Failure;
use crate::report;
use multifd_qemu::MappedFile;
use multifd_qemu::file::SnapshotFile;
use multifd_transport_file::{BlockReader, Digest, FileError, PlacedBlock};
use serde::Serialize;
use std::fs::File;

#[derive(Serialize)]
struct Verified {
    ok: bool,
    file: String,
    blocks: usize,
    stored_pages: u64,
    /// Whether there were checksums to check against.
    digest: bool,
    problems: Vec<String>,
}

pub(crate) fn run(args: &Verify) -> Result<(), Failure> {
    let path = &args.image.file;
    let opened = SnapshotFile::open(path, args.image.offset)?;
    let (file, mapped) = (opened.file(), opened.mapped());
    let mut problems = Vec::new();
    if mapped.tail.sections().is_none() {
        problems.push(
            "the device sections and QEMU's description of them do not fit, or it is missing"
                .to_owned(),
        );
    }
    let mut readers = Vec::new();
    for block in &mapped.blocks {
        match BlockReader::new(file, block).and_then(|reader| {
            check_block(&reader, file, &mut problems)?;
            Ok(reader)
        }) {
            Ok(reader) => readers.push(reader),
            Err(error) => problems.push(format!("RAM block {:?}: {error}", block.name)),
        }
    }
    let digest = opened.companion().unwrap_or_else(|error| {
        problems.push(error.to_string());
        None
    });
    match &digest {
        Some(digest) => check_digest(digest, mapped, &readers, &mut problems),
        None if args.require_digest => problems.push("there is no companion with checksums".into()),
        None => {}
    }
    let stored = |reader: &BlockReader<'_>| reader.stored().count();
    let result = Verified {
        ok: problems.is_empty(),
        file: path.display().to_string(),
        blocks: mapped.blocks.len(),
        stored_pages: readers.iter().map(stored).sum(),
        digest: digest.is_some(),
        problems,
    };
    let against = match digest {
        Some(_) => "every page is as its checksum says",
        None => "no checksums to check pages against",
    };
    let text = if result.ok {
        format!("{}: whole; {against}", result.file)
    } else {
        format!("{}: {}", result.file, result.problems.join("\n"))
    };
    report::print(args.show.json, &result, &text)?;
    if result.ok {
        Ok(())
    } else {
        Err(Failure::Reported)
    }
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

fn check_digest(
    digest: &Digest,
    mapped: &MappedFile,
    readers: &[BlockReader<'_>],
    problems: &mut Vec<String>,
) {
    if Digest::of_rest(&[mapped.tail.early(), mapped.tail.bytes()]) != digest.rest {
        problems.push("the device sections differ from their checksum".into());
    }
    for block in &digest.blocks {
        let Some(reader) = readers
            .iter()
            .find(|reader| reader.block().name == block.name)
        else {
            problems.push(format!(
                "RAM block {:?} has checksums, and is not in the file",
                block.name
            ));
            continue;
        };
        match block.check(reader) {
            Ok(chunks) => problems.extend(chunks.iter().map(|at| {
                format!(
                    "RAM block {:?}: the MiB at {at:#x} differs from its checksum",
                    block.name
                )
            })),
            Err(error) => problems.push(format!("RAM block {:?}: {error}", block.name)),
        }
    }
    for reader in readers {
        let name = &reader.block().name;
        if !digest.blocks.iter().any(|block| block.name == *name) {
            problems.push(format!("RAM block {name:?} has no checksums"));
        }
    }
}
