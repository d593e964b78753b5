//! `multifd extract`: one RAM block, or an ELF core of all memory, out of a mapped-ram file.

use crate::args::Extract;
use crate::failure::Failure;
use crate::options::Show;
use crate::progress::Watch;
use crate::{elf, report, signals, snapshot_file};
use multifd_core::CancelHandle;
use multifd_qemu::file::SnapshotFile;
use multifd_qemu::{CoreFile, Processor};
use multifd_transport_file::{
    AtomicFile, BlockReader, FileError, PlacedBlock, check_target, extract,
};
use serde::Serialize;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a block between two looks at whether to go on.
const PIECE: u64 = 64 << 20;

#[derive(Serialize)]
struct Extracted {
    ok: bool,
    block: Option<String>,
    segments: Option<usize>,
    /// Processors whose registers are in a core.
    processors: Option<usize>,
    #[serde(flatten)]
    layout: Option<elf::Known>,
    bytes: u64,
    written_bytes: u64,
    file: String,
}

pub(crate) fn run(args: &Extract) -> Result<(), Failure> {
    let cancel = signals::cancel_on_signal()?;
    if let Some(path) = args.out.as_ref().or(args.elf.as_ref()) {
        let mut inputs = vec![args.image.file.as_path()];
        inputs.extend(args.layout.as_deref());
        check_target(path, args.force)?;
        snapshot_file::never_an_input(path, &inputs)?;
    }
    let opened = args.image.open()?;
    let (result, text) = match (&args.block, &args.out, &args.elf) {
        (Some(block), Some(out), _) => one_block(args, block, out, &opened, &cancel)?,
        (_, _, Some(out)) => core(args, out, &opened, &cancel)?,
        _ => return Err(Failure::Other("there is nothing to extract".into())),
    };
    report::print(args.show.json, &result, &text)
}

/// The RAM blocks of a file, each with its bitmap of stored pages, which is read once.
struct Readers<'a>(Vec<BlockReader<'a>>);

impl<'a> Readers<'a> {
    fn new(file: &'a File, placed: &'a [PlacedBlock]) -> Result<Self, Failure> {
        let readers = placed.iter().map(|block| BlockReader::new(file, block));
        Ok(Self(readers.collect::<Result<_, _>>()?))
    }

    fn find(&self, name: &str) -> Option<&BlockReader<'a>> {
        self.0.iter().find(|reader| reader.block().name == name)
    }
}

/// Copies pieces of blocks, and says how far it is.
struct Copying<'a> {
    readers: &'a Readers<'a>,
    out: &'a File,
    cancel: &'a CancelHandle,
    done: Arc<AtomicU64>,
    written: u64,
    _watch: Watch,
}

impl<'a> Copying<'a> {
    fn new(
        readers: &'a Readers<'a>,
        out: &'a File,
        cancel: &'a CancelHandle,
        total: u64,
        show: Show,
    ) -> Self {
        let done = Arc::new(AtomicU64::new(0));
        Self {
            readers,
            out,
            cancel,
            written: 0,
            _watch: Watch::counting("extracting", Arc::clone(&done), total, show.quiet),
            done,
        }
    }

    fn block(&mut self, name: &str, range: Range<u64>, to: u64) -> Result<(), Failure> {
        let Some(reader) = self.readers.find(name) else {
            return Ok(());
        };
        let mut at = range.start;
        while at < range.end {
            if let Some(cancelled) = self.cancel.error() {
                return Err(cancelled.into());
            }
            let end = (at + PIECE).min(range.end);
            // Where nothing is stored, nothing is to be done.
            let next = reader
                .stored_runs(at..range.end)
                .next()
                .map_or(range.end, |run| run.start);
            if next < end {
                self.written += extract(reader, at..end, self.out, to + (at - range.start))?;
                at = end;
            } else {
                at = next;
            }
            self.done
                .fetch_max(to + (at - range.start), Ordering::Relaxed);
        }
        Ok(())
    }
}

fn one_block(
    args: &Extract,
    name: &str,
    path: &Path,
    opened: &SnapshotFile,
    cancel: &CancelHandle,
) -> Result<(Extracted, String), Failure> {
    let block = opened
        .mapped()
        .blocks
        .iter()
        .find(|block| block.name == name);
    let block = block.ok_or_else(|| {
        let names: Vec<_> = opened
            .mapped()
            .blocks
            .iter()
            .map(|block| block.name.as_str())
            .collect();
        Failure::NoBlock {
            path: args.image.file.clone(),
            block: name.into(),
            known: names.join(", "),
        }
    })?;
    let out = AtomicFile::create(path, args.force)?;
    let len = block.layout.used_length();
    extend(out.file(), len, path)?;
    let readers = Readers::new(opened.file(), std::slice::from_ref(block))?;
    let mut copying = Copying::new(&readers, out.file(), cancel, len, args.show);
    let copied = copying.block(name, 0..len, 0);
    let written_bytes = copying.written;
    drop(copying);
    copied.map_err(|error| at_path(path, error))?;
    finish(out, cancel)?;
    let result = Extracted {
        ok: true,
        block: Some(block.name.clone()),
        segments: None,
        processors: None,
        layout: None,
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
    opened: &SnapshotFile,
    cancel: &CancelHandle,
) -> Result<(Extracted, String), Failure> {
    let digest = snapshot_file::own_companion(opened.path(), opened);
    let (map, known) = elf::layout(opened, digest.as_ref(), args.layout.as_deref())?;
    let processors = Processor::all(&opened.mapped().tail);
    let core = CoreFile::x86(&map, &processors);
    let out = AtomicFile::create(path, args.force)?;
    extend(out.file(), core.len(), path)?;
    out.file()
        .write_all_at(&core.head, 0)
        .map_err(|cause| FileError::Path {
            path: path.into(),
            doing: "writing",
            cause,
        })?;
    let readers = Readers::new(opened.file(), &opened.mapped().blocks)?;
    let mut copying = Copying::new(&readers, out.file(), cancel, core.len(), args.show);
    let copied = core.segments.iter().try_for_each(|segment| {
        let range = segment.offset..segment.offset + segment.len;
        copying.block(&segment.block, range, segment.at)
    });
    let written_bytes = copying.written + core.head.len() as u64;
    drop(copying);
    copied.map_err(|error| at_path(path, error))?;
    finish(out, cancel)?;
    let bytes = core.segments.iter().map(|segment| segment.len).sum();
    let result = Extracted {
        ok: true,
        block: None,
        segments: Some(core.segments.len()),
        processors: Some(processors.len()),
        layout: Some(known),
        bytes,
        written_bytes,
        file: path.display().to_string(),
    };
    let text = format!(
        "{}: {bytes} bytes of guest physical memory in {} segments, registers of {} processors\n{}",
        result.file,
        core.segments.len(),
        processors.len(),
        result
            .layout
            .as_ref()
            .map(elf::Known::line)
            .unwrap_or_default(),
    );
    Ok((result, text))
}

/// An error within a file that is written, with its name.
fn at_path(path: &Path, error: Failure) -> Failure {
    match error {
        Failure::File(
            error @ FileError::At {
                doing: "writing", ..
            },
        ) => Failure::InFile {
            path: path.into(),
            reason: error.to_string(),
        },
        other => other,
    }
}

fn extend(out: &File, len: u64, path: &Path) -> Result<(), Failure> {
    let extended = out.set_len(len);
    Ok(extended.map_err(|cause| FileError::Path {
        path: path.into(),
        doing: "extending",
        cause,
    })?)
}

fn finish(out: AtomicFile, cancel: &CancelHandle) -> Result<(), Failure> {
    match cancel.error() {
        Some(cancelled) => Err(cancelled.into()),
        None => Ok(out.commit()?),
    }
}
