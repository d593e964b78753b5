//! Keys: what an encrypted store's objects are named and sealed with.

use crate::StoreError;
use crate::name::{ChunkName, from_hex};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Bytes that sealing adds: a nonce before, a tag behind.
pub(crate) const SEAL: usize = NONCE_LEN + 16;
/// Bytes of a key file with hex digits: 64, and perhaps the end of a line.
const HEX_FILE: usize = 65;

/// Random bytes of the operating system.
///
/// # Errors
/// [`StoreError::Path`] if it has none.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], StoreError> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| StoreError::Path {
            path: "/dev/urandom".into(),
            doing: "reading random bytes",
            cause: std::io::ErrorKind::Other.into(),
        })?;
    Ok(bytes)
}

/// The secret of an encrypted store: 32 bytes.
#[derive(Clone)]
pub struct StoreKey([u8; 32]);

impl std::fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StoreKey(..)")
    }
}

impl StoreKey {
    /// A key of these bytes, which should be random.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Reads a file with 32 bytes, or 64 lower-case hex digits, that others may not read.
    ///
    /// # Errors
    /// [`StoreError::KeyFile`].
    pub fn read(path: &Path) -> Result<Self, StoreError> {
        use std::io::Read;
        let refused = |why: String| StoreError::KeyFile {
            path: path.into(),
            why,
        };
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).map_err(|cause| refused(cause.to_string()))?;
        let data = file
            .metadata()
            .map_err(|cause| refused(cause.to_string()))?;
        if data.permissions().mode() & 0o007 != 0 {
            return Err(refused("others may read it: `chmod o= FILE` first".into()));
        }
        file.take(1 + HEX_FILE as u64)
            .read_to_end(&mut bytes)
            .map_err(|cause| refused(cause.to_string()))?;
        if let Ok(bytes) = <[u8; 32]>::try_from(bytes.as_slice()) {
            return Ok(Self(bytes));
        }
        let digits = std::str::from_utf8(&bytes).map(str::trim_end).ok();
        digits.and_then(from_hex).map(Self).ok_or_else(|| {
            refused(
                "a key file has 32 bytes or 64 hex digits: `head -c 32 /dev/urandom > FILE` \
                 makes one"
                    .into(),
            )
        })
    }
}

/// What a sealed object is: keys of different kinds have nothing in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Chunk,
    PackIndex,
    Manifest,
    WorkingSet,
}

/// The keys of one encrypted store, derived from its secret and its id.
#[derive(Clone)]
pub struct OpenKeys {
    names: [u8; 32],
    objects: [u8; 32],
    check: [u8; 32],
    seal: [[u8; 32]; 4],
}

impl std::fmt::Debug for OpenKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OpenKeys(..)")
    }
}

impl OpenKeys {
    /// The keys of the store of this id.
    pub fn new(secret: &StoreKey, store: &[u8; 16]) -> Self {
        let material = [secret.0.as_slice(), store].concat();
        let derive = |what: &str| blake3::derive_key(&format!("multifd store 1 {what}"), &material);
        Self {
            names: derive("chunk names"),
            objects: derive("object names"),
            check: derive("check"),
            seal: ["chunks", "pack indexes", "manifests", "working sets"].map(derive),
        }
    }

    /// The store's proof that a key is its own.
    pub(crate) fn check(&self) -> [u8; 32] {
        *blake3::keyed_hash(&self.check, b"").as_bytes()
    }

    pub(crate) fn chunk_name(&self, contents: &[u8]) -> ChunkName {
        ChunkName(*blake3::keyed_hash(&self.names, contents).as_bytes())
    }

    /// The name of the object that holds what is called `name`.
    pub(crate) fn object_name(&self, name: &str) -> [u8; 32] {
        *blake3::keyed_hash(&self.objects, name.as_bytes()).as_bytes()
    }

    fn key(&self, kind: Kind, id: &[u8]) -> LessSafeKey {
        let key = blake3::keyed_hash(&self.seal[kind as usize], id);
        // A key of 32 bytes is one of AES-256's.
        UnboundKey::new(&AES_256_GCM, key.as_bytes())
            .map_or_else(|_| unreachable!("32 bytes are a key"), LessSafeKey::new)
    }

    /// Appends `plain` to `out`, sealed for the object `id`.
    pub(crate) fn seal(
        &self,
        kind: Kind,
        id: &[u8],
        plain: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), StoreError> {
        let nonce = random::<NONCE_LEN>()?;
        out.extend_from_slice(&nonce);
        let at = out.len();
        out.extend_from_slice(plain);
        let tag = self
            .key(kind, id)
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::empty(),
                &mut out[at..],
            )
            .map_err(|_| StoreError::Limit {
                what: "bytes to seal",
                found: plain.len() as u64,
                limit: 1 << 36,
            })?;
        out.extend_from_slice(tag.as_ref());
        Ok(())
    }

    /// What was sealed for the object `id`, opened in place; `None` if it is not that.
    pub(crate) fn open<'s>(
        &self,
        kind: Kind,
        id: &[u8],
        sealed: &'s mut [u8],
    ) -> Option<&'s mut [u8]> {
        let (nonce, rest) = sealed.split_first_chunk_mut::<NONCE_LEN>()?;
        let nonce = Nonce::assume_unique_for_key(*nonce);
        self.key(kind, id)
            .open_in_place(nonce, Aad::empty(), rest)
            .ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_for_one_object_is_nothing_to_another() {
        let key = StoreKey::new([7; 32]);
        let keys = OpenKeys::new(&key, &[1; 16]);
        let mut sealed = Vec::new();
        keys.seal(Kind::Chunk, b"a", b"plain", &mut sealed).unwrap();
        assert_eq!(sealed.len(), 5 + SEAL);
        let open = |keys: &OpenKeys, kind, id: &[u8], mut sealed: Vec<u8>| {
            keys.open(kind, id, &mut sealed).map(|plain| plain.to_vec())
        };
        assert_eq!(
            open(&keys, Kind::Chunk, b"a", sealed.clone()).as_deref(),
            Some(b"plain".as_slice())
        );
        assert_eq!(open(&keys, Kind::Chunk, b"b", sealed.clone()), None);
        assert_eq!(open(&keys, Kind::Manifest, b"a", sealed.clone()), None);
        let others = OpenKeys::new(&key, &[2; 16]);
        assert_eq!(open(&others, Kind::Chunk, b"a", sealed.clone()), None);
        for at in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[at] ^= 1;
            assert_eq!(open(&keys, Kind::Chunk, b"a", bad), None, "{at}");
        }
        assert_eq!(open(&keys, Kind::Chunk, b"a", vec![0; 11]), None);
        let mut again = Vec::new();
        keys.seal(Kind::Chunk, b"a", b"plain", &mut again).unwrap();
        assert_ne!(sealed, again);
        assert_ne!(keys.check(), others.check());
    }

    #[test]
    fn key_files_have_32_bytes_or_64_digits() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        for (good, contents) in [
            (true, vec![9; 32]),
            (
                true,
                b"0909090909090909090909090909090909090909090909090909090909090909\n".to_vec(),
            ),
            (false, vec![9; 31]),
            (false, vec![9; 33]),
            (false, Vec::new()),
            (false, vec![b'g'; 64]),
            (false, vec![b'0'; 1000]),
        ] {
            std::fs::write(&path, contents).unwrap();
            let allow = |mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode));
            allow(0o600).unwrap();
            assert_eq!(StoreKey::read(&path).is_ok(), good);
            allow(0o604).unwrap();
            assert!(StoreKey::read(&path).is_err());
        }
        assert!(StoreKey::read(&folder.path().join("none")).is_err());
    }
}
