//! A manifest: one snapshot, whole.

pub use super::head::{FileEntry, Head, MAX_ENTRIES, Object, ObjectKind, Part, Sizes};
use super::table::Body;
use super::{ChunkRef, VERSION};
use crate::StoreError;
use crate::name::PackName;
use crate::seal::{Kind, OpenKeys, SEAL};
use std::ops::Range;

/// A manifest's first bytes.
const MAGIC: &[u8; 8] = b"MFDSNAP\0";
/// Bytes before the head: magic number, version, lengths of head, body and unpacked body.
pub const PREFIX: usize = 24;
/// Most bytes of a head.
pub const MAX_HEAD: u32 = 16 << 20;
/// Most bytes of a body, packed or not.
pub const MAX_BODY: u32 = 1 << 30;
/// zstd's level for bodies: names do not compress, and the rest is small.
const LEVEL: i32 = 3;

/// One snapshot: its head, and which chunk is where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// What it is.
    pub head: Head,
    pub(crate) body: Body,
}

/// A manifest's first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// Bytes of the head as stored.
    pub head: u32,
    /// Bytes of the body as stored.
    pub body: u32,
    /// Bytes of the body when unpacked.
    pub unpacked: u32,
}

pub(super) fn damaged(object: &str, why: impl Into<String>) -> StoreError {
    StoreError::Damaged {
        object: object.into(),
        why: why.into(),
    }
}

impl Prefix {
    /// Reads a manifest's first [`PREFIX`] bytes. `object` is its path, for errors.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Version`].
    pub fn read(object: &str, bytes: &[u8]) -> Result<Self, StoreError> {
        let mut cursor = super::cursor::Cursor(bytes);
        let mut next = || cursor.array::<4>().map(u32::from_le_bytes);
        let magic = (next(), next());
        let (Some(version), Some(head), Some(body), Some(unpacked)) =
            (next(), next(), next(), next())
        else {
            return Err(damaged(object, format!("it has {} bytes", bytes.len())));
        };
        let word = |at: usize| MAGIC[at..at + 4].try_into().map_or(0, u32::from_le_bytes);
        if magic != (Some(word(0)), Some(word(4))) {
            return Err(damaged(object, "it does not begin as a manifest does"));
        }
        if version != VERSION {
            return Err(StoreError::Version {
                object: object.into(),
                found: version,
                known: VERSION,
            });
        }
        if head > MAX_HEAD || body > MAX_BODY || unpacked > MAX_BODY {
            return Err(damaged(object, "its lengths are out of bounds"));
        }
        Ok(Self {
            head,
            body,
            unpacked,
        })
    }

    /// Where the head lies.
    pub fn head_range(&self) -> Range<u64> {
        PREFIX as u64..PREFIX as u64 + u64::from(self.head)
    }

    /// Bytes of the whole manifest.
    pub fn total(&self) -> u64 {
        self.head_range().end + u64::from(self.body)
    }
}

/// A section that was stored, checked and opened.
pub(super) fn section<'s>(
    object: &str,
    what: &str,
    stored: &'s mut [u8],
    keys: Option<&OpenKeys>,
) -> Result<&'s [u8], StoreError> {
    if let Some(keys) = keys {
        let id = [object, " ", what].concat();
        let opened = keys.open(Kind::Manifest, id.as_bytes(), stored);
        let why = "not sealed with this key for this name, or changed";
        return Ok(opened.ok_or_else(|| damaged(object, format!("its {what} is {why}")))?);
    }
    let split = stored.split_last_chunk::<32>();
    let (plain, hash) = split.ok_or_else(|| damaged(object, format!("its {what} is too short")))?;
    if blake3::hash(plain) != *hash {
        return Err(damaged(
            object,
            format!("its {what} does not have the hash it says"),
        ));
    }
    Ok(plain)
}

fn put_section(
    object: &str,
    what: &str,
    plain: &[u8],
    keys: Option<&OpenKeys>,
    out: &mut Vec<u8>,
) -> Result<u32, StoreError> {
    let start = out.len();
    if let Some(keys) = keys {
        let id = [object, " ", what].concat();
        keys.seal(Kind::Manifest, id.as_bytes(), plain, out)?;
    } else {
        out.extend_from_slice(plain);
        out.extend(blake3::hash(plain).as_bytes());
    }
    let len = out.len() - start;
    u32::try_from(len)
        .ok()
        .filter(|&len| len <= MAX_BODY)
        .ok_or(StoreError::Limit {
            what: "bytes of a manifest",
            found: len as u64,
            limit: MAX_BODY.into(),
        })
}

impl Manifest {
    /// The packs that its chunks are in.
    pub fn packs(&self) -> &[PackName] {
        &self.body.packs
    }

    /// Its different chunks.
    pub fn chunks(&self) -> &[ChunkRef] {
        &self.body.chunks
    }

    /// For each chunk of an object: its number in [`Manifest::chunks`], or `None` if it is zero.
    pub fn table(&self, object: usize) -> impl ExactSizeIterator<Item = Option<usize>> + '_ {
        let table = self.body.tables.get(object).map_or(&[][..], Vec::as_slice);
        table
            .iter()
            .map(|&entry| entry.checked_sub(1).map(|n| n as usize))
    }

    pub(crate) fn entry(&self, object: usize, chunk: u64) -> Option<usize> {
        let table = self.body.tables.get(object)?;
        let entry = *table.get(usize::try_from(chunk).ok()?)?;
        entry.checked_sub(1).map(|n| n as usize)
    }

    /// The bytes of a manifest whose path is `object`. It takes the manifest, so that it and its
    /// bytes need not be in memory together.
    pub(crate) fn write(
        self,
        object: &str,
        keys: Option<&OpenKeys>,
    ) -> Result<(Head, Vec<u8>), StoreError> {
        self.head.check().map_err(|why| StoreError::Damaged {
            object: format!("the manifest of {}", self.head.name),
            why,
        })?;
        let head = serde_json::to_vec(&self.head)
            .map_err(|error| damaged(object, format!("its head cannot be written: {error}")))?;
        let body = self.body.len();
        let packed = self
            .body
            .compress(LEVEL)
            .map_err(|error| damaged(object, format!("its body cannot be compressed: {error}")))?;
        let mut out = vec![0; PREFIX];
        let head_len = put_section(object, "head", &head, keys, &mut out)?;
        let body_len = put_section(object, "body", &packed, keys, &mut out)?;
        let limit = |what, found: usize, limit: u32| StoreError::Limit {
            what,
            found: found as u64,
            limit: limit.into(),
        };
        if head_len > MAX_HEAD {
            return Err(limit("bytes of a manifest's head", head.len(), MAX_HEAD));
        }
        if body > MAX_BODY as usize {
            return Err(limit("bytes of a manifest's body", body, MAX_BODY));
        }
        out[..8].copy_from_slice(MAGIC);
        let numbers = [VERSION, head_len, body_len, body as u32];
        for (place, number) in out[8..PREFIX].chunks_exact_mut(4).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        Ok((self.head, out))
    }

    /// Reads a whole manifest whose path is `object`.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Version`].
    pub fn read(
        object: &str,
        bytes: &mut [u8],
        keys: Option<&OpenKeys>,
    ) -> Result<Self, StoreError> {
        let prefix = Prefix::read(object, bytes)?;
        if bytes.len() as u64 != prefix.total() {
            let why = format!("it has {} bytes instead of {}", bytes.len(), prefix.total());
            return Err(damaged(object, why));
        }
        let (head, body) = bytes[PREFIX..].split_at_mut(prefix.head as usize);
        let head = Head::read(object, head, keys)?;
        let packed = section(object, "body", body, keys)?;
        let counts: Vec<u64> = head
            .objects
            .iter()
            .map(|object| head.chunks_of(object))
            .collect();
        if u64::from(prefix.unpacked) > Body::largest(counts.iter().sum()) {
            return Err(damaged(object, "its body is longer than its objects need"));
        }
        // Names of chunks are random bytes, and do not compress; tables may, to almost nothing.
        let tables = counts.iter().sum::<u64>().saturating_mul(4);
        let lists = u64::from(prefix.unpacked).saturating_sub(tables);
        if lists > 2 * packed.len() as u64 + 4096 {
            return Err(damaged(
                object,
                "its body is larger than so few bytes can be",
            ));
        }
        let body = zstd::bulk::decompress(packed, prefix.unpacked as usize)
            .map_err(|error| damaged(object, format!("its body cannot be unpacked: {error}")))?;
        if body.len() != prefix.unpacked as usize {
            return Err(damaged(object, "its body does not have the length it says"));
        }
        let body = Body::read(&body, &counts).map_err(|why| damaged(object, why))?;
        Ok(Self { head, body })
    }
}

/// How much longer a section is than what is in it.
pub(crate) const SECTION: usize = if SEAL > 32 { SEAL } else { 32 };

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OpenKeys;
    use crate::name::ChunkName;
    use crate::seal::StoreKey;

    fn example() -> Manifest {
        let object = |kind, name: &str, len, page_size| Object {
            kind,
            name: name.into(),
            len,
            page_size,
        };
        let chunk = |n: u8, pack| ChunkRef {
            name: ChunkName([n; 32]),
            pack,
            offset: u32::from(n) * 100,
            len: 77,
            zstd: n == 1,
        };
        Manifest {
            head: Head {
                name: "vm".into(),
                id: "00112233445566778899aabbccddeeff".into(),
                created: 1_700_000_000,
                chunk_size: 4096,
                sizes: Sizes::default(),
                objects: vec![
                    object(ObjectKind::Block, "pc.ram", 16384, 4096),
                    object(ObjectKind::Stream, "pc.ram", 5000, 0),
                ],
                files: vec![FileEntry {
                    path: "a/b".into(),
                    len: 100_000,
                    parts: vec![
                        Part {
                            at: 5,
                            len: 4000,
                            object: 1,
                            offset: 1000,
                        },
                        Part {
                            at: 8192,
                            len: 16384,
                            object: 0,
                            offset: 0,
                        },
                    ],
                }],
                about: serde_json::Map::new(),
            },
            body: Body {
                packs: vec![PackName([1; 16]), PackName([2; 16])],
                chunks: vec![chunk(1, 0), chunk(2, 1)],
                tables: vec![vec![1, 0, 2, 1], vec![2, 0]],
            },
        }
    }

    #[test]
    fn a_manifest_comes_back_and_no_bit_of_it_may_change() {
        let manifest = example();
        for keys in [None, Some(OpenKeys::new(&StoreKey::new([1; 32]), &[2; 16]))] {
            let (_, bytes) = manifest
                .clone()
                .write("snapshots/vm", keys.as_ref())
                .unwrap();
            let opened = keys.clone();
            let read =
                |mut bytes: Vec<u8>| Manifest::read("snapshots/vm", &mut bytes, opened.as_ref());
            assert_eq!(read(bytes.clone()).unwrap(), manifest);
            for at in 0..bytes.len() {
                let mut bad = bytes.clone();
                bad[at] ^= 4;
                assert!(read(bad).is_err(), "{at}");
                assert!(read(bytes[..at].to_vec()).is_err(), "{at}");
            }
            let mut copy = bytes.clone();
            let moved = Manifest::read("snapshots/other", &mut copy, opened.as_ref());
            assert_eq!(moved.is_err(), opened.is_some());
        }
    }

    #[test]
    fn heads_that_do_not_fit_are_refused() {
        let change: [fn(&mut Head); 13] = [
            |head| head.name = "../x".into(),
            |head| head.chunk_size = 5000,
            |head| head.chunk_size = 1 << 20,
            |head| head.objects[0].len = u64::MAX,
            |head| head.objects[1].kind = ObjectKind::Block,
            |head| head.objects[0].page_size = 4097,
            |head| head.objects[0].page_size = 1 << 31,
            |head| head.objects[1].page_size = 4096,
            |head| head.id = "00".into(),
            |head| head.files[0].path = "a/../b".into(),
            |head| head.files[0].parts[0].offset = 1001,
            |head| head.files[0].parts[1].at = 4004,
            |head| head.files[0].len = 24575,
        ];
        for (n, change) in change.iter().enumerate() {
            let mut manifest = example();
            change(&mut manifest.head);
            assert!(manifest.write("o", None).is_err(), "{n}");
        }
        example().write("o", None).unwrap();
    }
}
