//! What is in a store.

use crate::failure::Failure;
use crate::report;
use crate::store_args::{Ls, ShowSnapshot};
use indicatif::HumanBytes;
use multifd_transport_store::{
    ChunkCache, Object, Snapshot, SnapshotFiles, SnapshotUsage, StoreError, Usage,
};
use serde::Serialize;
use std::fmt::Write;

#[derive(Serialize)]
struct Listing {
    ok: bool,
    store: String,
    snapshots: Vec<Line>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unreadable: Vec<Unreadable>,
}

/// A manifest that cannot be read.
#[derive(Serialize)]
struct Unreadable {
    object: String,
    error: String,
}

/// Lists manifests that cannot be read, as text, too.
fn unreadable(found: Vec<(String, StoreError)>, text: &mut String) -> Vec<Unreadable> {
    let one = |(object, error): (String, StoreError)| Unreadable {
        object,
        error: error.to_string(),
    };
    let all: Vec<_> = found.into_iter().map(one).collect();
    for Unreadable { error, .. } in &all {
        // Writing to a String does not fail.
        let _ = write!(text, "\ncannot be read: {error}");
    }
    all
}

/// Prints a result. It is a failure if something could not be read.
fn conclude(json: bool, result: &impl Serialize, text: &str, ok: bool) -> Result<(), Failure> {
    report::print(json, result, text)?;
    if ok { Ok(()) } else { Err(Failure::Reported) }
}

#[derive(Serialize)]
struct Line {
    name: String,
    /// Seconds since 1970.
    created: u64,
    /// Bytes of all that can be read from it.
    logical_bytes: u64,
    /// Bytes of that in chunks that are not zero.
    nonzero_bytes: u64,
    /// Bytes stored for it alone.
    unique_bytes: u64,
    /// Bytes stored for it and for others.
    shared_bytes: u64,
    manifest_bytes: u64,
    has_working_set: bool,
    about: serde_json::Map<String, serde_json::Value>,
}

impl From<SnapshotUsage> for Line {
    fn from(usage: SnapshotUsage) -> Self {
        Self {
            name: usage.head.name,
            created: usage.head.created,
            logical_bytes: usage.head.sizes.logical,
            nonzero_bytes: usage.head.sizes.nonzero,
            unique_bytes: usage.unique,
            shared_bytes: usage.shared,
            manifest_bytes: usage.manifest,
            has_working_set: usage.has_working_set,
            about: usage.head.about,
        }
    }
}

/// A time as people write it, UTC.
fn date(seconds: u64) -> String {
    let (days, rest) = (seconds / 86400, seconds % 86400);
    // Days since 0000-03-01, in years that begin in March: leap days come last.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, more) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    let year = era * 400 + year_of_era + more;
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

pub(super) fn ls(args: &Ls) -> Result<(), Failure> {
    let store = args.key.open(&args.store)?;
    let usage = store.usage()?;
    let mut result = Listing {
        ok: usage.unreadable.is_empty(),
        store: args.store.to_string(),
        snapshots: usage.snapshots.into_iter().map(Line::from).collect(),
        unreadable: Vec::new(),
    };
    let mut text = format!(
        "{:<19} {:>12} {:>12} {:>12} {:>12}  name",
        "taken (UTC)", "logical", "not zero", "its own", "shared"
    );
    for line in &result.snapshots {
        // Writing to a String does not fail.
        let _ = write!(
            text,
            "\n{:<19} {:>12} {:>12} {:>12} {:>12}  {}",
            date(line.created),
            HumanBytes(line.logical_bytes).to_string(),
            HumanBytes(line.nonzero_bytes).to_string(),
            HumanBytes(line.unique_bytes).to_string(),
            HumanBytes(line.shared_bytes).to_string(),
            line.name
        );
    }
    if result.snapshots.is_empty() {
        text = format!("{} has no snapshots", result.store);
    }
    result.unreadable = unreadable(usage.unreadable, &mut text);
    conclude(args.show.json, &result, &text, result.ok)
}

#[derive(Serialize)]
struct Stats {
    ok: bool,
    store: String,
    id: String,
    encrypted: bool,
    chunk_size: u32,
    #[serde(flatten)]
    usage: Usage,
    /// How many times its stored bytes all snapshots have that are not zero.
    saved_times: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unreadable: Vec<Unreadable>,
}

pub(super) fn stats(args: &Ls) -> Result<(), Failure> {
    let store = args.key.open(&args.store)?;
    let found = store.usage()?;
    let usage = found.all;
    #[allow(clippy::cast_precision_loss)] // Two digits are shown.
    let times = |more: u64, less: u64| (less > 0).then(|| more as f64 / less as f64);
    let mut result = Stats {
        ok: found.unreadable.is_empty(),
        store: args.store.to_string(),
        id: store.id().into(),
        encrypted: store.is_encrypted(),
        chunk_size: store.chunk_size(),
        saved_times: times(usage.nonzero, usage.stored),
        usage,
        unreadable: Vec::new(),
    };
    let shown = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.2}x"));
    let mut text = format!(
        "{}: {} snapshots{}, chunks of {}\n\
         {:<10} {}\n\
         {:<10} {} not zero\n\
         {:<10} {} different ({} by sharing)\n\
         {:<10} {} compressed ({} by compression)\n\
         {:<10} {} in {} packs, {} of manifests",
        result.store,
        usage.snapshots,
        if result.encrypted { ", encrypted" } else { "" },
        HumanBytes(result.chunk_size.into()),
        "guests",
        HumanBytes(usage.logical),
        "",
        HumanBytes(usage.nonzero),
        "",
        HumanBytes(usage.unique),
        shown(times(usage.nonzero, usage.unique)),
        "",
        HumanBytes(usage.stored),
        shown(times(usage.unique, usage.stored)),
        "storage",
        HumanBytes(usage.pack_bytes),
        usage.packs,
        HumanBytes(usage.manifest_bytes),
    );
    result.unreadable = unreadable(found.unreadable, &mut text);
    conclude(args.show.json, &result, &text, result.ok)
}

#[derive(Serialize)]
struct Shown {
    ok: bool,
    snapshot: String,
    created: u64,
    chunk_size: u32,
    logical_bytes: u64,
    nonzero_bytes: u64,
    stored_bytes: u64,
    new_bytes: u64,
    chunks: usize,
    packs: usize,
    objects: Vec<Object>,
    files: Vec<File>,
    /// How many chunks are read ahead of a guest.
    working_set: Option<usize>,
    about: serde_json::Map<String, serde_json::Value>,
}

#[derive(Serialize)]
struct File {
    path: String,
    bytes: u64,
}

pub(super) fn show(args: &ShowSnapshot) -> Result<(), Failure> {
    let store = args.key.open(&args.snapshot.store)?;
    let snapshot = Snapshot::open(&store, &args.snapshot.name, &ChunkCache::new(0))?;
    let files = SnapshotFiles::new(&snapshot);
    let manifest = snapshot.manifest();
    let head = &manifest.head;
    let file = |(path, bytes): (&str, u64)| File {
        path: path.into(),
        bytes,
    };
    let result = Shown {
        ok: true,
        snapshot: args.snapshot.to_string(),
        created: head.created,
        chunk_size: head.chunk_size,
        logical_bytes: head.sizes.logical,
        nonzero_bytes: head.sizes.nonzero,
        stored_bytes: head.sizes.stored,
        new_bytes: head.sizes.new,
        chunks: manifest.chunks().len(),
        packs: manifest.packs().len(),
        objects: head.objects.clone(),
        files: files.paths().map(file).collect(),
        working_set: snapshot.working_set()?.map(|set| set.len()),
        about: head.about.clone(),
    };
    let mut text = format!(
        "{}: taken {} UTC, {} in {} chunks of {}, {} when it was written\n",
        result.snapshot,
        date(result.created),
        HumanBytes(result.stored_bytes),
        result.chunks,
        HumanBytes(result.chunk_size.into()),
        HumanBytes(result.new_bytes),
    );
    for (key, value) in &result.about {
        let shown = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        let _ = writeln!(text, "{key}: {shown}");
    }
    if let Some(chunks) = result.working_set {
        let _ = writeln!(text, "working set: {chunks} chunks");
    }
    for file in &result.files {
        let _ = write!(text, "\n{:>16}  {}", file.bytes, file.path);
    }
    report::print(args.show.json, &result, &text)
}

#[cfg(test)]
mod tests {
    use super::date;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_399, "2000-02-28 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_709_251_199, "2024-02-29 23:59:59"),
            (1_709_251_200, "2024-03-01 00:00:00"),
            (4_102_444_799, "2099-12-31 23:59:59"),
        ] {
            assert_eq!(date(seconds), expected);
        }
    }
}
