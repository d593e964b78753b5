//! A method of one's own, start to end: an encoder and a decoder for a format QEMU knows, and nothing else touched.
//!
//! The format is QPL's: a table of lengths, then each page, compressed or as it is. This one compresses only pages that are the
//! same eight bytes throughout, by deflate's own way of saying "the same again"; a machine with the accelerator would read
//! what it makes.
//!
//! `cargo run -p multifd-compress --example write_a_method`

use multifd_compress::Qpl;
use multifd_core::{
    IncomingPages, IndependentPackets, Method, MethodError, PageBatch, PayloadBuf, Prepare, RecvChannel,
    Region, Unpack, UnpackError,
};
use multifd_packet::Method as Kind;

// ANCHOR: method
/// The factory: what packets call the method, and an encoder or decoder for each channel.
struct Patterns;

impl Method for Patterns {
    fn kind(&self) -> Kind {
        Kind::Qpl
    }

    fn preparer(&self) -> Result<Box<dyn Prepare>, MethodError> {
        Ok(Box::new(PatternPrepare::default()))
    }

    fn unpacker(&self) -> Result<Box<dyn Unpack>, MethodError> {
        // Whatever QPL's packets hold, there is a decoder for it.
        Qpl.unpacker()
    }
}

/// A promise: each payload can be decoded by itself. So a pool of threads may prepare packets (`multifd_core::Pooled`).
impl IndependentPackets for Patterns {}

/// One channel's encoder. Its buffers live as long as the channel: nothing is allocated for a packet.
#[derive(Default)]
struct PatternPrepare {
    page: Vec<u8>,
    bodies: Vec<u8>,
}

impl Prepare for PatternPrepare {
    /// Only normal pages come here, at most 512 KiB of them: zero pages have been sorted out.
    fn prepare(&mut self, pages: &PageBatch, payload: &mut PayloadBuf) -> Result<(), MethodError> {
        let block = pages.block();
        self.page.resize(block.page_size() as usize, 0);
        self.bodies.clear();
        for &offset in pages.normal() {
            let region = block.page(offset).map_err(|e| MethodError::Codec {
                method: Kind::Qpl,
                reason: e.to_string(),
            })?;
            // A running guest may write to the page while we look at it: only a copy stays what it is.
            region.copy_to(&mut self.page);
            let before = self.bodies.len();
            encode(&self.page, &mut self.bodies);
            let length = u32::try_from(self.bodies.len() - before).unwrap_or(u32::MAX);
            payload.staged().extend(length.to_be_bytes());
        }
        payload.staged().extend_from_slice(&self.bodies);
        Ok(())
    }
}
// ANCHOR_END: method

/// A page as raw deflate if it is one pattern throughout, else as it is.
fn encode(page: &[u8], out: &mut Vec<u8>) {
    let (pattern, rest) = page.split_at(8.min(page.len()));
    if page.len() < 16 || rest.chunks(8).any(|chunk| chunk != pattern) {
        return out.extend_from_slice(page);
    }
    let mut bits = Bits {
        out,
        pending: 0,
        count: 0,
    };
    // One last block with deflate's fixed codes: eight literals, then copies from eight bytes back, 258 at most and 3 at least.
    bits.push(0b011, 3);
    for &byte in pattern {
        bits.literal(byte);
    }
    let mut left = rest.len();
    while left > 0 {
        let copy = if left > 258 && left < 258 + 3 {
            left - 3
        } else {
            left.min(258)
        };
        bits.copy_from_eight_back(copy);
        left -= copy;
    }
    bits.code(0, 7);
    bits.push(0, 7);
}

/// Deflate's stream of bits, and the fixed codes (RFC 1951, 3.2.6).
struct Bits<'a> {
    out: &'a mut Vec<u8>,
    pending: u32,
    count: u32,
}

impl Bits<'_> {
    fn push(&mut self, value: u32, count: u32) {
        self.pending |= value << self.count;
        self.count += count;
        while self.count >= 8 {
            self.out.push(self.pending as u8);
            self.pending >>= 8;
            self.count -= 8;
        }
    }

    /// Huffman codes go in with their highest bit first.
    fn code(&mut self, code: u32, count: u32) {
        self.push(code.reverse_bits() >> (32 - count), count);
    }

    fn literal(&mut self, byte: u8) {
        match u32::from(byte) {
            value @ 0..144 => self.code(0x30 + value, 8),
            value => self.code(0x190 + value - 144, 9),
        }
    }

    fn copy_from_eight_back(&mut self, len: usize) {
        // Lengths 3 to 258 are symbols 257 to 285, some with extra bits.
        let (symbol, base, extra) = match len {
            258 => (285, 258, 0),
            len @ 3..=10 => (254 + len, len, 0),
            len => {
                let bits = (len - 3).ilog2() - 2;
                let step = (len - 3) >> bits;
                (257 + 4 * bits as usize + step, (step << bits) + 3, bits)
            }
        };
        match symbol as u32 {
            symbol @ 256..280 => self.code(symbol - 256, 7),
            symbol => self.code(0xc0 + symbol - 280, 8),
        }
        self.push((len - base) as u32, extra);
        // Distances 7 and 8 are symbol 5, with one extra bit.
        self.code(5, 5);
        self.push(1, 1);
    }
}

/// A decoder has the same shape as an encoder. This one shows it for pages that are never compressed.
struct StoredUnpack {
    page: Vec<u8>,
}

impl Unpack for StoredUnpack {
    fn unpack(
        &mut self,
        pages: &IncomingPages<'_>,
        channel: &mut dyn RecvChannel,
    ) -> Result<(), UnpackError> {
        // Take the payload whole, in pieces whose size is ours to choose, never the peer's.
        let mut table = vec![0; 4 * pages.len()];
        channel.recv(&mut table)?;
        self.page.resize(pages.page_size(), 0);
        for (index, (target, length)) in pages.pages().zip(table.chunks(4)).enumerate() {
            let target: Region<'_> = target;
            if length != (self.page.len() as u32).to_be_bytes() {
                return Err(UnpackError::Damaged {
                    method: Kind::Qpl,
                    page: index,
                    pages: pages.len(),
                    reason: "only pages as they are can be read here".into(),
                });
            }
            channel.recv(&mut self.page)?;
            target.copy_from(&self.page);
        }
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    walk::run(&Patterns, &mut *Qpl.unpacker()?)?;
    let mut stored = StoredUnpack { page: Vec::new() };
    let refused = walk::run(&Patterns, &mut stored).map_err(|error| error.to_string());
    println!("a decoder that knows stored pages only: {refused:?}");
    assert!(refused.is_err_and(|error| error.contains("only pages as they are")));
    Ok(())
}

/// What an engine does with a method, without one: prepare a packet, and have it unpacked.
mod walk {
    use multifd_core::{
        Arrival, ChannelError, IncomingPages, Method, PageBatch, PayloadBuf, RamBlock, RecvChannel,
    };
    use multifd_core::{Unblock, Unpack};
    use multifd_packet::{Flags, Geometry, RamFields, RamPacket};
    use std::sync::Arc;

    /// A channel that holds one payload.
    struct Payload<'a>(&'a [u8]);

    struct Nothing;

    impl Unblock for Nothing {
        fn unblock(&self) {}
    }

    impl RecvChannel for Payload<'_> {
        fn recv_start(&mut self, buffer: &mut [u8]) -> Result<Arrival, ChannelError> {
            let (expected, received) = (buffer.len(), self.0.len());
            let (now, rest) = self
                .0
                .split_at_checked(expected)
                .ok_or(ChannelError::Closed { received, expected })?;
            buffer.copy_from_slice(now);
            self.0 = rest;
            Ok(Arrival::Message)
        }

        fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
            Ok(Box::new(Nothing))
        }
    }

    pub(crate) fn run(
        method: &dyn Method,
        unpacker: &mut dyn Unpack,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let source = Arc::new(RamBlock::anonymous("pc.ram", 64 * 4096, 4096)?);
        let target = RamBlock::anonymous("pc.ram", 64 * 4096, 4096)?;
        for number in 0..64u64 {
            let mut page = [0; 4096];
            page.chunks_mut(8)
                .for_each(|word| word.copy_from_slice(&(number * 0x0123_4567_89ab).to_be_bytes()));
            if number % 4 == 3 {
                // Not one pattern throughout.
                page[4000] ^= 1;
            }
            source.page(number * 4096)?.copy_from(&page);
        }
        let offsets: Vec<u64> = (0..64).map(|number| number * 4096).collect();
        let mut payload = PayloadBuf::default();
        method
            .preparer()?
            .prepare(&PageBatch::from_offsets(&source, &offsets)?, &mut payload)?;
        let bytes = payload.staged().clone();

        let fields = RamFields {
            flags: Flags::data(method.kind()),
            payload_len: u32::try_from(bytes.len())?,
            packet_num: 0,
            block: "pc.ram",
        };
        let mut wire = [0; 1344];
        let geometry = Geometry::new(4096)?;
        RamPacket::encode(&fields, geometry, &offsets, &[], &mut wire)?;
        let packet = RamPacket::parse(&wire, geometry)?;
        unpacker.unpack(&IncomingPages::new(&target, &packet)?, &mut Payload(&bytes))?;
        let [sent, arrived] = [&*source, &target].map(|block| {
            let mut all = vec![0; 64 * 4096];
            block
                .region(0, all.len())
                .map(|region| region.copy_to(&mut all))
                .map(|_| all)
        });
        assert!(sent? == arrived?, "the pages are not what they were");
        println!("64 pages became {} bytes, and 64 pages again", bytes.len());
        Ok(())
    }
}
