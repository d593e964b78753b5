//! Is a page all zeros? Asked of every page, so it runs at the speed memory gives.
//!
//! The vector loops are inline assembly: unlike intrinsics, its loads cannot be repeated, split or
//! assumed stable by the compiler, which is what memory that a guest writes to needs.

use std::ptr;
#[cfg(target_arch = "x86_64")]
use std::sync::atomic::{AtomicU8, Ordering};

/// Whether `len` bytes from `at` are zero at the moment each is read.
///
/// # Safety
/// The range must be mapped and readable; others may write to it.
pub(crate) unsafe fn is_zero(at: *const u8, len: usize) -> bool {
    #[cfg(target_arch = "x86_64")]
    if len.is_multiple_of(256) && len != 0 {
        // Most pages that are not zero show it at once.
        // SAFETY: `len` is at least 256; a byte read is aligned.
        if unsafe { ptr::read_volatile(at) } != 0 {
            return false;
        }
        // SAFETY: `len` is a positive multiple of 256, and AVX2 was detected before the AVX2 loop
        // is chosen.
        return unsafe {
            if has_avx2() {
                avx2(at, len)
            } else {
                sse2(at, len)
            }
        };
    }
    // SAFETY: the caller's contract.
    unsafe { words(at, len) }
}

/// The portable loop: volatile 64-bit reads.
///
/// # Safety
/// As [`is_zero`].
#[allow(clippy::cast_ptr_alignment)] // The cast starts at a word boundary.
unsafe fn words(at: *const u8, len: usize) -> bool {
    let head = at.align_offset(8).min(len);
    let count = (len - head) / 8;
    // SAFETY: every read lies in the caller's range; word reads start at an 8-byte boundary.
    unsafe {
        (0..head).all(|i| ptr::read_volatile(at.add(i)) == 0)
            && {
                let base = at.add(head).cast::<u64>();
                (0..count).all(|i| ptr::read_volatile(base.add(i)) == 0)
            }
            && (head + count * 8..len).all(|i| ptr::read_volatile(at.add(i)) == 0)
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    static KNOWN: AtomicU8 = AtomicU8::new(0);
    match KNOWN.load(Ordering::Relaxed) {
        0 => {
            let yes = std::is_x86_feature_detected!("avx2");
            KNOWN.store(1 + u8::from(yes), Ordering::Relaxed);
            yes
        }
        known => known == 2,
    }
}

/// # Safety
/// As [`is_zero`]; `len` a positive multiple of 256; the processor has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn avx2(at: *const u8, len: usize) -> bool {
    let nonzero: u8;
    // SAFETY: reads `len` bytes from `at`, 256 at a time, and nothing else; clobbers what it
    // declares.
    unsafe {
        std::arch::asm!(
            "2:",
            "vmovdqu {a}, [{p}]",
            "vmovdqu {b}, [{p} + 64]",
            "vmovdqu {c}, [{p} + 128]",
            "vmovdqu {d}, [{p} + 192]",
            "vpor {a}, {a}, [{p} + 32]",
            "vpor {b}, {b}, [{p} + 96]",
            "vpor {c}, {c}, [{p} + 160]",
            "vpor {d}, {d}, [{p} + 224]",
            "vpor {a}, {a}, {b}",
            "vpor {c}, {c}, {d}",
            "vpor {a}, {a}, {c}",
            "vptest {a}, {a}",
            "jnz 3f",
            "add {p}, 256",
            "cmp {p}, {end}",
            "jb 2b",
            "3:",
            "vptest {a}, {a}",
            "setnz {nonzero}",
            p = inout(reg) at => _,
            end = in(reg) at.add(len),
            nonzero = out(reg_byte) nonzero,
            a = out(ymm_reg) _, b = out(ymm_reg) _, c = out(ymm_reg) _, d = out(ymm_reg) _,
            options(nostack, readonly)
        );
    }
    nonzero == 0
}

/// # Safety
/// As [`is_zero`]; `len` a positive multiple of 256.
#[cfg(target_arch = "x86_64")]
unsafe fn sse2(at: *const u8, len: usize) -> bool {
    let mask: u32;
    // SAFETY: reads `len` bytes from `at`, 64 at a time, and nothing else; SSE2 is part of x86-64.
    unsafe {
        std::arch::asm!(
            "pxor {z}, {z}",
            "2:",
            "movdqu {a}, [{p}]",
            "movdqu {b}, [{p} + 16]",
            "movdqu {c}, [{p} + 32]",
            "movdqu {d}, [{p} + 48]",
            "por {a}, {b}",
            "por {c}, {d}",
            "por {a}, {c}",
            "pcmpeqb {a}, {z}",
            "pmovmskb {mask:e}, {a}",
            "cmp {mask:e}, 65535",
            "jne 3f",
            "add {p}, 64",
            "cmp {p}, {end}",
            "jb 2b",
            "3:",
            p = inout(reg) at => _,
            end = in(reg) at.add(len),
            mask = out(reg) mask,
            a = out(xmm_reg) _, b = out(xmm_reg) _, c = out(xmm_reg) _, d = out(xmm_reg) _, z = out(xmm_reg) _,
            options(nostack, readonly)
        );
    }
    mask == 0xffff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_anywhere_is_found_by_every_loop() {
        let mut page = vec![0u8; 4096 + 64];
        for start in [0usize, 1, 32] {
            for len in [256usize, 512, 4096] {
                for at in [
                    None,
                    Some(0),
                    Some(1),
                    Some(31),
                    Some(33),
                    Some(255),
                    Some(len / 2 + 70),
                    Some(len - 1),
                ] {
                    let at = at.map(|a| a % len);
                    if let Some(at) = at {
                        page[start + at] = 1;
                    }
                    let p = page[start..].as_ptr();
                    // SAFETY: the range lies inside the vector; AVX2 is only used where it was
                    // detected.
                    unsafe {
                        assert_eq!(is_zero(p, len), at.is_none(), "{start} {len} {at:?}");
                        assert_eq!(words(p, len), at.is_none());
                        #[cfg(target_arch = "x86_64")]
                        {
                            assert_eq!(sse2(p, len), at.is_none());
                            if has_avx2() {
                                assert_eq!(avx2(p, len), at.is_none());
                            }
                        }
                    }
                    if let Some(at) = at {
                        page[start + at] = 0;
                    }
                }
            }
        }
        // SAFETY: short and odd lengths lie inside the vector too.
        unsafe {
            assert!(is_zero(page.as_ptr().add(1), 77));
            assert!(is_zero(page.as_ptr(), 0));
        }
    }
}
