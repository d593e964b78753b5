//! A packet and a channel for one payload.
#![allow(dead_code, unreachable_pub)] // Each test binary uses a part.

use multifd_core::{IncomingPages, RamBlock, Unpack, UnpackError};
use multifd_packet::{Flags, Geometry, RamFields, RamPacket};
use multifd_testing::Bytes;
use std::sync::Arc;

pub fn block(pages: usize) -> Arc<RamBlock> {
    Arc::new(RamBlock::anonymous("pc.ram", pages as u64 * 4096, 4096).unwrap())
}

pub fn contents(block: &RamBlock) -> Vec<u8> {
    let mut all = vec![0; block.len() as usize];
    block.region(0, all.len()).unwrap().copy_to(&mut all);
    all
}

pub fn unpack(
    unpacker: &mut dyn Unpack,
    kind: multifd_packet::Compression,
    target: &Arc<RamBlock>,
    offsets: &[u64],
    payload: &[u8],
) -> Result<(), UnpackError> {
    let mut wire = [0; 1344];
    let fields = RamFields {
        flags: Flags::data(kind),
        payload_len: payload.len() as u32,
        packet_num: 0,
        block: "pc.ram",
    };
    let geometry = Geometry::new(4096).unwrap();
    RamPacket::encode(&fields, geometry, offsets, &[], &mut wire).unwrap();
    let packet = RamPacket::parse(&wire, geometry).unwrap();
    let mut channel = Bytes(payload);
    let result = unpacker.unpack(
        &IncomingPages::in_place(target, &packet).unwrap(),
        &mut channel,
    );
    assert!(
        channel.0.is_empty(),
        "the payload is taken whole, whatever it holds"
    );
    result
}
