//! Files into a store, and out of it.

use crate::failure::Failure;
use crate::options::Show;
use crate::progress::Watch;
use crate::store_args::{Export, Import};
use crate::{output, report, signals, snapshot_file};
use indicatif::HumanBytes;
use multifd_core::CancelHandle;
use multifd_qemu::file::{SnapshotFile, map_raw};
use multifd_qemu::store::{MAPPED, put};
use multifd_transport_file::{AtomicFile, check_target, companion};
use multifd_transport_store::{ChunkCache, SnapshotFiles, WriteOptions};
use serde::Serialize;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Threads that read a snapshot: more than processors, as they wait for storage.
const READERS: usize = 8;

pub(super) fn import(args: &Import) -> Result<(), Failure> {
    let cancel = signals::cancel_on_signal()?;
    let file = if args.raw {
        Input::Raw(map_raw(&args.file, &args.block)?)
    } else {
        Input::Mapped(SnapshotFile::open(&args.file, args.offset)?)
    };
    let mut attached = Vec::new();
    for (name, path) in &args.attach {
        attached.push((name, read_attachment(path)?));
    }
    let store = args
        .key
        .open_or_create(&args.snapshot.store, args.chunk_size)?;
    let options = WriteOptions::default()
        .level(args.effort.store_level)
        .cancel(cancel);
    let total = match &file {
        Input::Mapped(file) => file.mapped().ram_bytes(),
        Input::Raw(snapshot) => snapshot.ram.total_len(),
    };
    let place = (&store, &args.snapshot);
    let stored = output::put(place, options, total, args.show, |writer| {
        match &file {
            Input::Mapped(file) => put(writer, file, None)?,
            Input::Raw(snapshot) => {
                for block in snapshot.ram.blocks() {
                    writer.block(block, &snapshot.zero_pages)?;
                }
                writer.about("kind", "raw".into());
            }
        }
        for (name, bytes) in &attached {
            writer.whole_file(name, bytes)?;
        }
        Ok(())
    })?;
    let text = stored.line();
    report::print(args.show.json, &stored, &text)
}

/// What is imported.
enum Input {
    Mapped(SnapshotFile),
    Raw(multifd_qemu::Snapshot),
}

/// Most bytes of a file that is kept beside memory.
const MAX_ATTACHMENT: u64 = 64 << 20;

fn read_attachment(path: &Path) -> Result<Vec<u8>, Failure> {
    let open = |cause| Failure::Open {
        path: path.into(),
        cause,
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(open)?;
    file.take(MAX_ATTACHMENT + 1)
        .read_to_end(&mut bytes)
        .map_err(open)?;
    if bytes.len() as u64 > MAX_ATTACHMENT {
        return Err(Failure::Other(format!(
            "{}: a file beside memory has at most {MAX_ATTACHMENT} bytes",
            path.display()
        )));
    }
    Ok(bytes)
}

#[derive(Serialize)]
struct Exported {
    ok: bool,
    snapshot: String,
    file: String,
    bytes: u64,
    /// Bytes that are not holes.
    written_bytes: u64,
}

pub(super) fn export(args: &Export) -> Result<(), Failure> {
    let cancel = signals::cancel_on_signal()?;
    check_target(&args.out, args.force)?;
    if let Some(folder) = args.snapshot.store.folder() {
        snapshot_file::never_an_input(&args.out, &[folder])?;
    }
    let snapshot = args
        .key
        .open_snapshot(&args.snapshot, &ChunkCache::new(0))?;
    let files = SnapshotFiles::new(&snapshot);
    let Some(bytes) = files.len(&args.file) else {
        let known: Vec<_> = files.paths().map(|(path, _)| path).collect();
        return Err(Failure::Other(format!(
            "{} has no file {:?}; it has {}",
            args.snapshot,
            args.file,
            known.join(", ")
        )));
    };
    // Beside a mapped-ram file belong its checksums, and no other one's.
    let beside = companion(MAPPED.as_ref()).display().to_string();
    let crc = companion(&args.out);
    if args.file == MAPPED {
        check_target(&crc, args.force)?;
    }
    let write =
        |path: &str, to: &Path| write_out(&files, path, (to, args.force), &cancel, args.show);
    let (out, written) = write(&args.file, &args.out)?;
    let checksums = (args.file == MAPPED && files.len(&beside).is_some())
        .then(|| write(&beside, &crc))
        .transpose()?;
    if args.file == MAPPED {
        // In between, no file has checksums that are not its own.
        match std::fs::remove_file(&crc) {
            Err(cause) if cause.kind() != ErrorKind::NotFound => {
                return Err(Failure::Open { path: crc, cause });
            }
            _ => {}
        }
    }
    out.commit()?;
    if let Some((checksums, _)) = checksums {
        checksums.commit()?;
    }
    let result = Exported {
        ok: true,
        snapshot: args.snapshot.to_string(),
        file: args.out.display().to_string(),
        bytes,
        written_bytes: written,
    };
    let text = format!(
        "{}: {} of {}, {} written",
        result.file,
        args.file,
        result.snapshot,
        HumanBytes(written)
    );
    report::print(args.show.json, &result, &text)
}

/// Writes one of a snapshot's files; it appears when it is committed. Returns the bytes that are
/// not holes, too.
fn write_out(
    files: &SnapshotFiles,
    path: &str,
    (to, replace): (&Path, bool),
    cancel: &CancelHandle,
    show: Show,
) -> Result<(AtomicFile, u64), Failure> {
    let out = AtomicFile::create(to, replace)?;
    let done = Arc::new(AtomicU64::new(0));
    let total = files.len(path).unwrap_or(0);
    let watch = Watch::counting("exporting", Arc::clone(&done), total, show.quiet);
    let written = files.write_to(path, (out.file(), to), READERS, &done, cancel);
    drop(watch);
    written?;
    if let Some(cancelled) = cancel.error() {
        return Err(cancelled.into());
    }
    Ok((out, done.load(Ordering::Relaxed)))
}
