//! Working sets of a mount's snapshots: recorded from reads, and replayed ahead of them.

use super::tree::Opened;
use super::{Log, Record};
use crate::format::manifest::{ObjectKind, Part};
use crate::read::{ChunkPlace, Recorder};
use crate::{Snapshot, StoreError};
use fuser::{INodeNo, Notifier};
use multifd_core::sync::lock;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
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
    /// What was saved earlier, in order.
    order: Vec<usize>,
    /// Files that were filled with it.
    replayed: Mutex<HashSet<Arc<str>>>,
}

impl WorkingSet {
    pub(super) fn new(snapshot: &Snapshot, record: Record, replay: bool, log: &Log) -> Self {
        let known = match snapshot.working_set() {
            Ok(known) => known,
            Err(error) => {
                log(&format!("its working set is not used: {error}"));
                // One that can be replaced is.
                if !matches!(
                    error,
                    StoreError::Damaged { .. } | StoreError::Version { .. }
                ) {
                    return Self::none();
                }
                None
            }
        };
        let record = match record {
            Record::Off => false,
            Record::IfNone => known.is_none(),
            Record::Always => true,
        };
        Self {
            recorder: record.then(|| Recorder::new(snapshot)),
            // Nobody would ask for what was read ahead, and it would not be recorded.
            order: known.filter(|_| replay && !record).unwrap_or_default(),
            ..Self::none()
        }
    }

    /// One that neither records nor replays.
    pub(super) fn none() -> Self {
        Self {
            recorder: None,
            began: OnceLock::new(),
            order: Vec::new(),
            replayed: Mutex::default(),
        }
    }

    pub(super) fn is_recording(&self) -> bool {
        self.recorder.is_some()
    }

    /// A chunk has been read.
    pub(super) fn note(&self, chunk: usize) {
        if let Some(recorder) = &self.recorder {
            self.began.get_or_init(Instant::now);
            recorder.note(chunk);
        }
    }

    /// Saves what was recorded, if it is time, or if nobody reads any more; says whether that is
    /// done. What is no guest's start is not saved: nothing of its RAM, as when only the file's
    /// header was looked at, or all of it, as when it was copied.
    pub(super) fn save(&self, snapshot: &Snapshot, at_end: bool) -> Result<bool, StoreError> {
        let (Some(recorder), Some(began)) = (&self.recorder, self.began.get()) else {
            return Ok(false);
        };
        if !at_end && began.elapsed() < WINDOW {
            return Ok(false);
        }
        let order = recorder.order();
        let head = &snapshot.manifest().head;
        let is_ram = |chunk: &u32| {
            let place = snapshot.place(*chunk as usize);
            place.is_some_and(|place| head.objects[place.object].kind == ObjectKind::Block)
        };
        let ram = order.iter().filter(|chunk| is_ram(chunk)).count();
        let all = snapshot.manifest().chunks().len();
        if ram == 0 || order.len() == all {
            return Ok(at_end);
        }
        snapshot.save_working_set(&order)?;
        Ok(true)
    }

    /// Whether a file is to be filled now: the first time that it is opened.
    fn is_due(&self, path: &Arc<str>) -> bool {
        !self.order.is_empty() && lock(&self.replayed).insert(Arc::clone(path))
    }
}

/// The whole pages of a file that a chunk holds, and where in the file they begin, bytes. A chunk may
/// begin in one part of the file and end in another, far away from it.
fn pages<'c>(
    parts: &'c [Part],
    place: ChunkPlace,
    contents: &'c [u8],
) -> impl Iterator<Item = (u64, &'c [u8])> {
    let end_of_chunk = place.offset + contents.len() as u64;
    let own = parts.iter().filter(move |part| part.object == place.object);
    own.filter_map(move |part| {
        let start = place.offset.max(part.offset);
        let end = end_of_chunk.min(part.offset + part.len);
        let at = part.at + start.checked_sub(part.offset)?;
        let skip = at.next_multiple_of(PAGE) - at;
        let len = end.saturating_sub(start).saturating_sub(skip) / PAGE * PAGE;
        let from = (start - place.offset + skip) as usize;
        (len > 0).then(|| (at + skip, &contents[from..from + len as usize]))
    })
}

/// Reads what a snapshot's first readers read, and gives it to the kernel as pages of one of its
/// files. Returns when all of it is there.
fn replay(
    opened: &Opened,
    (path, number): (&str, u64),
    notifier: &Notifier,
    stop: &AtomicBool,
) -> Result<(), StoreError> {
    let snapshot = opened.files.snapshot();
    let parts = opened.files.parts(path);
    let order = &opened.working_set.order;
    snapshot.fetch(order, REPLAYING, |chunk, contents| {
        let (Ok(contents), Some(place)) = (contents, snapshot.place(chunk)) else {
            // Its reader will be told.
            return !stop.load(Ordering::Relaxed);
        };
        snapshot.keep(chunk, contents);
        for (at, pages) in pages(parts, place, contents) {
            // A kernel that does not take them asks when it needs them.
            let _ = notifier.store(INodeNo(number), at, pages);
        }
        !stop.load(Ordering::Relaxed)
    })
}

/// Starts replaying when a file is opened for the first time.
pub(super) fn start(
    opened: &Arc<Opened>,
    (path, number): (&Arc<str>, u64),
    notifier: &Arc<OnceLock<Notifier>>,
    stop: &Arc<AtomicBool>,
) {
    // Small files, such as the manifest, are not what a guest runs from.
    let len = opened.files.len(path).unwrap_or(0);
    if len < 16 * PAGE || !opened.working_set.is_due(path) {
        return;
    }
    let (opened, path) = (Arc::clone(opened), Arc::clone(path));
    let (notifier, stop) = (Arc::clone(notifier), Arc::clone(stop));
    // Without a thread nothing is read ahead, and all works.
    let _ = std::thread::Builder::new()
        .name("store replay".into())
        .spawn(move || {
            if let Some(notifier) = notifier.get() {
                let _ = replay(&opened, (&path, number), notifier, &stop);
            }
        });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a file holds, byte by byte: the part's number, and the place in its object.
    fn layout(parts: &[Part]) -> Vec<Option<(usize, u64)>> {
        let end = parts.iter().map(|part| part.at + part.len).max();
        let mut file = vec![None; end.unwrap_or(0) as usize];
        for (number, part) in parts.iter().enumerate() {
            for byte in 0..part.len {
                file[(part.at + byte) as usize] = Some((number, part.offset + byte));
            }
        }
        file
    }

    proptest! {
        /// Two objects, cut into parts as the gaps of a mapped-ram file are.
        #[test]
        fn pages_hold_what_belongs_there(
            cuts in proptest::collection::vec(
                (0_usize..2, prop_oneof![Just(4096_u64), 1_u64..20_000], any::<bool>()), 1..8,
            ),
            chunk in 0_u64..4,
            object in 0_usize..2,
        ) {
            let (mut at, mut offsets) = (0, [0, 0]);
            let mut parts = Vec::new();
            for (object, len, aligned) in cuts {
                if aligned {
                    at = u64::next_multiple_of(at, PAGE);
                }
                parts.push(Part { at, len, object, offset: offsets[object] });
                at += len;
                offsets[object] += len;
            }
            // Each byte of an object tells its place.
            let offset = chunk * 16384;
            let len = offsets[object].saturating_sub(offset).min(16384);
            let byte = |offset: u64| (offset % 251) as u8;
            let contents: Vec<u8> = (offset..offset + len).map(byte).collect();
            let file = layout(&parts);
            let mut covered = 0;
            for (at, pages) in pages(&parts, ChunkPlace { object, offset }, &contents) {
                prop_assert!(at.is_multiple_of(PAGE) && (pages.len() as u64).is_multiple_of(PAGE));
                for (n, found) in pages.iter().enumerate() {
                    let (part, place) = file[at as usize + n].unwrap();
                    prop_assert_eq!((parts[part].object, byte(place)), (object, *found));
                }
                covered += pages.len();
            }
            // All pages of the file that are the chunk's, and lie in one part.
            let whole = file.chunks_exact(PAGE as usize).filter(|page| {
                let first = page[0];
                page.iter().enumerate().all(|(n, byte)| {
                    first.is_some_and(|(part, place)| {
                        parts[part].object == object
                            && *byte == Some((part, place + n as u64))
                            && (offset..offset + len).contains(&(place + n as u64))
                    })
                })
            });
            prop_assert_eq!(covered, whole.count() * PAGE as usize);
        }
    }
}
