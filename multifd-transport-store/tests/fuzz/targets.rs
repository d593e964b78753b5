//! What the fuzz targets do with their input. `tests/fuzz_targets.rs` runs the same functions over
//! the seeds and deterministic mutations of them, for machines without a nightly toolchain.
//!
//! Hashes are made right first: behind them is what is to be tried.

use multifd_transport_store::format::manifest::{PREFIX, Prefix};
use multifd_transport_store::format::pack::read_index;
use multifd_transport_store::format::working_set;
use multifd_transport_store::{Manifest, PackName};

const HASH: usize = 32;

/// Writes the hash of all but the last 32 bytes into those.
fn repair(section: &mut [u8]) {
    if let Some((plain, hash)) = section.split_last_chunk_mut::<HASH>() {
        *hash = *blake3::hash(plain).as_bytes();
    }
}

/// Looks at all of a manifest that was read.
fn look(manifest: &Manifest) {
    let head = &manifest.head;
    for (number, object) in head.objects.iter().enumerate() {
        let table = manifest.table(number);
        assert_eq!(table.len() as u64, head.chunks_of(object));
        for chunk in table.flatten() {
            let chunk = &manifest.chunks()[chunk];
            assert!((chunk.pack as usize) < manifest.packs().len());
        }
    }
    for part in head.files.iter().flat_map(|file| &file.parts) {
        assert!(part.offset + part.len <= head.objects[part.object].len);
    }
}

/// A whole manifest.
pub fn manifest(data: &[u8]) -> bool {
    let mut bytes = data.to_vec();
    if let Ok(prefix) = Prefix::read("m", &bytes) {
        let head = PREFIX + prefix.head as usize;
        if let Some(head) = bytes.get_mut(PREFIX..head) {
            repair(head);
        }
        if let Some(body) = bytes.get_mut(head..) {
            repair(body);
        }
    }
    let read = Manifest::read("m", &mut bytes, None);
    read.as_ref().is_ok_and(|manifest| {
        look(manifest);
        true
    })
}

/// The binary part of a manifest, unpacked. Its first byte says how many chunks an object has.
pub fn chunk_table(data: &[u8]) -> bool {
    let Some((&chunks, body)) = data.split_first() else {
        return false;
    };
    let head = format!(
        r#"{{"name":"n","id":"000102030405060708090a0b0c0d0e0f","created":0,"chunk_size":4096,
        "sizes":{{"logical":0,"nonzero":0,"stored":0,"new":0}},
        "objects":[{{"kind":"block","name":"b","len":{},"page_size":4096}}],"files":[],"about":{{}}}}"#,
        4096 * u64::from(chunks)
    );
    let packed = zstd::bulk::compress(body, 1).expect("it fits");
    let mut bytes = b"MFDSNAP\0".to_vec();
    for number in [1, head.len() + HASH, packed.len() + HASH, body.len()] {
        bytes.extend((number as u32).to_le_bytes());
    }
    for section in [head.as_bytes(), &packed] {
        bytes.extend(section);
        bytes.extend(blake3::hash(section).as_bytes());
    }
    let read = Manifest::read("m", &mut bytes, None);
    read.as_ref().is_ok_and(|manifest| {
        look(manifest);
        true
    })
}

/// The index of a pack with 1 MiB of chunks.
pub fn pack_index(data: &[u8]) -> bool {
    let mut index = data.to_vec();
    repair(&mut index);
    let read = read_index(PackName([7; 16]), 1 << 20, &mut index, 0, None);
    read.is_ok_and(|chunks| {
        for chunk in chunks {
            assert!(u64::from(chunk.offset) + u64::from(chunk.len) <= 1 << 20);
        }
        true
    })
}

/// A working set.
pub fn working_set(data: &[u8]) -> bool {
    let mut bytes = data.to_vec();
    if let Some(section) = bytes.get_mut(12..) {
        repair(section);
    }
    working_set::read("w", &mut bytes, None).is_ok()
}
