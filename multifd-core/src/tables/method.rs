//! The data-handling layer: turns pages into a payload and back, and knows nothing of how bytes
//! travel.

use super::incoming::IncomingPages;
use super::pages::PageBatch;
use super::transport::RecvChannel;
use crate::{MethodError, Run, UnpackError};
use multifd_packet::Compression;
use std::sync::Arc;
use std::time::Duration;

/// A way to encode pages; makes one encoder or decoder a channel.
pub trait Method: Send + Sync {
    /// The method as packets name it.
    fn kind(&self) -> Compression;

    /// A fresh encoder for one channel.
    ///
    /// # Errors
    /// [`MethodError`] if the codec cannot be set up.
    fn preparer(&self) -> Result<Box<dyn Prepare>, MethodError>;

    /// A fresh decoder for one channel.
    ///
    /// # Errors
    /// [`MethodError`] if the codec cannot be set up.
    fn unpacker(&self) -> Result<Box<dyn Unpack>, MethodError>;

    /// Receives the duration of each send, if there is one. The engine asks once.
    fn observer(&self) -> Option<Arc<dyn Observer>> {
        None
    }
}

impl<M: Method + ?Sized> Method for Arc<M> {
    fn kind(&self) -> Compression {
        (**self).kind()
    }

    fn preparer(&self) -> Result<Box<dyn Prepare>, MethodError> {
        (**self).preparer()
    }

    fn unpacker(&self) -> Result<Box<dyn Unpack>, MethodError> {
        (**self).unpacker()
    }

    fn observer(&self) -> Option<Arc<dyn Observer>> {
        (**self).observer()
    }
}

/// A method whose every payload can be decoded by itself: any of its encoders can prepare any
/// packet, and packets may go over any channel, in any order.
///
/// A codec that is one stream for the life of a channel, such as QEMU's zlib, is not one: its
/// packets must be prepared by their channel, in order.
pub trait IndependentPackets: Method {}

impl<M: IndependentPackets + ?Sized> IndependentPackets for Arc<M> {}

/// Is told what sending took.
pub trait Observer: Send + Sync {
    /// A packet with pages has been sent. Called from the channels' threads.
    fn sent(&self, packet: &SentPacket);
}

/// What sending one packet took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SentPacket {
    /// The channel it went over.
    pub channel: u8,
    /// Bytes on the wire: packet and payload.
    pub wire_bytes: u64,
    /// How long the transport took for it; most of that is waiting, if the link is the narrowest
    /// place.
    pub sending: Duration,
}

/// One channel's encoder.
pub trait Prepare: Send {
    /// Describes the payload for the normal pages of `pages`. Zero pages need none, and buffers
    /// that are no pages never come here: they are IOVs already.
    ///
    /// # Errors
    /// [`MethodError`] if the codec fails.
    fn prepare(&mut self, pages: &PageBatch, payload: &mut PayloadBuf) -> Result<(), MethodError>;
}

/// One channel's decoder, the mirror image of [`Prepare`].
pub trait Unpack: Send {
    /// Takes exactly the packet's payload from `channel` and puts its normal pages in place.
    ///
    /// # Errors
    /// [`UnpackError`] if the payload is damaged, too short or too long, or the channel fails.
    fn unpack(
        &mut self,
        pages: &IncomingPages<'_>,
        channel: &mut dyn RecvChannel,
    ) -> Result<(), UnpackError>;
}

/// A payload under construction: runs of guest pages, then staged bytes. Its room is used again for
/// every packet.
#[derive(Debug, Default)]
pub struct PayloadBuf {
    pub(crate) runs: Vec<Run>,
    pub(crate) staged: Vec<u8>,
    compression: Option<Compression>,
}

impl PayloadBuf {
    /// Empties the payload, keeping its room.
    pub fn clear(&mut self) {
        self.runs.clear();
        self.staged.clear();
        self.compression = None;
    }

    /// Says that this payload is not in the method that [`Method::kind`] names, but in another. A
    /// QEMU takes one method only; a [`Receiver`](crate::Receiver) takes all it has been given.
    pub fn set_compression(&mut self, compression: Compression) {
        self.compression = Some(compression);
    }

    /// The method this payload is in, if it is not the usual one.
    pub fn compression(&self) -> Option<Compression> {
        self.compression
    }

    /// Sends a run of the batch's block straight from guest memory.
    pub fn push_run(&mut self, run: Run) {
        self.runs.push(run);
    }

    /// The bytes sent after the runs; append to it.
    pub fn staged(&mut self) -> &mut Vec<u8> {
        &mut self.staged
    }

    /// The runs of guest pages, in order.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Bytes of the payload.
    pub fn len(&self) -> usize {
        self.runs.iter().map(|run| run.len).sum::<usize>() + self.staged.len()
    }

    /// Whether the payload is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
