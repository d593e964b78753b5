//! A method of your own, from encoder and decoder to a transfer. No other code changes for it.
//!
//! The format: for each page a tag byte, then eight bytes if the page repeats them throughout, or
//! the page itself. QEMU does not know it, so it gets a private code point: both ends of a transfer
//! have to be given the method, and a QEMU refuses its packets.
//!
//! `cargo run -p multifd-compress --example write_a_method`

use multifd_core::packet::{Compression, PrivateCode};
use multifd_core::{
    IncomingPages, IndependentPackets, Method, MethodError, PageBatch, PayloadBuf, Prepare,
    RecvChannel, Unpack, UnpackError,
};

// ANCHOR: method
/// The code point that both ends have agreed on: one of eight.
const PATTERNS: Compression = Compression::Private(PrivateCode::new(0).unwrap());

/// A page that repeats its first eight bytes.
const REPEATED: u8 = 0;
/// A page that follows whole.
const WHOLE: u8 = 1;

/// The factory: the name packets give the method, and an encoder or decoder for each channel.
struct Patterns;

impl Method for Patterns {
    fn kind(&self) -> Compression {
        PATTERNS
    }

    fn preparer(&self) -> Result<Box<dyn Prepare>, MethodError> {
        Ok(Box::new(Codec::default()))
    }

    fn unpacker(&self) -> Result<Box<dyn Unpack>, MethodError> {
        Ok(Box::new(Codec::default()))
    }
}

/// A promise: each payload can be decoded alone. So a pool may prepare packets (`Encode::on_pool`).
impl IndependentPackets for Patterns {}

/// One channel's encoder or decoder. Its buffer lives as long as the channel.
#[derive(Default)]
struct Codec {
    page: Vec<u8>,
}

impl Prepare for Codec {
    /// Only normal pages come here, at most 512 KiB: zero pages have been sorted out.
    fn prepare(&mut self, pages: &PageBatch, payload: &mut PayloadBuf) -> Result<(), MethodError> {
        let block = pages.block();
        self.page.resize(block.page_size() as usize, 0);
        for &offset in pages.normal() {
            let region = block.page(offset).map_err(|error| MethodError::Codec {
                method: PATTERNS,
                reason: error.to_string(),
            })?;
            // A running guest may write to the page meanwhile: only a copy stays the same.
            region.copy_to(&mut self.page);
            let (pattern, rest) = self.page.split_at(8);
            let out = payload.staged();
            if rest.chunks(8).all(|chunk| chunk == pattern) {
                out.push(REPEATED);
                out.extend_from_slice(pattern);
            } else {
                out.push(WHOLE);
                out.extend_from_slice(&self.page);
            }
        }
        Ok(())
    }
}

impl Unpack for Codec {
    /// Takes exactly the payload. Its bytes come from a peer: every size here is ours, not the
    /// peer's.
    fn unpack(
        &mut self,
        pages: &IncomingPages<'_>,
        channel: &mut dyn RecvChannel,
    ) -> Result<(), UnpackError> {
        self.page.resize(pages.page_size(), 0);
        let mut left = pages.payload_len();
        for (index, target) in pages.pages().enumerate() {
            let cut = UnpackError::TooShort {
                method: PATTERNS,
                page: index,
                pages: pages.len(),
            };
            let mut tag = [0];
            left = left.checked_sub(1).ok_or_else(|| cut.clone())?;
            channel.recv(&mut tag)?;
            let len = match tag {
                [REPEATED] => 8,
                [WHOLE] => self.page.len(),
                [other] => {
                    return Err(UnpackError::Damaged {
                        method: PATTERNS,
                        page: index,
                        pages: pages.len(),
                        reason: format!("the tag {other} is not known"),
                    });
                }
            };
            left = left.checked_sub(len).ok_or(cut)?;
            let (body, rest) = self.page.split_at_mut(len);
            channel.recv(body)?;
            rest.chunks_mut(8)
                .for_each(|chunk| chunk.copy_from_slice(&body[..8]));
            target.copy_from(&self.page);
        }
        if left > 0 {
            return Err(UnpackError::TooLong {
                method: PATTERNS,
                pages: pages.len(),
                left,
            });
        }
        Ok(())
    }
}
// ANCHOR_END: method

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let sent = transfer::with(vec![std::sync::Arc::new(Patterns)])?;
    println!("64 pages went through in {sent} bytes");
    // A receiver that was not given the method refuses its packets, as a QEMU does.
    let refused = transfer::with(Vec::new()).map_err(|error| error.to_string());
    println!("without the method: {refused:?}");
    assert!(refused.is_err_and(|error| error.contains("private-0")));
    Ok(())
}

/// A transfer through memory.
mod transfer {
    use super::Patterns;
    use multifd_core::{
        Error, Method, Plain, Receiver, ReceiverConfig, Sender, SenderConfig, SyncScope,
    };
    use multifd_testing::{Pipes, bytes, guest};
    use std::sync::Arc;

    /// Sends by `Patterns` to a receiver that knows `methods` and no compression; returns how many
    /// bytes went over the channels.
    pub(crate) fn with(mut methods: Vec<Arc<dyn Method>>) -> Result<u64, Error> {
        let (source, target) = (guest("pc.ram", 64), guest("pc.ram", 64));
        for number in 0..64u64 {
            let mut page = [0; 4096];
            let word = (number * 0x0123_4567_89ab).to_be_bytes();
            page.chunks_mut(8)
                .for_each(|chunk| chunk.copy_from_slice(&word));
            // Every fourth page does not repeat.
            page[4000] ^= u8::from(number % 4 == 3);
            source.blocks()[0].page(number * 4096)?.copy_from(&page);
        }
        let pipes = Pipes::new(2);
        methods.push(Arc::new(Plain));
        let config = ReceiverConfig::default().methods(methods);
        let mut receiver = Receiver::new(target.clone(), config)?;
        for pipe in &pipes.0 {
            receiver.attach(Box::new(pipe.clone()))?;
        }
        let mut sender =
            Sender::start(source.clone(), &Patterns, &pipes, &SenderConfig::default())?;
        let sent = sender
            .queue_range(0, 0, 64 * 4096)
            .and_then(|()| sender.sync(SyncScope::Peer));
        // A receiver that refuses says why; its sender sees a channel that is stopped.
        receiver.wait_sync()?;
        sent?;
        let sent = sender.finish()?.total().wire_bytes;
        receiver.finish()?;
        assert!(bytes(&source) == bytes(&target));
        Ok(sent)
    }
}
