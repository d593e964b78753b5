//! `QATzip`: what Intel's QAT accelerator makes and takes, in software.

use crate::packet_bytes::{page_bytes, take_payload};
use flate2::{Compress, Compression, Crc, FlushCompress, Status, read::MultiGzDecoder};
use multifd_core::{
    IncomingPages, IndependentPackets, Method, MethodError, PageBatch, PayloadBuf, Prepare,
    RecvChannel, Unpack, UnpackError,
};
use std::io::{ErrorKind, Read};

const METHOD: multifd_packet::Compression = multifd_packet::Compression::Qatzip;
/// Guest bytes of one gzip member: `QATzip`'s default.
const MEMBER: usize = 64 << 10;
/// A gzip header with an extra field of twelve bytes.
const HEADER_LEN: usize = 24;

/// The method `QATzip`: all pages of a packet as one run of gzip members, each with `QATzip`'s
/// extra field.
///
/// Made in software, so that a machine without the accelerator can take part in a migration with
/// one that has it. It follows QEMU's documented layout and `QATzip`'s own description of its
/// format; it has not been tried against the hardware.
#[derive(Debug, Clone, Copy, Default)]
pub struct Qatzip;

impl IndependentPackets for Qatzip {}

impl Method for Qatzip {
    fn kind(&self) -> multifd_packet::Compression {
        METHOD
    }

    fn preparer(&self) -> Result<Box<dyn Prepare>, MethodError> {
        Ok(Box::new(GzipCompress {
            deflate: Compress::new(Compression::new(1), false),
            pages: Vec::new(),
        }))
    }

    fn unpacker(&self) -> Result<Box<dyn Unpack>, MethodError> {
        Ok(Box::new(GzipDecompress::default()))
    }
}

struct GzipCompress {
    deflate: Compress,
    pages: Vec<u8>,
}

impl Prepare for GzipCompress {
    fn prepare(&mut self, pages: &PageBatch, payload: &mut PayloadBuf) -> Result<(), MethodError> {
        let codec = |reason| MethodError::Codec {
            method: METHOD,
            reason,
        };
        let data = page_bytes(pages, &mut self.pages).map_err(codec)?;
        for piece in data.chunks(MEMBER) {
            member(&mut self.deflate, piece, payload.staged()).map_err(codec)?;
        }
        Ok(())
    }
}

/// Appends one gzip member: `QATzip` says in its extra field how long the data is on either side.
fn member(deflate: &mut Compress, data: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
    let start = out.len();
    out.reserve(HEADER_LEN + crate::deflate_bound(data.len()));
    out.resize(start + HEADER_LEN, 0);
    deflate.reset();
    let status = deflate
        .compress_vec(data, out, FlushCompress::Finish)
        .map_err(|e| e.to_string())?;
    if status != Status::StreamEnd {
        return Err("deflate took more room than it may".into());
    }
    let sizes = [data.len(), out.len() - start - HEADER_LEN];
    let [plain, packed] = sizes.map(|size| u32::try_from(size).unwrap_or(u32::MAX).to_le_bytes());
    // Magic, deflate, "has an extra field", no time, no hints, unknown system, twelve bytes of it:
    // "QZ" and eight more.
    let mut header = vec![
        0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 12, 0, b'Q', b'Z', 8, 0,
    ];
    header.extend(plain);
    header.extend(packed);
    if let Some(room) = out.get_mut(start..start + HEADER_LEN) {
        room.copy_from_slice(&header);
    }
    let mut crc = Crc::new();
    crc.update(data);
    out.extend(crc.sum().to_le_bytes());
    out.extend(plain);
    Ok(())
}

#[derive(Default)]
struct GzipDecompress {
    payload: Vec<u8>,
    page: Vec<u8>,
}

impl Unpack for GzipDecompress {
    fn unpack(
        &mut self,
        pages: &IncomingPages<'_>,
        channel: &mut dyn RecvChannel,
    ) -> Result<(), UnpackError> {
        let Self { payload, page } = self;
        let count = pages.len();
        let mut left = take_payload(pages, channel, payload)?;
        page.resize(pages.page_size(), 0);
        let mut decoder = MultiGzDecoder::new(&mut left);
        let damaged = |index, error: std::io::Error| match error.kind() {
            ErrorKind::UnexpectedEof => UnpackError::TooShort {
                method: METHOD,
                page: index,
                pages: count,
            },
            _ => UnpackError::Damaged {
                method: METHOD,
                page: index,
                pages: count,
                reason: error.to_string(),
            },
        };
        for (index, target) in pages.pages().enumerate() {
            decoder
                .read_exact(page)
                .map_err(|error| damaged(index, error))?;
            target.copy_from(page);
        }
        // Another byte would be one too many; looking for it also checks the last member's
        // checksum.
        let more = decoder
            .read(&mut [0])
            .map_err(|error| damaged(count, error))?;
        drop(decoder);
        if more == 0 && left.is_empty() {
            return Ok(());
        }
        Err(UnpackError::TooLong {
            method: METHOD,
            pages: count,
            left: left.len(),
        })
    }
}
