//! Working sets of a mount's snapshots: recorded from reads, and replayed ahead of them.

use super::Record;
use super::tree::{Node, Opened, Tree};
use crate::read::Recorder;
use crate::{Snapshot, StoreError};
use fuser::{INodeNo, Notifier};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How long reads are recorded, from the first one on.
const WINDOW: Duration = Duration::from_secs(60);
/// Requests that replaying makes at the same time.
const REPLAYING: usize = 16;
/// Bytes of a page of the kernel's cache.
const PAGE: u64 = 4096;

/// The working set of one snapshot.
pub(super) struct WorkingSet {
    recorder: Option<Recorder>,
    /// When the first read came.
    began: OnceLock<Instant>,
    saved: AtomicBool,
    /// What was saved earlier, in order.
    order: Vec<usize>,
    replayed: AtomicBool,
}

impl WorkingSet {
    pub(super) fn new(
        snapshot: &Snapshot,
        record: Record,
        replay: bool,
    ) -> Result<Self, StoreError> {
        let known = snapshot.working_set()?;
        let record = match record {
            Record::Off => false,
            Record::IfNone => known.is_none(),
            Record::Always => true,
        };
        Ok(Self {
            recorder: record.then(|| Recorder::new(snapshot)),
            began: OnceLock::new(),
            saved: AtomicBool::new(false),
            order: known.filter(|_| replay).unwrap_or_default(),
            replayed: AtomicBool::new(false),
        })
    }

    /// One that neither records nor replays.
    pub(super) fn none() -> Self {
        Self {
            recorder: None,
            began: OnceLock::new(),
            saved: AtomicBool::new(true),
            order: Vec::new(),
            replayed: AtomicBool::new(true),
        }
    }

    /// A chunk has been read.
    pub(super) fn note(&self, chunk: usize) {
        if let Some(recorder) = &self.recorder {
            self.began.get_or_init(Instant::now);
            recorder.note(chunk);
        }
    }

    /// Saves what was recorded, if it is time, or if the mount ends.
    pub(super) fn save(&self, snapshot: &Snapshot, at_end: bool) -> Result<(), StoreError> {
        let (Some(recorder), Some(began)) = (&self.recorder, self.began.get()) else {
            return Ok(());
        };
        if (!at_end && began.elapsed() < WINDOW) || self.saved.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        snapshot.save_working_set(&recorder.order())
    }
}

/// Reads what a snapshot's first readers read, and gives it to the kernel. Returns when all of it
/// is there.
pub(super) fn replay(
    tree: &Tree,
    opened: &Opened,
    path: &str,
    notifier: &Notifier,
    stop: &AtomicBool,
) -> Result<(), StoreError> {
    let snapshot = opened.files.snapshot();
    let name = &snapshot.manifest().head.name;
    let Some(number) = tree.known(name, path) else {
        return Ok(());
    };
    let parts = opened.files.parts(path);
    snapshot.fetch(&opened.working_set.order, REPLAYING, |chunk, contents| {
        let (Ok(contents), Some(place)) = (contents, snapshot.place(chunk)) else {
            // Its reader will be told.
            return !stop.load(Ordering::Relaxed);
        };
        snapshot.keep(chunk, contents);
        let part = parts.iter().find(|part| {
            let inside = part.offset..part.offset + part.len;
            part.object == place.object && inside.contains(&place.offset)
        });
        if let Some(part) = part {
            let at = part.at + (place.offset - part.offset);
            let whole = contents.len() as u64 / PAGE * PAGE;
            if at % PAGE == 0 && whole > 0 {
                // A kernel that does not take it asks when it needs it.
                let _ = notifier.store(INodeNo(number), at, &contents[..whole as usize]);
            }
        }
        !stop.load(Ordering::Relaxed)
    })
}

/// Starts replaying when a file is opened for the first time.
pub(super) fn start(
    tree: &Arc<Tree>,
    node: &Node,
    notifier: &Arc<OnceLock<Notifier>>,
    stop: &Arc<AtomicBool>,
) {
    let Node::File(opened, path) = node else {
        return;
    };
    let set = &opened.working_set;
    // Small files, such as the manifest, are not what a guest runs from.
    let small = node.len() < 16 * PAGE;
    if small || set.order.is_empty() || set.replayed.swap(true, Ordering::Relaxed) {
        return;
    }
    let (tree, opened, path) = (Arc::clone(tree), Arc::clone(opened), Arc::clone(path));
    let (notifier, stop) = (Arc::clone(notifier), Arc::clone(stop));
    // Without a thread nothing is read ahead, and all works.
    let _ = std::thread::Builder::new()
        .name("store replay".into())
        .spawn(move || {
            if let Some(notifier) = notifier.get() {
                let _ = replay(&tree, &opened, &path, notifier, &stop);
            }
        });
}
