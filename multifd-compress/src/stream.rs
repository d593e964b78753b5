//! What decoders of streams have in common: a stream may go on from packet to packet, and each
//! payload gives exactly the packet's pages.

use crate::packet_bytes::take_payload;
use multifd_core::{IncomingPages, MethodError, OverBudget, RecvChannel, Unpack, UnpackError};
use multifd_packet::Compression;

/// Checks a level against the range QEMU accepts for the method.
pub(crate) fn check_level(method: Compression, found: u8, max: u8) -> Result<u8, MethodError> {
    if found > max {
        return Err(MethodError::Level {
            method,
            found: found.into(),
            min: 0,
            max: max.into(),
        });
    }
    Ok(found)
}

/// Why a decompressor does not go on.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The bytes are damaged, in the codec's words.
    Damaged(String),
    /// It would take too much memory.
    #[cfg_attr(not(feature = "zstd"), allow(dead_code))]
    Memory(OverBudget),
}

/// A decompressor with a stream under way.
pub(crate) trait Inflate: Send {
    const METHOD: Compression;

    /// Decompresses some of `input` into some of `out`; returns how much of each was used. No
    /// progress means that more input is needed.
    fn inflate(&mut self, input: &[u8], out: &mut [u8]) -> Result<(usize, usize), Refused>;
}

/// Decompresses packets with `I`.
pub(crate) struct Decompress<I> {
    inflate: I,
    payload: Vec<u8>,
    page: Vec<u8>,
}

impl<I: Inflate> Decompress<I> {
    pub(crate) fn new(inflate: I) -> Self {
        Self {
            inflate,
            payload: Vec::new(),
            page: Vec::new(),
        }
    }
}

impl<I: Inflate> Unpack for Decompress<I> {
    fn unpack(
        &mut self,
        pages: &IncomingPages<'_>,
        channel: &mut dyn RecvChannel,
    ) -> Result<(), UnpackError> {
        let Self {
            inflate,
            payload,
            page,
        } = self;
        let mut input = take_payload(pages, channel, payload)?;
        page.resize(pages.page_size(), 0);
        let method = I::METHOD;
        let count = pages.len();
        for (index, target) in pages.pages().enumerate() {
            let mut room = page.as_mut_slice();
            while !room.is_empty() {
                let (used, made) = step(inflate, input, room, index, count)?;
                if used == 0 && made == 0 {
                    return Err(UnpackError::TooShort {
                        method,
                        page: index,
                        pages: count,
                    });
                }
                input = input.get(used..).unwrap_or_default();
                room = room.get_mut(made..).unwrap_or_default();
            }
            target.copy_from(page);
        }
        // What ends the flush gives no output: a byte of room would show one that does.
        let too_long = |left| UnpackError::TooLong {
            method,
            pages: count,
            left,
        };
        loop {
            let (used, made) = step(inflate, input, &mut [0], count, count)?;
            input = input.get(used..).unwrap_or_default();
            match (used, made) {
                (0, 0) if input.is_empty() => return Ok(()),
                (0, 0) | (_, 1..) => return Err(too_long(input.len())),
                _ => {}
            }
        }
    }
}

fn step<I: Inflate>(
    inflate: &mut I,
    input: &[u8],
    out: &mut [u8],
    page: usize,
    pages: usize,
) -> Result<(usize, usize), UnpackError> {
    inflate
        .inflate(input, out)
        .map_err(|refused| match refused {
            Refused::Damaged(reason) => UnpackError::Damaged {
                method: I::METHOD,
                page,
                pages,
                reason,
            },
            Refused::Memory(cause) => UnpackError::Memory {
                method: I::METHOD,
                cause,
            },
        })
}
