//! Damaged main channels and files: an error each time, and never a panic, a hang, or memory beyond
//! the limits.
#![allow(clippy::unwrap_used, clippy::panic)]

use multifd_core::{ChannelError, ChannelSource, RecvChannel};
use multifd_packet::MAPPED_RAM_HEADER_LEN;
use multifd_qemu::{Limits, MappedFile, ReceiveOptions, receive};
use multifd_tests::golden::Golden;
use std::io::Cursor;

/// No channel ever comes.
struct Nobody;

impl ChannelSource for Nobody {
    fn next_channel(&mut self, _wait: bool) -> Result<Option<Box<dyn RecvChannel>>, ChannelError> {
        Ok(None)
    }
}

/// xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }

    /// Damages one to four places of `bytes`, mostly near the start.
    fn damage(&mut self, bytes: &mut [u8]) {
        for _ in 0..=self.below(4) {
            let within = if self.below(4) > 0 { 300 } else { bytes.len() };
            let at = self.below(within.min(bytes.len()));
            bytes[at] = match self.below(3) {
                0 => 0xff,
                1 => 0,
                _ => self.below(256) as u8,
            };
        }
    }
}

fn limits() -> Limits {
    Limits::default().ram_bytes(1 << 30).tail_bytes(1 << 20)
}

#[test]
fn damaged_main_channels_are_refused() {
    let golden = Golden::load("none-2ch");
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut kinds = std::collections::BTreeSet::new();
    for _ in 0..3000 {
        let mut bytes = golden.main().to_vec();
        random.damage(&mut bytes);
        if random.below(2) == 0 {
            bytes.truncate(random.below(400));
        }
        let options = ReceiveOptions::default().limits(limits());
        let error = receive(Cursor::new(bytes), &mut Nobody, options).unwrap_err();
        kinds.insert(
            format!("{error:?}")
                .split([' ', '('])
                .next()
                .unwrap()
                .to_owned(),
        );
    }
    for kind in ["Malformed", "Truncated", "Refused", "TooLarge"] {
        assert!(kinds.contains(kind), "{kind} never came: {kinds:?}");
    }
}

#[test]
fn damaged_files_are_refused_or_read_within_their_limits() {
    let golden = Golden::load("mapped-2ch");
    let good = &golden.files["snapshot.mapped"];
    let read = |bytes: &[u8]| MappedFile::read(Cursor::new(bytes), 0, &limits(), true);
    let blocks = read(good).unwrap().blocks;
    let mut random = Random(1);
    let mut refused = 0;
    let mut bytes = good.clone();
    for _ in 0..2000 {
        // Around the head, or around one of the blocks' headers.
        let header = blocks[random.below(blocks.len())]
            .layout
            .header()
            .bitmap_offset as usize;
        let start = if random.below(2) == 0 {
            0
        } else {
            header - MAPPED_RAM_HEADER_LEN - 30
        };
        let place = start..start + 200;
        random.damage(&mut bytes[place.clone()]);
        match read(&bytes) {
            Ok(file) => assert!(file.ram_bytes() <= 1 << 30),
            Err(_) => refused += 1,
        }
        bytes[place.clone()].copy_from_slice(&good[place]);
    }
    assert!(refused > 1000, "{refused}");
    assert!(read(&good[..good.len() - 1]).is_err());
    assert_eq!(read(&bytes).unwrap().blocks, blocks);
}
