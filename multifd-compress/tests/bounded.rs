//! Payloads made to make a decoder do more than its packet's pages: each is an error, and nothing
//! else.
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
use flate2::{Compression, write::DeflateEncoder, write::GzEncoder, write::ZlibEncoder};
use multifd_compress::{Qatzip, Qpl, Uadk, Zlib, Zstd};
use multifd_core::{Method, UnpackError};
use std::io::Write;

/// Unpacks three pages; whatever happens, no page but those may change.
fn three_pages(method: &dyn Method, payload: &[u8]) -> Result<(), UnpackError> {
    let target = block(8);
    let result = unpack(
        method.unpacker().unwrap().as_mut(),
        method.kind(),
        &target,
        &[0, 4096, 8192],
        payload,
    );
    assert!(contents(&target)[12288..].iter().all(|&byte| byte == 0));
    result
}

fn refused(method: &dyn Method, payload: &[u8], what: &str) -> UnpackError {
    match three_pages(method, payload) {
        Err(error) => error,
        Ok(()) => panic!("{}: {what} is taken", method.kind()),
    }
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; zstd::zstd_safe::compress_bound(bytes.len())];
    let len = zstd::zstd_safe::compress(&mut frame[..], bytes, 3).unwrap();
    frame.truncate(len);
    frame
}

/// A QPL or UADK payload of these three pages, as they are.
fn paged(pages: [&[u8]; 3]) -> Vec<u8> {
    let lengths = pages
        .iter()
        .flat_map(|page| (page.len() as u32).to_be_bytes());
    lengths.chain(pages.concat()).collect()
}

/// 256 MiB of the same byte, in at most a quarter of a megabyte.
#[test]
fn a_bomb_gives_no_more_than_its_pages() {
    let bomb = vec![7; 256 << 20];
    let (page, one) = (vec![7; 4096], [7u8; 4096]);
    let inflated = |bytes: Vec<u8>| {
        assert!(bytes.len() < 1 << 20);
        bytes
    };
    let error = refused(&Zlib::default(), &inflated(zlib(&bomb)), "a bomb");
    assert!(matches!(error, UnpackError::TooLong { .. }), "{error}");
    let error = refused(&Zstd::default(), &inflated(zstd(&bomb)), "a bomb");
    assert!(matches!(error, UnpackError::TooLong { .. }), "{error}");
    let error = refused(&Qatzip, &inflated(gzip(&bomb)), "a bomb");
    assert!(matches!(error, UnpackError::TooLong { .. }), "{error}");
    // A page of QPL or UADK is at most a page of input: the best bomb in that is four megabytes.
    let small = &bomb[..3 << 20];
    let error = refused(&Qpl, &paged([&one, &deflate(small), &page]), "a bomb");
    assert!(
        matches!(error, UnpackError::Damaged { page: 1, .. }),
        "{error}"
    );
    let error = refused(&Uadk, &paged([&one, &zlib(small), &page]), "a bomb");
    assert!(
        matches!(error, UnpackError::Damaged { page: 1, .. }),
        "{error}"
    );
}

#[test]
fn dictionaries_are_refused() {
    let pages = vec![9; 3 * 4096];
    // zlib: FDICT in the second byte, its check bits made right, and the dictionary's Adler-32.
    let mut stream = zlib(&pages);
    stream[1] |= 0x20;
    stream[1] &= 0xe0;
    let rest = (u16::from(stream[0]) << 8 | u16::from(stream[1])) % 31;
    stream[1] += (31 - rest) as u8;
    stream.splice(2..2, [1, 2, 3, 4]);
    let error = refused(&Zlib::default(), &stream, "a preset dictionary");
    assert!(!matches!(error, UnpackError::Channel(_)), "{error}");
    let page = &pages[..4096];
    let mut one = zlib(page);
    one[1] = stream[1];
    one.splice(2..2, [1, 2, 3, 4]);
    let error = refused(&Uadk, &paged([page, &one, page]), "a preset dictionary");
    assert!(
        matches!(error, UnpackError::Damaged { page: 1, .. }),
        "{error}"
    );
    // zstd: a dictionary id in the frame header (descriptor bits 0 and 1), after the magic number.
    let frame = zstd(&pages);
    let mut named = frame[..4].to_vec();
    named.push(frame[4] | 1);
    let window = usize::from(frame[4] & 0x20 == 0);
    named.extend(&frame[5..5 + window]);
    named.push(77);
    named.extend(&frame[5 + window..]);
    let error = refused(&Zstd::default(), &named, "a dictionary");
    assert!(
        matches!(error, UnpackError::Damaged { page: 0, .. }),
        "{error}"
    );
}

#[test]
fn what_is_cut_goes_on_or_comes_twice_is_refused() {
    let pages: Vec<u8> = (0..3 * 4096u32).map(|i| (i * i / 7) as u8).collect();
    let [a, b, c] = [0, 1, 2].map(|page| &pages[page * 4096..][..4096]);
    let whole: [(&dyn Method, Vec<u8>); 5] = [
        (&Zlib::default(), zlib(&pages)),
        (&Zstd::default(), zstd(&pages)),
        (&Qpl, paged([&deflate(a), &deflate(b), &deflate(c)])),
        (&Uadk, paged([&zlib(a), &zlib(b), &zlib(c)])),
        (&Qatzip, gzip(&pages)),
    ];
    for (method, payload) in whole {
        let kind = method.kind();
        three_pages(method, &payload).unwrap_or_else(|error| panic!("{kind}: {error}"));
        for cut in [1, payload.len() / 3, payload.len() / 2, payload.len() - 9] {
            refused(method, &payload[..cut], "a payload cut off");
        }
        for more in [&b"\0"[..], b"and more", &[0; 5000]] {
            refused(
                method,
                &[&payload, more].concat(),
                "a payload with something after it",
            );
        }
        refused(
            method,
            &[payload.as_slice(), &payload].concat(),
            "a payload twice",
        );
    }
}

#[test]
fn members_and_frames_that_follow_each_other_are_one_payload() {
    let pages: Vec<u8> = (0..3 * 4096u32).map(|i| (i / 5) as u8).collect();
    // gzip and zstd allow it, QATzip does it, and QEMU takes it.
    let (one, two) = pages.split_at(5000);
    three_pages(&Qatzip, &[gzip(one), gzip(two)].concat()).unwrap();
    three_pages(&Zstd::default(), &[zstd(one), zstd(two)].concat()).unwrap();
    // Empty ones in between may not keep a decoder busy for nothing: the payload bounds them.
    let empty: Vec<u8> = gzip(b"").repeat(10_000);
    three_pages(&Qatzip, &[gzip(one), empty, gzip(two)].concat()).unwrap();
    let error = refused(
        &Qatzip,
        &[gzip(&pages), gzip(b"x")].concat(),
        "a member too many",
    );
    assert!(matches!(error, UnpackError::TooLong { .. }), "{error}");
}
