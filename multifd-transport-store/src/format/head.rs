//! The head of a manifest: what a snapshot is made of.

use super::is_chunk_size;
use super::manifest::{damaged, section};
use crate::name::{check_snapshot_name, from_hex};
use crate::{OpenKeys, StoreError};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// Most chunks of all objects of a snapshot together, zero chunks included.
pub const MAX_ENTRIES: u64 = 1 << 26;
/// Most objects, files, and parts of files.
const MAX_LIST: usize = 1 << 16;
/// Bytes of the largest page.
const MAX_PAGE: u32 = 1 << 30;
/// Bytes of the longest name of an object or file.
const MAX_NAME: usize = 1024;

/// What an object of a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ObjectKind {
    /// A RAM block.
    Block,
    /// Other bytes, such as the state of devices.
    Stream,
}

/// Something of a snapshot that is stored in chunks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// What it is.
    pub kind: ObjectKind,
    /// Its name; no two objects of a kind have the same.
    pub name: String,
    /// Bytes.
    pub len: u64,
    /// Bytes of a page; 0 for a stream.
    pub page_size: u32,
}

/// A stretch of a file that is a stretch of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Where in the file it begins, bytes.
    pub at: u64,
    /// Bytes.
    pub len: u64,
    /// The object's number.
    pub object: usize,
    /// Where in the object it begins, bytes.
    pub offset: u64,
}

/// A file that can be made from a snapshot. Where it has no part it is zero.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its path in the snapshot's folder, without `.` and `..`.
    pub path: String,
    /// Bytes.
    pub len: u64,
    /// Its parts in order, none overlapping.
    pub parts: Vec<Part>,
}

/// What a snapshot takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// Bytes of all objects.
    pub logical: u64,
    /// Bytes of its chunks that are not zero, each place counted.
    pub nonzero: u64,
    /// Bytes of its different chunks, as stored.
    pub stored: u64,
    /// Bytes that had to be stored for it, as no snapshot of the store had them before.
    pub new: u64,
}

/// What a snapshot's head says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The snapshot's name.
    pub name: String,
    /// Its id: 32 hex digits, random, so that it is not taken for another one that has had the same
    /// name.
    pub id: String,
    /// When it was taken, seconds since 1970.
    pub created: u64,
    /// Bytes of a chunk. Only an object's last one may be shorter.
    pub chunk_size: u32,
    /// What it takes.
    pub sizes: Sizes,
    /// Its objects.
    pub objects: Vec<Object>,
    /// Files that can be made from it.
    pub files: Vec<FileEntry>,
    /// Whatever its writer wants to be known.
    pub about: serde_json::Map<String, serde_json::Value>,
}

impl FileEntry {
    /// The parts that do not end before `offset`, bytes.
    pub(crate) fn parts_from(&self, offset: u64) -> &[Part] {
        let first = self
            .parts
            .partition_point(|part| part.at + part.len <= offset);
        &self.parts[first..]
    }
}

impl Head {
    /// Reads a head as stored. `object` is the manifest's path.
    ///
    /// # Errors
    /// [`StoreError::Damaged`].
    pub fn read(
        object: &str,
        stored: &mut [u8],
        keys: Option<&OpenKeys>,
    ) -> Result<Self, StoreError> {
        let plain = section(object, "head", stored, keys)?;
        let head: Self = serde_json::from_slice(plain)
            .map_err(|error| damaged(object, format!("its head is not one: {error}")))?;
        head.check().map_err(|why| damaged(object, why))?;
        Ok(head)
    }

    /// How many chunks an object has.
    pub fn chunks_of(&self, object: &Object) -> u64 {
        object.len.div_ceil(self.chunk_size.into())
    }

    /// The bytes that the chunk `index` of an object has.
    pub(crate) fn chunk_len(&self, object: &Object, index: u64) -> usize {
        let start = index.saturating_mul(self.chunk_size.into());
        object.len.saturating_sub(start).min(self.chunk_size.into()) as usize
    }

    /// What is wrong with it, if something is.
    pub(super) fn check(&self) -> Result<(), String> {
        check_snapshot_name(&self.name).map_err(|error| error.to_string())?;
        if from_hex::<16>(&self.id).is_none() {
            return Err("its id is not one".into());
        }
        if !is_chunk_size(self.chunk_size) {
            return Err(format!("chunks of {} bytes", self.chunk_size));
        }
        let parts: usize = self.files.iter().map(|file| file.parts.len()).sum();
        if self.objects.len().max(self.files.len()).max(parts) > MAX_LIST {
            return Err("it lists too much".into());
        }
        let mut entries = 0_u64;
        let mut seen = HashSet::new();
        for object in &self.objects {
            entries = entries.saturating_add(self.chunks_of(object));
            if object.name.is_empty() || object.name.len() > MAX_NAME {
                return Err("an object's name is empty or too long".into());
            }
            let is_stream = object.kind == ObjectKind::Stream;
            let size = object.page_size;
            if is_stream != (size == 0) || size > MAX_PAGE || !(is_stream || size.is_power_of_two())
            {
                return Err(format!("pages of {size} bytes"));
            }
            if !seen.insert((object.kind == ObjectKind::Block, &object.name)) {
                return Err(format!("two objects are named {:?}", object.name));
            }
        }
        if entries > MAX_ENTRIES {
            return Err(format!(
                "it has {entries} chunks; the limit is {MAX_ENTRIES}"
            ));
        }
        self.files.iter().try_for_each(|file| self.check_file(file))
    }

    fn check_file(&self, file: &FileEntry) -> Result<(), String> {
        let path = &file.path;
        let safe =
            |name: &str| !name.is_empty() && name != "." && name != ".." && !name.contains('\0');
        if path.len() > MAX_NAME || !path.split('/').all(safe) {
            return Err(format!("a file cannot be named {path:?}"));
        }
        let mut end = 0;
        for part in &file.parts {
            let object = self.objects.get(part.object);
            let inside = part
                .offset
                .checked_add(part.len)
                .zip(object)
                .is_some_and(|(end, object)| end <= object.len);
            let next = part.at.checked_add(part.len);
            if !inside || part.at < end || next.is_none_or(|next| next > file.len) {
                return Err(format!("the parts of {path:?} do not fit"));
            }
            end = part.at + part.len;
        }
        Ok(())
    }
}
