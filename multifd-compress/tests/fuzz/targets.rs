//! What the fuzz targets do with their input. `tests/fuzz_targets.rs` runs the same functions over
//! the seeds and deterministic mutations of them, for machines without a nightly toolchain.

use multifd_compress::{Qatzip, Qpl, Uadk, Zlib, Zstd};
use multifd_core::{IncomingPages, Method, RamBlock};
use multifd_packet::{Flags, Geometry, RamFields, RamPacket};
use multifd_testing::Bytes;
use std::sync::Arc;

/// Decodes two packets of one channel: a byte says how many pages the first is for, two how long
/// its payload is. Returns whether both were taken. Nothing beyond the pages named may be written.
fn decode(method: &dyn Method, data: &[u8]) -> bool {
    let [pages, high, low, rest @ ..] = data else {
        return false;
    };
    let pages = u64::from(pages % 8) + 1;
    let (first, second) =
        rest.split_at(usize::from(u16::from_be_bytes([*high, *low])).min(rest.len()));
    let block = Arc::new(RamBlock::anonymous("pc.ram", 16 * 4096, 4096).expect("memory"));
    let mut unpacker = method.unpacker().expect("a decoder");
    let mut taken = true;
    for payload in [first, second]
        .into_iter()
        .filter(|payload| !payload.is_empty())
    {
        let offsets: Vec<u64> = (0..pages).map(|page| page * 4096).collect();
        let geometry = Geometry::new(4096).expect("a valid page size");
        let mut wire = vec![0; geometry.packet_len()];
        let fields = RamFields {
            flags: Flags::data(method.kind()),
            payload_len: payload.len() as u32,
            packet_num: 0,
            block: "pc.ram",
        };
        RamPacket::encode(&fields, geometry, &offsets, &[], &mut wire).expect("a valid packet");
        let packet = RamPacket::parse(&wire, geometry).expect("what was encoded is accepted");
        let incoming = IncomingPages::in_place(&block, &packet).expect("pages of the block");
        taken &= unpacker.unpack(&incoming, &mut Bytes(payload)).is_ok();
    }
    let beyond = block
        .region(pages * 4096, 16 * 4096 - pages as usize * 4096)
        .expect("in the block");
    assert!(beyond.is_zero(), "pages that were not named are written");
    taken
}

/// Decodes zlib.
pub fn zlib(data: &[u8]) -> bool {
    decode(&Zlib::default(), data)
}

/// Decodes zstd.
pub fn zstd(data: &[u8]) -> bool {
    decode(&Zstd::default(), data)
}

/// Decodes QPL.
pub fn qpl(data: &[u8]) -> bool {
    decode(&Qpl, data)
}

/// Decodes UADK.
pub fn uadk(data: &[u8]) -> bool {
    decode(&Uadk, data)
}

/// Decodes `QATzip`.
pub fn qatzip(data: &[u8]) -> bool {
    decode(&Qatzip, data)
}
