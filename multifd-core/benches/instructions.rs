//! Instructions that the hot paths take, beside stored figures: more than a tenth above one fails,
//! whatever the machine is doing meanwhile. `cargo bench -p multifd-core --bench instructions`,
//! which needs valgrind and `gungraun-runner`.
//!
//! The figures are of x86-64 with AVX2; a change that moves one for a reason changes it here.
#![allow(missing_docs, clippy::unwrap_used)] // The macros make public items.

use gungraun::{
    Callgrind, EntryPoint, EventKind, LibraryBenchmarkConfig, library_benchmark,
    library_benchmark_group, main,
};
use multifd_core::{
    ChannelError, Message, Method as _, PageBatch, PayloadBuf, Plain, Prepare, RamBlock, RamMap,
    SendChannel, Sender, SenderConfig, SyncScope, Transport, Unblock, WriteFlags, ZeroPages,
};
use multifd_packet::{Compression, Flags, Geometry, RamFields, RamPacket};
use std::hint::black_box;
use std::sync::Arc;

/// Pages of a packet.
const PAGES: u64 = 128;
const PAGE: u64 = 4096;
/// Packets of the hand-off.
const PACKETS: u64 = 1024;

fn limit(stored: u64) -> Callgrind {
    let mut callgrind = Callgrind::default();
    callgrind.hard_limits([(EventKind::Ir, stored + stored / 10)]);
    callgrind
}

fn at_most(stored: u64) -> LibraryBenchmarkConfig {
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(limit(stored));
    config
}

fn at_most_in_all_threads(stored: u64) -> LibraryBenchmarkConfig {
    let mut config = LibraryBenchmarkConfig::default();
    let mut callgrind = limit(stored);
    callgrind.entry_point(EntryPoint::None);
    config.tool(callgrind);
    config
}

fn geometry() -> Geometry {
    Geometry::new(4096).unwrap()
}

fn fields() -> RamFields<'static> {
    RamFields {
        flags: Flags::data(Compression::None),
        payload_len: 96 * 4096,
        packet_num: 1,
        block: "pc.ram",
    }
}

/// The offsets of 96 normal pages and 32 zero ones.
fn offsets() -> (Vec<u64>, Vec<u64>) {
    let offset = |page| page * PAGE;
    (
        (0..96).map(offset).collect(),
        (96..PAGES).map(offset).collect(),
    )
}

fn wire() -> Vec<u8> {
    let (normal, zero) = offsets();
    let mut wire = vec![0; geometry().packet_len()];
    RamPacket::encode(&fields(), geometry(), &normal, &zero, &mut wire).unwrap();
    wire
}

#[library_benchmark(config = at_most(3_267))]
#[bench::of_128_pages(offsets(), vec![0; geometry().packet_len()])]
fn packet_encode((normal, zero): (Vec<u64>, Vec<u64>), mut wire: Vec<u8>) -> Vec<u8> {
    RamPacket::encode(&fields(), geometry(), &normal, &zero, black_box(&mut wire)).unwrap();
    wire
}

#[library_benchmark(config = at_most(3_011))]
#[bench::of_128_pages(wire())]
fn packet_decode(wire: Vec<u8>) -> u64 {
    let packet = RamPacket::parse(black_box(&wire), geometry()).unwrap();
    packet.normal().iter().sum::<u64>() + packet.zero().iter().sum::<u64>()
}

fn zeros() -> RamBlock {
    RamBlock::anonymous("pc.ram", PAGES * PAGE, 4096).unwrap()
}

#[library_benchmark(config = at_most(38_744))]
#[bench::of_128_pages(zeros())]
fn zero_page_scan(block: RamBlock) -> usize {
    (0..PAGES)
        .filter(|page| block.page(page * PAGE).unwrap().is_zero())
        .count()
}

/// Every fourth page is missing: 32 runs of three.
fn with_gaps() -> (PageBatch, Box<dyn Prepare>, PayloadBuf) {
    let block = Arc::new(RamBlock::anonymous("pc.ram", 4 * PAGES * PAGE, 4096).unwrap());
    let offsets = (0..PAGES)
        .filter(|page| page % 4 != 3)
        .map(|page| page * PAGE);
    let offsets: Vec<_> = offsets.collect();
    let batch = PageBatch::from_offsets(&block, &offsets).unwrap();
    (batch, Plain.preparer().unwrap(), PayloadBuf::default())
}

#[library_benchmark(config = at_most(3_417))]
#[bench::of_32_runs(with_gaps())]
fn iov_building(
    (batch, mut prepare, mut payload): (PageBatch, Box<dyn Prepare>, PayloadBuf),
) -> usize {
    prepare.prepare(black_box(&batch), &mut payload).unwrap();
    payload.len()
}

/// Channels that take all and keep nothing.
struct Nowhere;

impl Transport for Nowhere {
    fn open(&self, _: u8) -> Result<Box<dyn SendChannel>, ChannelError> {
        Ok(Box::new(Self))
    }
}

impl SendChannel for Nowhere {
    fn send(&mut self, message: &Message<'_>, _: WriteFlags) -> Result<(), ChannelError> {
        black_box(message.len());
        Ok(())
    }

    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
        Ok(Box::new(Self))
    }
}

impl Unblock for Nowhere {
    fn unblock(&self) {}
}

fn large() -> RamMap {
    let mut ram = RamMap::new();
    ram.add(RamBlock::anonymous("pc.ram", PACKETS * PAGES * PAGE, 4096).unwrap())
        .unwrap();
    ram
}

// All of the process, as both ends of the hand-off count; nobody looks for zero pages, as that is
// not it.
#[library_benchmark(config = at_most_in_all_threads(7_128_000))]
#[bench::of_1024_packets(large())]
fn batch_hand_off(ram: RamMap) -> u64 {
    let config = SenderConfig::default()
        .channels(1)
        .zero_pages(ZeroPages::Off);
    let mut sender = Sender::start(ram, &Plain, &Nowhere, &config).unwrap();
    sender.queue_range(0, 0, PACKETS * PAGES * PAGE).unwrap();
    sender.sync(SyncScope::Local).unwrap();
    let sent = sender.finish().unwrap().total();
    assert_eq!(sent.normal_pages, PACKETS * PAGES);
    sent.packets
}

library_benchmark_group!(
    name = hot_paths;
    benchmarks = packet_encode, packet_decode, zero_page_scan, iov_building, batch_hand_off
);

main!(library_benchmark_groups = hot_paths);
