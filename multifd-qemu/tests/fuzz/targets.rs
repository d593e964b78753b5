//! What the fuzz targets do with their input. `tests/fuzz_targets.rs` runs the same functions over
//! the seeds and deterministic mutations of them, for machines without a nightly toolchain.

use multifd_core::{Arrival, ChannelError, ChannelSource, RecvChannel, Unblock};
use multifd_packet::{Flags, Geometry, InitPacket, RamFields, RamPacket, Uuid};
use multifd_qemu::{
    CoreFile, Limits, MappedFile, PhysicalMap, Processor, ReceiveOptions, Tail, receive,
};
use multifd_testing::NoUnblock;
use std::io::{self, Read, Seek, SeekFrom};

/// Little enough for thousands of runs a second.
fn limits() -> Limits {
    Limits::default()
        .ram_bytes(1 << 26)
        .blocks(32)
        .tail_bytes(1 << 20)
        .vmdesc_bytes(1 << 16)
        .machine_name(64)
}

/// One channel that says who it is, syncs some rounds, and ends.
struct Syncs {
    bytes: Vec<u8>,
    at: usize,
}

impl Syncs {
    fn new(rounds: u8) -> Self {
        let geometry = Geometry::new(4096).expect("a valid page size");
        let mut bytes = vec![0; 64];
        let init = InitPacket {
            uuid: Uuid::NIL,
            channel: 0,
        };
        init.encode(&mut bytes).expect("it fits");
        let mut sync = vec![0; geometry.packet_len()];
        let fields = RamFields {
            flags: Flags::sync(),
            payload_len: 0,
            packet_num: 0,
            block: "",
        };
        for round in 0..rounds {
            let fields = RamFields {
                packet_num: round.into(),
                ..fields
            };
            RamPacket::encode(&fields, geometry, &[], &[], &mut sync).expect("it fits");
            bytes.extend(&sync);
        }
        Self { bytes, at: 0 }
    }
}

impl RecvChannel for Syncs {
    fn recv_start(&mut self, buffer: &mut [u8]) -> Result<Arrival, ChannelError> {
        let Some(bytes) = self.bytes.get(self.at..self.at + buffer.len()) else {
            return Ok(Arrival::End);
        };
        buffer.copy_from_slice(bytes);
        self.at += buffer.len();
        Ok(Arrival::Message)
    }

    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
        Ok(Box::new(NoUnblock))
    }
}

struct One(Option<Syncs>);

impl ChannelSource for One {
    fn next_channel(&mut self, _wait: bool) -> Result<Option<Box<dyn RecvChannel>>, ChannelError> {
        Ok(self
            .0
            .take()
            .map(|channel| Box::new(channel) as Box<dyn RecvChannel>))
    }
}

/// Receives a migration whose main channel is the input, after a byte that says how many rounds its
/// one channel syncs. Returns whether it was taken.
pub fn main_channel(data: &[u8]) -> bool {
    let Some((rounds, main)) = data.split_first() else {
        return false;
    };
    let options = ReceiveOptions::default().limits(limits());
    let Ok(received) = receive(main, &mut One(Some(Syncs::new(rounds % 8))), options) else {
        return false;
    };
    assert!(received.snapshot.ram.total_len() <= limits().ram_bytes);
    assert_eq!(received.main_bytes, main.len() as u64);
    let sections = received.snapshot.tail.sections().unwrap_or_default();
    let bodies: u64 = sections.iter().map(|section| section.size).sum();
    let tail = &received.snapshot.tail;
    assert!(bodies <= (tail.early().len() + tail.bytes().len()) as u64);
    true
}

/// Reads device sections, after a layout of memory as the monitor prints it, whose length comes
/// first: what is made of them keeps its promises. Returns whether the sections were taken and the
/// layout understood.
pub fn device_sections(data: &[u8]) -> bool {
    let Some((len, rest)) = data.split_first_chunk::<2>() else {
        return false;
    };
    let Some((text, tail)) = rest.split_at_checked(u16::from_be_bytes(*len).into()) else {
        return false;
    };
    let Ok(tail) = Tail::new(tail.to_vec(), 0, true, &limits()) else {
        return false;
    };
    let blocks = [
        ("pc.ram", 16 << 20),
        ("pc.bios", 256 << 10),
        ("0000:00:03.0/mem", 8 << 20),
    ];
    let processors = Processor::all(&tail);
    assert!(processors.len() <= tail.bytes().len());
    let given = PhysicalMap::from_flat_view(&String::from_utf8_lossy(text), &blocks, &tail);
    let derived = PhysicalMap::of_pc("pc-i440fx-10.0", &blocks, &tail);
    for map in [&given, &derived].into_iter().flatten() {
        map.check(&blocks).expect("every range lies in its block");
        let mut end = 0;
        for range in map.ranges() {
            assert!(
                range.address >= end && range.len > 0,
                "ranges follow each other"
            );
            end = range.address + range.len;
        }
        let core = CoreFile::x86(map, &processors);
        let first = core.segments.first().map_or(u64::MAX, |segment| segment.at);
        assert!(core.head.len() as u64 <= first);
    }
    given.is_ok() && derived.is_ok()
}

/// A file without the gaps in which pages lie: wherever it is read, the input goes on.
struct Gapless<'a> {
    left: &'a [u8],
}

impl Read for Gapless<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // One byte at a time: the reader must not get what lies behind the gap before it seeks.
        let len = buffer.len().min(1);
        self.left.read(&mut buffer[..len])
    }
}

impl Seek for Gapless<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match to {
            SeekFrom::Start(at) => Ok(at),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

/// Reads a mapped-ram file: what is accepted keeps its promises. Returns whether it was.
pub fn mapped_file(data: &[u8]) -> bool {
    let file = MappedFile::read(Gapless { left: data }, 0, &limits(), true);
    if let Ok(file) = &file {
        assert!(file.configuration.is_mapped_ram());
        assert!(file.ram_bytes() <= limits().ram_bytes);
        let mut end = 0;
        for block in &file.blocks {
            let header = block.layout.header();
            assert!(header.bitmap_offset > end, "blocks follow each other");
            assert!(header.pages_offset >= header.bitmap_offset + block.layout.bitmap_len());
            end = block.layout.end();
        }
    }
    file.is_ok()
}
