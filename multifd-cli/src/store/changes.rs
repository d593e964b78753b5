//! What is taken out of a store, or into another one.

use crate::failure::Failure;
use crate::progress::Watch;
use crate::store_args::{Copy, Gc, Key, Rm};
use crate::{report, signals};
use indicatif::HumanBytes;
use multifd_transport_store::{
    ChunkCache, GcOptions, GcReport, WriteOptions, Writer, gc as collect,
};
use serde::Serialize;
use std::fmt::Write;

/// Threads that read and compress when a snapshot is copied: most of the time they wait.
const COPYING: usize = 16;
/// Bytes of chunks that are kept while a snapshot is copied.
const CACHE: usize = 8 << 20;

#[derive(Serialize)]
struct Removed {
    ok: bool,
    removed: Vec<String>,
}

pub(super) fn rm(args: &Rm) -> Result<(), Failure> {
    let mut removed = Vec::new();
    for snapshot in &args.snapshots {
        args.key.open(&snapshot.store)?.remove(&snapshot.name)?;
        removed.push(snapshot.to_string());
    }
    let text = format!("removed {}", removed.join(", "));
    report::print(args.show.json, &Removed { ok: true, removed }, &text)
}

#[derive(Serialize)]
struct Collected {
    ok: bool,
    store: String,
    dry_run: bool,
    #[serde(flatten)]
    report: GcReport,
}

pub(super) fn gc(args: &Gc) -> Result<(), Failure> {
    let cancel = signals::cancel_on_signal()?;
    let store = args.key.open(&args.store)?;
    let options = GcOptions::default().dry_run(args.dry_run).cancel(cancel);
    let report = collect(&store, &options)?;
    let result = Collected {
        ok: true,
        store: args.store.to_string(),
        dry_run: args.dry_run,
        report,
    };
    let report = &result.report;
    let mut text = format!(
        "{}: {} {} packs ({}); {} snapshots keep the others",
        result.store,
        if args.dry_run {
            "would remove"
        } else {
            "removed"
        },
        report.removed_packs,
        HumanBytes(report.removed_bytes),
        report.snapshots,
    );
    if report.repacked > 0 {
        // Writing to a String does not fail.
        let _ = write!(
            text,
            "\n{} packs {} rewritten without what is not used",
            report.repacked,
            if args.dry_run { "would be" } else { "were" },
        );
    }
    if report.waiting_packs > 0 {
        let _ = write!(
            text,
            "\n{} packs ({}) wait for {} writers and readers to end; a later gc removes them",
            report.waiting_packs,
            HumanBytes(report.waiting_bytes),
            report.waiting_for
        );
    }
    report::print(args.show.json, &result, &text)
}

#[derive(Serialize)]
struct Copied {
    ok: bool,
    snapshot: String,
    to: String,
    logical_bytes: u64,
    stored_bytes: u64,
    /// Bytes that the other store lacked.
    new_bytes: u64,
}

pub(super) fn copy(args: &Copy) -> Result<(), Failure> {
    let cancel = signals::cancel_on_signal()?;
    let cache = ChunkCache::new(CACHE);
    let snapshot = args.key.open_snapshot(&args.snapshot, &cache)?;
    let key = Key {
        key_file: args.to_key_file.clone(),
        retry_timeout: args.key.retry_timeout,
    };
    if snapshot.store().is_encrypted() && args.to_key_file.is_none() && !args.plain {
        return Err(Failure::Other(format!(
            "{} is encrypted: name the key of {} (--to-key-file), or write it in the clear \
             (--plain)",
            args.snapshot, args.to
        )));
    }
    let chunk_size = snapshot.manifest().head.chunk_size;
    let to = key.other_store(&args.to, chunk_size)?;
    let name = args.name.as_deref().unwrap_or(&args.snapshot.name);
    let options = WriteOptions::default()
        .level(args.effort.store_level)
        .threads(COPYING)
        .cancel(cancel);
    let mut writer = Writer::start(&to, name, options)?;
    let total = snapshot.manifest().head.sizes.logical;
    let watch = Watch::counting("copying", writer.done(), total, args.show.quiet);
    let copied = writer.copy(&snapshot);
    drop(watch);
    copied?;
    let head = writer.finish()?;
    let result = Copied {
        ok: true,
        snapshot: args.snapshot.to_string(),
        to: format!("store:{}#{}", args.to, head.name),
        logical_bytes: head.sizes.logical,
        stored_bytes: head.sizes.stored,
        new_bytes: head.sizes.new,
    };
    let text = format!(
        "{}: {} of {} were not there yet",
        result.to,
        HumanBytes(result.new_bytes),
        HumanBytes(result.stored_bytes)
    );
    report::print(args.show.json, &result, &text)
}
