//! Files made of a snapshot: those that its writer listed, and one for each RAM block.

use super::Snapshot;
use crate::StoreError;
use crate::format::manifest::{FileEntry, Head, Manifest, ObjectKind, Part};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// The files that can be made of a snapshot.
///
/// | path | contents |
/// | --- | --- |
/// | those of the manifest | as its writer says, such as `vm.mapped` |
/// | `ram/BLOCK` | one RAM block; `/` and `%` in its name are `%2F` and `%25` |
/// | `memory` | all RAM blocks, one after another |
/// | `manifest.json` | the snapshot's head |
#[derive(Debug, Clone)]
pub struct SnapshotFiles {
    snapshot: Snapshot,
    list: Arc<FileList>,
}

/// The files of a snapshot, by its head alone.
#[derive(Debug, Clone)]
pub(crate) struct FileList(BTreeMap<String, Content>);

#[derive(Debug, Clone)]
enum Content {
    Parts(FileEntry),
    Text(Vec<u8>),
}

impl Content {
    fn len(&self) -> u64 {
        match self {
            Self::Parts(file) => file.len,
            Self::Text(text) => text.len() as u64,
        }
    }
}

/// A stretch of a file that lies in one chunk.
pub(super) struct Stretch {
    /// The chunk's number, or `None` if it is zero.
    pub(super) chunk: Option<usize>,
    /// Where in the chunk it begins, bytes.
    pub(super) from: u64,
    /// Where in the file it begins, bytes.
    pub(super) at: u64,
    pub(super) len: u64,
}

/// The stretches of a part of a file, from the byte `offset` of the file on.
pub(super) fn stretches(
    manifest: &Manifest,
    part: Part,
    offset: u64,
) -> impl Iterator<Item = Stretch> {
    let size = u64::from(manifest.head.chunk_size);
    let end = part.offset + part.len;
    let mut next = part.offset + offset.saturating_sub(part.at);
    std::iter::from_fn(move || {
        let start = next;
        next = ((start / size + 1) * size).min(end);
        (start < end).then(|| Stretch {
            chunk: manifest.entry(part.object, start / size),
            from: start % size,
            at: part.at + (start - part.offset),
            len: next - start,
        })
    })
}

impl FileList {
    pub(crate) fn of(head: &Head) -> Self {
        let mut files = BTreeMap::new();
        let mut memory = FileEntry {
            path: "memory".into(),
            len: 0,
            parts: Vec::new(),
        };
        for (number, object) in head.objects.iter().enumerate() {
            if object.kind != ObjectKind::Block {
                continue;
            }
            let part = |at| Part {
                at,
                len: object.len,
                object: number,
                offset: 0,
            };
            memory.parts.push(part(memory.len));
            memory.len = memory.len.saturating_add(object.len);
            let name = object.name.replace('%', "%25").replace('/', "%2F");
            let path = format!("ram/{name}");
            files.insert(
                path.clone(),
                Content::Parts(FileEntry {
                    path,
                    len: object.len,
                    parts: vec![part(0)],
                }),
            );
        }
        files.insert("memory".into(), Content::Parts(memory));
        let text = serde_json::to_vec_pretty(head).unwrap_or_default();
        files.insert("manifest.json".into(), Content::Text(text));
        for file in &head.files {
            files.insert(file.path.clone(), Content::Parts(file.clone()));
        }
        Self(files)
    }

    /// The paths of the files, and their lengths in bytes.
    pub(crate) fn paths(&self) -> impl Iterator<Item = (&str, u64)> {
        let files = self.0.iter();
        files.map(|(path, content)| (path.as_str(), content.len()))
    }

    /// The length of a file, bytes.
    pub(crate) fn len(&self, path: &str) -> Option<u64> {
        self.0.get(path).map(Content::len)
    }
}

impl SnapshotFiles {
    /// The files of a snapshot.
    pub fn new(snapshot: &Snapshot) -> Self {
        Self {
            snapshot: snapshot.clone(),
            list: Arc::new(FileList::of(&snapshot.manifest().head)),
        }
    }

    /// The snapshot.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The paths of the files, and their lengths in bytes.
    pub fn paths(&self) -> impl Iterator<Item = (&str, u64)> {
        self.list.paths()
    }

    /// The length of a file, bytes.
    pub fn len(&self, path: &str) -> Option<u64> {
        self.list.len(path)
    }

    /// Never true: there is a manifest.
    pub fn is_empty(&self) -> bool {
        self.list.0.is_empty()
    }

    /// All of a file that is not made of chunks.
    pub(super) fn text(&self, path: &str) -> Option<&[u8]> {
        match self.list.0.get(path) {
            Some(Content::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// A file's parts, if it has some.
    pub fn parts(&self, path: &str) -> &[Part] {
        match self.list.0.get(path) {
            Some(Content::Parts(file)) => &file.parts,
            _ => &[],
        }
    }

    /// The first stretch at or after `offset` that is stored, in bytes: what is between two of them
    /// is zero. `None` if only zeros follow.
    pub fn next_data(&self, path: &str, offset: u64) -> Option<Range<u64>> {
        let file = match self.list.0.get(path)? {
            Content::Text(text) => {
                let len = text.len() as u64;
                return (offset < len).then_some(offset..len);
            }
            Content::Parts(file) => file,
        };
        let manifest = self.snapshot.manifest();
        let mut found: Option<Range<u64>> = None;
        for part in file.parts_from(offset) {
            for Stretch { chunk, at, len, .. } in stretches(manifest, *part, offset) {
                match &mut found {
                    Some(range) if chunk.is_some() && range.end == at => range.end = at + len,
                    Some(_) => return found,
                    None if chunk.is_some() => found = Some(at..at + len),
                    None => {}
                }
            }
        }
        found
    }

    /// Reads from `offset` on, and returns how many bytes: fewer than `out` has at the file's end.
    /// `note` gets the number of each chunk that is needed.
    ///
    /// # Errors
    /// As [`Snapshot::read_at`]; [`StoreError::Missing`] if there is no such file.
    pub fn read_at(
        &self,
        path: &str,
        offset: u64,
        out: &mut [u8],
        mut note: impl FnMut(usize),
    ) -> Result<usize, StoreError> {
        let missing = || StoreError::Missing {
            store: self.snapshot.manifest().head.name.clone(),
            object: path.into(),
        };
        let file = match self.list.0.get(path).ok_or_else(missing)? {
            Content::Text(text) => {
                let from = usize::try_from(offset)
                    .unwrap_or(usize::MAX)
                    .min(text.len());
                let len = out.len().min(text.len() - from);
                out[..len].copy_from_slice(&text[from..from + len]);
                return Ok(len);
            }
            Content::Parts(file) => file,
        };
        let end = offset.saturating_add(out.len() as u64).min(file.len);
        let len = end.saturating_sub(offset) as usize;
        let out = &mut out[..len];
        let mut filled = 0;
        for part in file.parts_from(offset) {
            if part.at >= end {
                break;
            }
            let start = part.at.max(offset);
            let stop = (part.at + part.len).min(end);
            let (from, to) = ((start - offset) as usize, (stop - offset) as usize);
            out[filled..from].fill(0);
            let at = part.offset + (start - part.at);
            self.snapshot
                .read_noting(part.object, at, &mut out[from..to], &mut note)?;
            filled = to;
        }
        out[filled..].fill(0);
        Ok(len)
    }
}
