//! `multifd extract`: one RAM block, or an ELF core of all memory, out of a mapped-ram file.

use crate::args::Extract;
use crate::failure::Failure;
use crate::{elf, report, signals, snapshot_file};
use multifd_core::CancelHandle;
use multifd_qemu::MappedFile;
use multifd_transport_file::{AtomicFile, BlockReader, FileError, extract};
use serde::Serialize;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

#[derive(Serialize)]
struct Extracted {
    ok: bool,
    block: Option<String>,
    segments: Option<usize>,
    bytes: u64,
    written_bytes: u64,
    file: String,
}

pub(crate) fn run(args: &Extract) -> Result<(), Failure> {
    let cancel = signals::cancel_on_signal()?;
    if let Some(path) = args.out.as_ref().or(args.elf.as_ref()) {
        snapshot_file::check_target(path, args.force)?;
    }
    let (file, mapped) = snapshot_file::inspect(&args.file)?;
    let (result, text) = match (&args.block, &args.out, &args.elf) {
        (Some(block), Some(out), _) => one_block(args, block, out, (&file, &mapped), &cancel)?,
        (_, _, Some(out)) => core(args, out, (&file, &mapped), &cancel)?,
        _ => return Err(Failure::Other("there is nothing to extract".into())),
    };
    report::print(args.show.json, &result, &text);
    Ok(())
}

fn one_block(
    args: &Extract,
    name: &str,
    path: &Path,
    (file, mapped): (&File, &MappedFile),
    cancel: &CancelHandle,
) -> Result<(Extracted, String), Failure> {
    let block = mapped.blocks.iter().find(|block| block.name == name);
    let block = block.ok_or_else(|| {
        let names: Vec<_> = mapped.blocks.iter().map(|block| block.name.as_str()).collect();
        Failure::NoBlock {
            path: args.file.clone(),
            block: name.into(),
            known: names.join(", "),
        }
    })?;
    let out = AtomicFile::create(path, args.force)?;
    let (placed, len) = (snapshot_file::placed(block), block.layout.used_length());
    extend(out.file(), len, path)?;
    let written_bytes = extract(&BlockReader::new(file, &placed)?, 0..len, out.file(), 0)?;
    finish(out, cancel)?;
    let result = Extracted {
        ok: true,
        block: Some(block.name.clone()),
        segments: None,
        bytes: len,
        written_bytes,
        file: path.display().to_string(),
    };
    let text = format!("{}: {len} bytes of RAM block {name}", result.file);
    Ok((result, text))
}

fn core(
    args: &Extract,
    path: &Path,
    (file, mapped): (&File, &MappedFile),
    cancel: &CancelHandle,
) -> Result<(Extracted, String), Failure> {
    let segments = elf::segments(mapped).map_err(Failure::Other)?;
    let out = AtomicFile::create(path, args.force)?;
    let end = segments.last().map_or(0, |last| last.at + last.len);
    extend(out.file(), end, path)?;
    let headers = elf::headers(&segments);
    out.file()
        .write_all_at(&headers, 0)
        .map_err(|source| FileError::Path {
            path: path.into(),
            doing: "writing",
            source,
        })?;
    let mut written_bytes = headers.len() as u64;
    for segment in &segments {
        if let Some(block) = mapped.blocks.get(segment.block) {
            let placed = snapshot_file::placed(block);
            let range = segment.offset..segment.offset + segment.len;
            written_bytes += extract(&BlockReader::new(file, &placed)?, range, out.file(), segment.at)?;
        }
    }
    finish(out, cancel)?;
    let bytes = segments.iter().map(|segment| segment.len).sum();
    let result = Extracted {
        ok: true,
        block: None,
        segments: Some(segments.len()),
        bytes,
        written_bytes,
        file: path.display().to_string(),
    };
    let text = format!(
        "{}: {bytes} bytes of guest physical memory in {} segments",
        result.file,
        segments.len()
    );
    Ok((result, text))
}

fn extend(out: &File, len: u64, path: &Path) -> Result<(), Failure> {
    let extended = out.set_len(len);
    Ok(extended.map_err(|source| FileError::Path {
        path: path.into(),
        doing: "extending",
        source,
    })?)
}

fn finish(out: AtomicFile, cancel: &CancelHandle) -> Result<(), Failure> {
    match cancel.error() {
        Some(cancelled) => Err(cancelled.into()),
        None => Ok(out.commit()?),
    }
}
