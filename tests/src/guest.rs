//! Guest memory as tests look at it.

use multifd_core::RamBlock;
use sha2::{Digest, Sha256};

/// SHA-256 of bytes, in hex.
pub fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// The count of the boot sector's guest, which must have begun to count.
pub fn count(ram: &[u8]) -> u32 {
    assert_eq!(&ram[0x8000..0x8004], b"MFDG", "the guest has not started");
    u32::from_le_bytes(ram[0x8004..0x8008].try_into().unwrap())
}

/// All bytes of a block.
pub fn contents(block: &RamBlock) -> Vec<u8> {
    let mut all = vec![0; usize::try_from(block.len()).unwrap()];
    block.region(0, all.len()).unwrap().copy_to(&mut all);
    all
}
