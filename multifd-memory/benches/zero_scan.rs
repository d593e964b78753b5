//! The zero-page scan beside its yardsticks, in one run: a `memcmp`-style comparison with a page of
//! zeros, `memcpy`, and what a plain reading loop gets out of the memory. `cargo bench -p
//! multifd-memory --bench zero_scan`.
#![allow(clippy::unwrap_used, clippy::cast_precision_loss)]

use multifd_memory::RamBlock;
use std::hint::black_box;
use std::time::Instant;

const PAGE: usize = 4096;
const ROUNDS: usize = 7;

/// GB/s of `work` over `bytes` bytes, repeated so that a sample is at least some tens of
/// milliseconds.
fn rate(bytes: usize, mut work: impl FnMut()) -> f64 {
    let repeats = (1usize << 28).div_ceil(bytes);
    let start = Instant::now();
    (0..repeats).for_each(|_| work());
    (bytes * repeats) as f64 / start.elapsed().as_secs_f64() / 1e9
}

fn summary(mut samples: Vec<f64>) -> (f64, f64, f64) {
    samples.sort_by(f64::total_cmp);
    (
        samples[0],
        samples[samples.len() / 2],
        samples[samples.len() - 1],
    )
}

fn compare(what: &str, bytes: usize) {
    let block = RamBlock::anonymous("bench", bytes as u64, PAGE as u32).unwrap();
    // Written once, so that every page is real memory and not the kernel's one zero page.
    block.region(0, bytes).unwrap().copy_from(&vec![1; bytes]);
    block.region(0, bytes).unwrap().clear();
    let plain = vec![0u8; bytes];
    let plain = black_box(plain.iter().map(|b| b ^ black_box(0)).collect::<Vec<u8>>());
    let mut copy = vec![1u8; bytes];
    let zeros = [0u8; PAGE];

    let (mut scan, mut memcmp, mut memcpy, mut read) = (vec![], vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        scan.push(rate(bytes, || {
            for page in 0..bytes / PAGE {
                let page = block.page((page * PAGE) as u64).unwrap();
                assert!(black_box(page.is_zero()));
            }
        }));
        memcmp.push(rate(bytes, || {
            assert!(
                black_box(&plain)
                    .chunks(PAGE)
                    .all(|page| black_box(page == zeros))
            );
        }));
        memcpy.push(rate(bytes, || {
            black_box(&mut copy).copy_from_slice(black_box(&plain));
        }));
        read.push(rate(bytes, || {
            let (words, _) = black_box(&plain).as_chunks::<8>();
            let or = words
                .iter()
                .fold(0, |or, word| or | u64::from_ne_bytes(*word));
            assert_eq!(black_box(or), 0);
        }));
    }
    let scan = summary(scan);
    println!("{what}");
    println!(
        "  {:<24} {:>7.2} {:>7.2} {:>7.2}",
        "zero-page scan", scan.0, scan.1, scan.2
    );
    for (name, samples) in [
        ("memcmp with a zero page", memcmp),
        ("memcpy", memcpy),
        ("plain reading loop", read),
    ] {
        let (min, median, max) = summary(samples);
        let ratio = scan.1 / median;
        println!(
            "  {name:<24} {min:>7.2} {median:>7.2} {max:>7.2}   the scan is {ratio:.2} x this"
        );
    }
}

fn main() {
    println!("GB/s                        min  median     max");
    compare("256 KiB (in the cache)", 256 << 10);
    compare("256 MiB (from memory)", 256 << 20);
}
