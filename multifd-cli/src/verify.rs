//! `multifd verify`: is a mapped-ram file whole, and does it hold what it was written with?

use crate::args::Verify;
use crate::failure::Failure;
use crate::image_file::in_store;
use crate::progress::Watch;
use crate::{report, signals};
use multifd_qemu::file::SnapshotFile;
use multifd_transport_store::{ChunkCache, SnapshotAddress};
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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
    if let Some(address) = in_store(&args.image.file)? {
        return scrub(args, &address);
    }
    let path = &args.image.file;
    let opened = SnapshotFile::open(path, args.image.offset)?;
    let found = opened.verify();
    let mut problems = found.problems;
    if !found.digest && args.require_digest {
        problems.push("there is no companion with checksums".into());
    }
    let result = Verified {
        ok: problems.is_empty(),
        file: path.display().to_string(),
        blocks: opened.mapped().blocks.len(),
        stored_pages: found.stored_pages,
        digest: found.digest,
        problems,
    };
    let against = if found.digest {
        "every page is as its checksum says"
    } else {
        "no checksums to check pages against"
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

#[derive(Serialize)]
struct Scrubbed {
    ok: bool,
    snapshot: String,
    chunks: usize,
    stored_bytes: u64,
    problems: Vec<String>,
}

/// Threads that read chunks: more than processors, as they wait for storage.
const READERS: usize = 8;

/// Reads every chunk of a snapshot in a store: each one's name says what it must hold.
fn scrub(args: &Verify, address: &SnapshotAddress) -> Result<(), Failure> {
    let cancel = signals::cancel_on_signal()?;
    let cache = ChunkCache::new(0);
    let snapshot = args.image.key.open_snapshot(address, &cache)?;
    let head = &snapshot.manifest().head;
    let done = Arc::new(AtomicU64::new(0));
    let (seen, size) = (Arc::clone(&done), u64::from(head.chunk_size));
    let position = move || (seen.load(Ordering::Relaxed) * size, None);
    let chunks = snapshot.manifest().chunks().len();
    let watch = Watch::of("verifying", position, chunks as u64 * size, args.show.quiet);
    let problems = snapshot.verify(READERS, &done, &cancel);
    drop(watch);
    let result = Scrubbed {
        ok: true,
        snapshot: address.to_string(),
        chunks,
        stored_bytes: head.sizes.stored,
        problems: problems?,
    };
    let result = Scrubbed {
        ok: result.problems.is_empty(),
        ..result
    };
    let text = if result.ok {
        let all = "each holds what its name says";
        format!("{}: all {chunks} chunks are there; {all}", result.snapshot)
    } else {
        format!("{}: {}", result.snapshot, result.problems.join("\n"))
    };
    report::print(args.show.json, &result, &text)?;
    if result.ok {
        Ok(())
    } else {
        Err(Failure::Reported)
    }
}
