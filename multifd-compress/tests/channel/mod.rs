//! A packet and a channel for one payload.
#![allow(dead_code, unreachable_pub)] // Each test binary uses a part.

use multifd_core::{
    Arrival, ChannelError, IncomingPages, RamBlock, RecvChannel, Unblock, Unpack, UnpackError,
};
use multifd_packet::{Flags, Geometry, RamFields, RamPacket};
use std::sync::Arc;

struct Bytes<'a>(&'a [u8]);

struct Nothing;

impl Unblock for Nothing {
    fn unblock(&self) {}
}

impl RecvChannel for Bytes<'_> {
    fn recv_start(&mut self, buffer: &mut [u8]) -> Result<Arrival, ChannelError> {
        let (now, rest) = self.0.split_at_checked(buffer.len()).unwrap();
        buffer.copy_from_slice(now);
        self.0 = rest;
        Ok(Arrival::Message)
    }

    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
        Ok(Box::new(Nothing))
    }
}

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
    kind: multifd_packet::Method,
    target: &RamBlock,
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
    let result = unpacker.unpack(&IncomingPages::new(target, &packet).unwrap(), &mut channel);
    assert!(
        channel.0.is_empty(),
        "the payload is taken whole, whatever it holds"
    );
    result
}
