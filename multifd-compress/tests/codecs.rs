//! Each codec against itself and against independent encoders, and against payloads that are not
//! what they should be.
#![cfg(all(
    feature = "zlib",
    feature = "zstd",
    feature = "qpl",
    feature = "uadk",
    feature = "qatzip"
))]
#![allow(clippy::unwrap_used, clippy::panic)]

mod channel;

use channel::{block, contents, unpack};
use multifd_compress::{Qatzip, Qpl, Uadk, Zlib, Zstd};
use multifd_core::packet::Compression;
use multifd_core::{
    MemoryBudget, Method, MethodError, PageBatch, PayloadBuf, Prepare, RamBlock, Unpack,
    UnpackError,
};
use proptest::prelude::*;
use std::io::Write;
use std::sync::Arc;

fn methods() -> Vec<Box<dyn Method>> {
    let mut all: Vec<Box<dyn Method>> = vec![Box::new(Zlib::default()), Box::new(Zstd::default())];
    for level in [0, 6, 9] {
        all.push(Box::new(Zlib::new(level).unwrap()));
    }
    for level in [0, 3, 20] {
        all.push(Box::new(Zstd::new(level).unwrap()));
    }
    all.extend(accelerators());
    all
}

fn accelerators() -> Vec<Box<dyn Method>> {
    vec![Box::new(Qpl), Box::new(Uadk), Box::new(Qatzip)]
}

/// A page that is text, noise, or the same byte throughout, after its number.
fn fill(page: usize, salt: u8) -> Vec<u8> {
    let mut state = (page as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(salt);
    (0..4096)
        .map(|i| match page % 3 {
            0 => b"the quick brown fox jumps over the lazy dog "[i % 44],
            1 => {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state as u8
            }
            _ => salt,
        })
        .collect()
}

#[test]
fn streams_run_on_across_packets() {
    for method in methods() {
        let (mut prepare, mut unpacker) = (method.preparer().unwrap(), method.unpacker().unwrap());
        let (source, target) = (block(300), block(300));
        for salt in 0..4u8 {
            for page in 0..300 {
                source
                    .page(page as u64 * 4096)
                    .unwrap()
                    .copy_from(&fill(page, salt));
            }
            let offsets: Vec<u64> = (0..300).map(|page| page * 4096).collect();
            for offsets in offsets.chunks(128) {
                let mut payload = PayloadBuf::default();
                prepare
                    .prepare(
                        &PageBatch::from_offsets(&source, offsets).unwrap(),
                        &mut payload,
                    )
                    .unwrap();
                assert!(payload.runs().is_empty());
                assert!(payload.len() <= 1 << 20);
                let payload = payload.staged().clone();
                unpack(unpacker.as_mut(), method.kind(), &target, offsets, &payload).unwrap();
            }
            assert!(contents(&source) == contents(&target), "{}", method.kind());
        }
    }
}

/// Compresses the pages of one block, and decompresses them into the other; returns the payload.
fn through(
    (prepare, unpacker): (&mut dyn Prepare, &mut dyn Unpack),
    kind: Compression,
    (source, target): (&Arc<RamBlock>, &Arc<RamBlock>),
    offsets: &[u64],
) -> Vec<u8> {
    let mut payload = PayloadBuf::default();
    let batch = PageBatch::from_offsets(source, offsets).unwrap();
    prepare.prepare(&batch, &mut payload).unwrap();
    let payload = payload.staged().clone();
    unpack(unpacker, kind, target, offsets, &payload).unwrap();
    payload
}

#[test]
fn pages_that_do_not_become_smaller_harm_none_that_follow() {
    for method in accelerators() {
        let (mut prepare, mut unpacker) = (method.preparer().unwrap(), method.unpacker().unwrap());
        let (source, target) = (block(128), block(128));
        let offsets: Vec<u64> = (0..128).map(|page| page * 4096).collect();
        for round in 0..20usize {
            for page in 0..128 {
                // Noise, followed by ever more of the same byte.
                let mut bytes = fill(3 * (page + 128 * round) + 1, 1);
                bytes[4096 - (page * 7 + round) % 512..].fill(1);
                source.page(page as u64 * 4096).unwrap().copy_from(&bytes);
            }
            through(
                (prepare.as_mut(), unpacker.as_mut()),
                method.kind(),
                (&source, &target),
                &offsets,
            );
            assert!(contents(&source) == contents(&target), "{}", method.kind());
        }
    }
}

/// Compresses packets of the given kinds of pages, one after another on a channel, and has them
/// decompressed; returns their lengths.
fn zlib_stream(level: u8, packets: &[Vec<usize>]) -> Vec<usize> {
    let method = Zlib::new(level).unwrap();
    let (mut prepare, mut unpacker) = (method.preparer().unwrap(), method.unpacker().unwrap());
    let mut lengths = Vec::new();
    for (number, kinds) in packets.iter().enumerate() {
        let (source, target) = (block(kinds.len()), block(kinds.len()));
        let mut offsets = Vec::new();
        for (page, kind) in kinds.iter().enumerate() {
            let offset = page as u64 * 4096;
            let bytes = fill(3 * (number * 128 + page) + kind, 7);
            source.page(offset).unwrap().copy_from(&bytes);
            offsets.push(offset);
        }
        let payload = through(
            (prepare.as_mut(), unpacker.as_mut()),
            method.kind(),
            (&source, &target),
            &offsets,
        );
        assert!(
            contents(&source) == contents(&target),
            "packet {number} of {packets:?}"
        );
        lengths.push(payload.len());
    }
    lengths
}

proptest! {
    /// Stored parts come and go within a stream: at its start, after compressed pages, from packet
    /// to packet.
    #[test]
    fn zlib_stores_noise_within_its_stream(
        level in prop::sample::select(vec![0_u8, 1, 6, 9]),
        packets in prop::collection::vec(prop::collection::vec(0_usize..3, 1..40), 1..8),
    ) {
        zlib_stream(level, &packets);
    }
}

#[test]
fn noise_costs_zlib_no_more_than_its_blocks_headers() {
    // A stream's header and a full flush, then 128 pages in nine blocks of 64 KiB less one.
    assert_eq!(
        zlib_stream(1, &[vec![1; 128], vec![1; 128]]),
        [2 + 5 + 9 * 5 + 128 * 4096, 9 * 5 + 128 * 4096]
    );
    // Text is still found to be compressible beside it.
    let mixed = zlib_stream(1, &[[vec![1; 64], vec![0; 64]].concat()]);
    assert!(mixed[0] < 64 * 4096 + 64 * 200, "{mixed:?}");
}

#[test]
fn levels_are_qemus() {
    assert!(matches!(
        Zlib::new(10),
        Err(MethodError::Level {
            found: 10,
            max: 9,
            ..
        })
    ));
    assert!(matches!(
        Zstd::new(21),
        Err(MethodError::Level {
            found: 21,
            max: 20,
            ..
        })
    ));
}

/// `pages` pages as an independent encoder makes them of one packet.
fn independent(kind: multifd_packet::Compression, pages: &[u8]) -> Vec<u8> {
    if kind == multifd_packet::Compression::Zlib {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(pages).unwrap();
        encoder.flush().unwrap();
        encoder.get_ref().clone()
    } else {
        // One complete frame a packet: QEMU takes that too.
        let mut frame = vec![0; zstd::zstd_safe::compress_bound(pages.len())];
        let len = zstd::zstd_safe::compress(&mut frame[..], pages, 5).unwrap();
        frame.truncate(len);
        frame
    }
}

#[test]
fn a_payload_gives_its_pages_and_nothing_else() {
    for method in methods().iter().take(2) {
        let kind = method.kind();
        let pages: Vec<u8> = (0..3).flat_map(|page| fill(page, 1)).collect();
        let outcome = |payload: &[u8], offsets: &[u64]| {
            let mut unpacker = method.unpacker().unwrap();
            unpack(unpacker.as_mut(), kind, &block(8), offsets, payload)
        };
        let payload = independent(kind, &pages);
        outcome(&payload, &[0, 4096, 8192]).unwrap();
        let error = outcome(&payload, &[0, 4096]).unwrap_err();
        assert!(
            matches!(error, UnpackError::TooLong { pages: 2, .. }),
            "{error}"
        );
        let error = outcome(&payload, &[0, 4096, 8192, 12288]).unwrap_err();
        assert!(
            matches!(
                error,
                UnpackError::TooShort {
                    page: 3,
                    pages: 4,
                    ..
                }
            ),
            "{kind}: {error}"
        );
        for cut in [1, payload.len() / 2, payload.len() - 8] {
            let error = outcome(&payload[..cut], &[0, 4096, 8192]).unwrap_err();
            assert!(
                matches!(error, UnpackError::TooShort { .. }),
                "{kind} {cut}: {error}"
            );
        }
        let mut damaged = payload.clone();
        damaged[0] ^= 0xff;
        let error = outcome(&damaged, &[0, 4096, 8192]).unwrap_err();
        assert!(
            matches!(error, UnpackError::Damaged { page: 0, .. }),
            "{kind}: {error}"
        );
        let mut more = payload.clone();
        more.extend(b"and more");
        assert!(outcome(&more, &[0, 4096, 8192]).is_err());
        // A page more than announced, hidden behind the flush of those that were.
        let long: Vec<u8> = (0..4).flat_map(|_| fill(2, 7)).collect();
        let error = outcome(&independent(kind, &long), &[0, 4096, 8192]).unwrap_err();
        assert!(
            matches!(error, UnpackError::TooLong { pages: 3, .. }),
            "{kind}: {error}"
        );
    }
}

#[test]
fn one_zstd_frame_a_packet_decodes_like_one_a_channel() {
    let mut unpacker = Zstd::default().unpacker().unwrap();
    let target = block(6);
    for first in [0usize, 3] {
        let pages: Vec<u8> = (first..first + 3).flat_map(|page| fill(page, 1)).collect();
        let offsets: Vec<u64> = (first..first + 3).map(|page| page as u64 * 4096).collect();
        let payload = independent(multifd_packet::Compression::Zstd, &pages);
        unpack(
            unpacker.as_mut(),
            multifd_packet::Compression::Zstd,
            &target,
            &offsets,
            &payload,
        )
        .unwrap();
    }
    let expected: Vec<u8> = (0..6).flat_map(|page| fill(page, 1)).collect();
    assert!(contents(&target) == expected);
}

#[test]
fn every_zstd_packet_is_a_frame_of_its_own_and_frozen_memory_is_read_in_place() {
    let frozen = RamBlock::anonymous("pc.ram", 40 * 4096, 4096).unwrap();
    let pages: Vec<u8> = (0..40).flat_map(|page| fill(page, 3)).collect();
    frozen.region(0, pages.len()).unwrap().copy_from(&pages);
    let frozen = Arc::new(frozen.freeze().unwrap());
    let open = block(40);
    open.region(0, pages.len()).unwrap().copy_from(&pages);
    for method in methods() {
        // Pages one after another; with a gap between them; in another order.
        for numbers in [
            (0..40).collect::<Vec<u64>>(),
            vec![0, 1, 2, 9, 10],
            vec![7, 6, 5],
        ] {
            let offsets: Vec<u64> = numbers.iter().map(|page| page * 4096).collect();
            let payloads = [&frozen, &open].map(|block| {
                let mut payload = PayloadBuf::default();
                let batch = PageBatch::from_offsets(block, &offsets).unwrap();
                method
                    .preparer()
                    .unwrap()
                    .prepare(&batch, &mut payload)
                    .unwrap();
                payload.staged().clone()
            });
            assert!(payloads[0] == payloads[1], "{} {numbers:?}", method.kind());
            if method.kind() == multifd_packet::Compression::Zstd {
                let mut plain = vec![0; offsets.len() * 4096];
                let len = zstd::zstd_safe::find_frame_compressed_size(&payloads[0]).unwrap();
                assert_eq!(len, payloads[0].len(), "one frame, and nothing after it");
                assert_eq!(
                    zstd::zstd_safe::decompress(&mut plain[..], &payloads[0]).unwrap(),
                    plain.len()
                );
            }
        }
    }
}

#[test]
fn a_zstd_window_beyond_the_limit_is_refused() {
    // Frame header: magic, a descriptor without content size, a window of 2^(10 + exponent) bytes;
    // one empty last block.
    let outcome = |exponent: u8| {
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, exponent << 3];
        frame.extend([0x01, 0x00, 0x00]);
        let mut unpacker = Zstd::default().unpacker().unwrap();
        let kind = multifd_packet::Compression::Zstd;
        unpack(unpacker.as_mut(), kind, &block(1), &[0], &frame).unwrap_err()
    };
    assert!(
        matches!(outcome(15), UnpackError::TooShort { .. }),
        "{}",
        outcome(15)
    );
    for exponent in [16, 21] {
        let error = outcome(exponent);
        assert!(matches!(error, UnpackError::Damaged { .. }), "{error}");
    }
}

#[test]
fn zstd_windows_of_all_channels_share_one_budget() {
    let budget = MemoryBudget::new(40 << 20);
    let method = Zstd::default().with_budget(budget.clone());
    // A window of 2^(10 + exponent) bytes, one page of one byte repeated, and the frame goes on.
    let frame = |exponent: u8| {
        [
            &[0x28, 0xb5, 0x2f, 0xfd, 0x00, exponent << 3][..],
            &[0x02, 0x80, 0x00, b'A'],
        ]
        .concat()
    };
    let kind = multifd_packet::Compression::Zstd;
    let mut first = method.unpacker().unwrap();
    unpack(first.as_mut(), kind, &block(1), &[0], &frame(15)).unwrap();
    assert_eq!(budget.used(), 32 << 20);
    let mut second = method.clone().unpacker().unwrap();
    unpack(second.as_mut(), kind, &block(1), &[0], &frame(13)).unwrap();
    // Windows of the size that QEMU's default level has are every channel's own.
    let mut third = method.unpacker().unwrap();
    unpack(third.as_mut(), kind, &block(1), &[0], &frame(9)).unwrap();
    assert_eq!(budget.used(), 40 << 20);
    let error = unpack(
        method.unpacker().unwrap().as_mut(),
        kind,
        &block(1),
        &[0],
        &frame(11),
    )
    .unwrap_err();
    assert!(matches!(error, UnpackError::Memory { .. }), "{error}");
    assert!(error.to_string().contains("41943040"), "{error}");
    drop((first, second));
    assert_eq!(budget.used(), 0);
}

/// The three pages of the fixtures (`tests/fixtures/make.py`).
fn fixture_pages() -> Vec<u8> {
    let text = b"the quick brown fox jumps over the lazy dog "
        .iter()
        .cycle()
        .take(4096);
    let mut state = 1u32;
    let noise = (0..4096).map(|_| {
        state = state.wrapping_mul(1_103_515_245).wrapping_add(12345) % (1 << 31);
        (state >> 16) as u8
    });
    text.copied().chain(noise).chain([7; 4096]).collect()
}

#[test]
fn what_an_independent_encoder_made_is_decoded() {
    for (method, payload) in [
        (&Qpl as &dyn Method, &include_bytes!("fixtures/qpl.bin")[..]),
        (&Uadk, include_bytes!("fixtures/uadk.bin")),
        (&Qatzip, include_bytes!("fixtures/qatzip.bin")),
        (&Qatzip, include_bytes!("fixtures/qatzip-plain.bin")),
    ] {
        let kind = method.kind();
        let outcome = |target: &Arc<RamBlock>, offsets: &[u64], payload: &[u8]| {
            unpack(
                method.unpacker().unwrap().as_mut(),
                kind,
                target,
                offsets,
                payload,
            )
        };
        let target = block(4);
        outcome(&target, &[4096, 8192, 12288], payload).unwrap();
        assert!(contents(&target)[4096..] == fixture_pages(), "{kind}");
        // Not the pages that were announced, or not whole.
        let few = outcome(&target, &[0, 4096], payload).unwrap_err();
        let many = outcome(&target, &[0, 4096, 8192, 12288], payload).unwrap_err();
        let tables = kind != multifd_packet::Compression::Qatzip;
        assert!(
            tables || matches!(few, UnpackError::TooLong { .. }),
            "{kind}: {few}"
        );
        assert!(
            tables || matches!(many, UnpackError::TooShort { page: 3, .. }),
            "{kind}: {many}"
        );
        for cut in [1, 11, payload.len() / 2, payload.len() - 1] {
            let error = outcome(&target, &[0, 4096, 8192], &payload[..cut]).unwrap_err();
            assert!(
                matches!(error, UnpackError::TooShort { .. }),
                "{kind} {cut}: {error}"
            );
        }
        let more = [payload, b"!"].concat();
        let error = outcome(&target, &[0, 4096, 8192], &more).unwrap_err();
        assert!(
            matches!(
                error,
                UnpackError::TooLong { .. }
                    | UnpackError::Damaged { .. }
                    | UnpackError::TooShort { page: 3, .. }
            ),
            "{kind}: {error}"
        );
    }
}

#[test]
fn a_page_that_is_not_just_a_page_is_refused() {
    let deflate = |data: &[u8]| {
        let mut encoder =
            flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    };
    let outcome = |length: u32, bytes: &[u8]| {
        let payload = [&length.to_be_bytes()[..], bytes].concat();
        let mut unpacker = Qpl.unpacker().unwrap();
        unpack(
            unpacker.as_mut(),
            multifd_packet::Compression::Qpl,
            &block(1),
            &[0],
            &payload,
        )
    };
    let good = deflate(&[9; 4096]);
    let length = |bytes: &[u8]| bytes.len() as u32;
    outcome(length(&good), &good).unwrap();
    outcome(4096, &[9; 4096]).unwrap();
    // A bomb, a byte too few, a stream that does not end, bytes behind it, lengths that cannot be.
    for bytes in [
        deflate(&vec![9; 1 << 20]),
        deflate(&[9; 4095]),
        good[..good.len() - 1].to_vec(),
    ] {
        let error = outcome(length(&bytes), &bytes).unwrap_err();
        assert!(
            matches!(error, UnpackError::Damaged { page: 0, .. }),
            "{error}"
        );
    }
    let more = [&good[..], b"more"].concat();
    assert!(matches!(
        outcome(length(&more), &more),
        Err(UnpackError::Damaged { .. })
    ));
    assert!(matches!(
        outcome(length(&good), &more),
        Err(UnpackError::TooLong { left: 4, .. })
    ));
    assert!(matches!(
        outcome(4097, &[9; 4097]),
        Err(UnpackError::Damaged { .. })
    ));
    assert!(matches!(
        outcome(u32::MAX, &good),
        Err(UnpackError::Damaged { .. })
    ));
    assert!(matches!(
        outcome(4096, &good),
        Err(UnpackError::TooShort { .. })
    ));
    assert!(outcome(0, &good).is_err());
}

#[test]
fn gzip_itself_reads_what_qatzip_makes_and_a_wrong_checksum_is_noticed() {
    let source = block(40);
    let pages: Vec<u8> = (0..40).flat_map(|page| fill(page, 3)).collect();
    source.region(0, pages.len()).unwrap().copy_from(&pages);
    let offsets: Vec<u64> = (0..40).map(|page| page * 4096).collect();
    let mut payload = PayloadBuf::default();
    let batch = PageBatch::from_offsets(&source, &offsets).unwrap();
    Qatzip
        .preparer()
        .unwrap()
        .prepare(&batch, &mut payload)
        .unwrap();
    let mut bytes = payload.staged().clone();
    let mut gzip = std::process::Command::new("gzip")
        .arg("-dc")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let (mut input, sent) = (gzip.stdin.take().unwrap(), bytes.clone());
    let writer = std::thread::spawn(move || input.write_all(&sent).unwrap());
    let output = gzip.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success() && output.stdout == pages);
    let last = bytes.len() - 6;
    bytes[last] ^= 1;
    let mut unpacker = Qatzip.unpacker().unwrap();
    let kind = multifd_packet::Compression::Qatzip;
    let error = unpack(unpacker.as_mut(), kind, &block(40), &offsets, &bytes).unwrap_err();
    assert!(matches!(error, UnpackError::Damaged { .. }), "{error}");
}

proptest! {
    #[test]
    fn damaged_pages_of_accelerators_never_panic(
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
        which in 0usize..3,
    ) {
        let fixtures = [
            &include_bytes!("fixtures/qpl.bin")[..],
            include_bytes!("fixtures/uadk.bin"),
            include_bytes!("fixtures/qatzip.bin"),
        ];
        let mut payload = fixtures[which].to_vec();
        for (at, value) in damage {
            let at = at.index(payload.len());
            payload[at] = value;
        }
        let method = &accelerators()[which];
        let mut unpacker = method.unpacker().unwrap();
        let _ = unpack(unpacker.as_mut(), method.kind(), &block(3), &[0, 4096, 8192], &payload);
    }

    #[test]
    fn damaged_payloads_never_panic(
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
        which in 0usize..2,
    ) {
        let method = &methods()[which];
        let pages: Vec<u8> = (0..3).flat_map(|page| fill(page, 1)).collect();
        let mut payload = independent(method.kind(), &pages);
        for (at, value) in damage {
            let at = at.index(payload.len());
            payload[at] = value;
        }
        let mut unpacker = method.unpacker().unwrap();
        let _ = unpack(unpacker.as_mut(), method.kind(), &block(3), &[0, 4096, 8192], &payload);
    }
}
