//! Guest memory as tests look at it.

use multifd_core::RamBlock;
use sha2::{Digest, Sha256};

/// SHA-256 of bytes, in hex.
pub fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// All bytes of a block.
pub fn contents(block: &RamBlock) -> Vec<u8> {
    let mut all = vec![0; usize::try_from(block.len()).unwrap()];
    block.region(0, all.len()).unwrap().copy_to(&mut all);
    all
}
