//! Bytes into and out of memory that others may use at the same time.
//!
//! The loops for whole pages are inline assembly, for the reason that those of the zero scan are;
//! and a page comes from memory 1.9 times, and goes there 1.5 times as fast as word by word
//! (measured: BENCHMARKING.md).

use std::ptr;

/// Bytes from which on a string instruction is worth its start.
#[cfg(target_arch = "x86_64")]
const STRING: usize = 256;

/// Bytes from which on the destination is taken to be in no cache: a page.
#[cfg(target_arch = "x86_64")]
const PAGE: usize = 4096;

/// Copies `len` bytes out of memory that others may be writing.
///
/// # Safety
/// `from..from+len` must be mapped and readable, `to..to+len` writable and exclusively ours.
pub(crate) unsafe fn copy_out(from: *const u8, to: *mut u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    if len >= STRING {
        let words = len / 8;
        let done = words * 8;
        // SAFETY: the caller's ranges, of which the last bytes are left over.
        unsafe {
            string(from, to, words);
            words_out(from.add(done), to.add(done), len - done);
        }
        return;
    }
    // SAFETY: the caller's contract.
    unsafe { words_out(from, to, len) }
}

/// Copies `len` bytes into memory that others may be reading.
///
/// # Safety
/// `to..to+len` must be mapped and writable, `from..from+len` readable and not written meanwhile.
pub(crate) unsafe fn copy_in(from: *const u8, to: *mut u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    if len >= PAGE && len.is_multiple_of(64) && to.addr().is_multiple_of(16) {
        // SAFETY: the caller's contract, and what was just asked.
        return unsafe { past_caches(from, to, len) };
    }
    // SAFETY: the caller's contract.
    unsafe { words_in(from, to, len) }
}

/// Copies `words` times 8 bytes.
///
/// # Safety
/// As [`copy_out`].
#[cfg(target_arch = "x86_64")]
unsafe fn string(from: *const u8, to: *mut u8, words: usize) {
    // SAFETY: reads and writes what the caller vouches for, forwards: the direction flag is clear
    // between instructions of Rust.
    unsafe {
        std::arch::asm!(
            "rep movsq",
            inout("rcx") words => _,
            inout("rsi") from => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags)
        );
    }
}

/// Copies without having the destination's old contents fetched first, or leaving the new ones in a
/// cache: guest RAM is larger than those.
///
/// # Safety
/// As [`copy_in`]; `len` a positive multiple of 64, `to` one of 16.
#[cfg(target_arch = "x86_64")]
unsafe fn past_caches(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: reads `len` bytes from `from` and writes them to `to`, 64 at a time; SSE2 is part of
    // x86-64. The fence has the stores done before any later one, as ordinary stores are.
    unsafe {
        std::arch::asm!(
            "2:",
            "movdqu {a}, [{from}]",
            "movdqu {b}, [{from} + 16]",
            "movdqu {c}, [{from} + 32]",
            "movdqu {d}, [{from} + 48]",
            "movntdq [{to}], {a}",
            "movntdq [{to} + 16], {b}",
            "movntdq [{to} + 32], {c}",
            "movntdq [{to} + 48], {d}",
            "add {from}, 64",
            "add {to}, 64",
            "cmp {from}, {end}",
            "jb 2b",
            "sfence",
            from = inout(reg) from => _,
            to = inout(reg) to => _,
            end = in(reg) from.add(len),
            a = out(xmm_reg) _, b = out(xmm_reg) _, c = out(xmm_reg) _, d = out(xmm_reg) _,
            options(nostack)
        );
    }
}

/// # Safety
/// As [`copy_out`].
#[allow(clippy::cast_ptr_alignment)] // The cast starts at a word boundary, or is accessed unaligned.
unsafe fn words_out(from: *const u8, to: *mut u8, len: usize) {
    let head = from.align_offset(8).min(len);
    let words = (len - head) / 8;
    // SAFETY: every access lies in the ranges the caller vouches for; word reads start at an 8-byte
    // boundary.
    unsafe {
        for i in 0..head {
            to.add(i).write(ptr::read_volatile(from.add(i)));
        }
        let (source, target) = (from.add(head).cast::<u64>(), to.add(head).cast::<u64>());
        for i in 0..words {
            target
                .add(i)
                .write_unaligned(ptr::read_volatile(source.add(i)));
        }
        for i in head + words * 8..len {
            to.add(i).write(ptr::read_volatile(from.add(i)));
        }
    }
}

/// # Safety
/// As [`copy_in`].
#[allow(clippy::cast_ptr_alignment)] // As above.
unsafe fn words_in(from: *const u8, to: *mut u8, len: usize) {
    let head = to.align_offset(8).min(len);
    let words = (len - head) / 8;
    // SAFETY: as in `words_out`, with the roles swapped.
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

    type Copy = unsafe fn(*const u8, *mut u8, usize);

    /// Copies between all alignments, and sees to it that nothing else is written.
    fn check(name: &str, copy: Copy, starts: &[usize], lens: &[usize]) {
        const ROOM: usize = 3 * 4096;
        let source: Vec<u8> = (0..ROOM).map(|i| (i * 7 + i / 256) as u8).collect();
        for (&from, &to) in starts
            .iter()
            .flat_map(|from| starts.iter().map(move |to| (from, to)))
        {
            for &len in lens {
                let mut out = vec![0xa5; ROOM];
                // From a boundary, whatever the allocator gives.
                let to = out.as_ptr().align_offset(64) + to;
                let expected = [
                    &vec![0xa5; to][..],
                    &source[from..from + len],
                    &vec![0xa5; ROOM - to - len],
                ];
                // SAFETY: both ranges lie inside the vectors.
                unsafe { copy(source[from..].as_ptr(), out[to..].as_mut_ptr(), len) };
                assert!(
                    out == expected.concat(),
                    "{name}: {len} bytes from {from} to {to}"
                );
            }
        }
    }

    #[test]
    fn copies_are_exact_at_every_alignment() {
        let starts: Vec<usize> = (0..=16).collect();
        let lens = [
            0, 1, 7, 8, 9, 63, 64, 100, 255, 256, 257, 4095, 4096, 4097, 4160, 8192,
        ];
        check("out", copy_out, &starts, &lens);
        check("in", copy_in, &starts, &lens);
        check("words out", words_out, &starts, &lens);
        check("words in", words_in, &starts, &lens);
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn what_goes_past_the_caches_is_seen_by_another_thread() {
        use std::sync::atomic::{AtomicU8, Ordering};
        let mut pages = vec![0_u8; 64 * PAGE + 64];
        let start = pages.as_ptr().align_offset(64);
        let base = pages[start..].as_mut_ptr().expose_provenance();
        let done = AtomicU8::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=64 {
                    let page = vec![round; PAGE];
                    let to =
                        ptr::with_exposed_provenance_mut(base + (usize::from(round) - 1) * PAGE);
                    // SAFETY: a page of the vector, which nobody else writes to.
                    unsafe { copy_in(page.as_ptr(), to, PAGE) };
                    done.store(round, Ordering::Release);
                }
            });
            let mut seen = 0;
            while seen < 64 {
                seen = done.load(Ordering::Acquire);
                for round in 1..=seen {
                    let at = base + (usize::from(round) - 1) * PAGE;
                    for offset in [0, PAGE - 1] {
                        // SAFETY: as above; what is written by now is no longer changed.
                        let byte = unsafe {
                            ptr::read_volatile(ptr::with_exposed_provenance::<u8>(at + offset))
                        };
                        assert_eq!(byte, round);
                    }
                }
                std::hint::spin_loop();
            }
        });
    }
}
