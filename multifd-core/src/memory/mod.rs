//! Guest memory: the only place of this crate that dereferences it.
//!
//! A running guest writes to its memory while we read it. No Rust reference is ever formed over it: bytes go through
//! volatile accesses or inline assembly here, or as raw address ranges to the kernel.

mod block;
mod iov;
mod mapping;
mod region;
mod scan;

pub use block::RamBlock;
pub use iov::Iov;
pub(crate) use iov::IovBuf;
#[cfg(test)]
pub(crate) use mapping::tests::memory_file;
pub(crate) use region::HUGE;
pub use region::{Region, RegionBuf};

use std::ptr;

/// Copies `len` bytes out of memory that others may be writing.
///
/// # Safety
/// `from..from+len` must be mapped and readable, `to..to+len` writable and exclusively ours.
#[allow(clippy::cast_ptr_alignment)] // The cast starts at a word boundary, or is accessed unaligned.
unsafe fn copy_out(from: *const u8, to: *mut u8, len: usize) {
    let head = from.align_offset(8).min(len);
    let words = (len - head) / 8;
    // SAFETY: every access lies in the ranges the caller vouches for; word reads start at an 8-byte boundary.
    unsafe {
        for i in 0..head {
            to.add(i).write(ptr::read_volatile(from.add(i)));
        }
        let (source, target) = (from.add(head).cast::<u64>(), to.add(head).cast::<u64>());
        for i in 0..words {
            target.add(i).write_unaligned(ptr::read_volatile(source.add(i)));
        }
        for i in head + words * 8..len {
            to.add(i).write(ptr::read_volatile(from.add(i)));
        }
    }
}

/// Copies `len` bytes into memory that others may be reading.
///
/// # Safety
/// `to..to+len` must be mapped and writable, `from..from+len` readable and not written meanwhile.
#[allow(clippy::cast_ptr_alignment)] // The cast starts at a word boundary, or is accessed unaligned.
unsafe fn copy_in(from: *const u8, to: *mut u8, len: usize) {
    let head = to.align_offset(8).min(len);
    let words = (len - head) / 8;
    // SAFETY: as in `copy_out`, with the roles swapped.
    unsafe {
        for i in 0..head {
            ptr::write_volatile(to.add(i), from.add(i).read());
        }
        let (source, target) = (from.add(head).cast::<u64>(), to.add(head).cast::<u64>());
        for i in 0..words {
            ptr::write_volatile(target.add(i), source.add(i).read_unaligned());
        }
        for i in head + words * 8..len {
            ptr::write_volatile(to.add(i), from.add(i).read());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_exact_at_every_alignment() {
        let source: Vec<u8> = (0..200u8).collect();
        for start in 0..9 {
            for len in [0, 1, 7, 8, 9, 63, 64, 100] {
                let mut out = vec![0xffu8; 120];
                // SAFETY: both ranges lie inside the vectors.
                unsafe { copy_out(source.as_ptr().add(start), out.as_mut_ptr().add(3), len) };
                assert_eq!(out[3..3 + len], source[start..start + len]);
                assert_eq!(out[3 + len], 0xff);
                let mut back = vec![0xffu8; 120];
                // SAFETY: as above.
                unsafe { copy_in(source.as_ptr().add(3), back.as_mut_ptr().add(start), len) };
                assert_eq!(back[start..start + len], source[3..3 + len]);
                assert_eq!(back[start + len], 0xff);
            }
        }
    }
}
