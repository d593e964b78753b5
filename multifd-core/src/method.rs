//! The data-handling layer: turns pages into a payload and back, and knows nothing of how bytes travel.

use crate::{IncomingPages, MethodError, PageBatch, RecvChannel, Run, UnpackError};

/// A way to encode pages; makes one encoder or decoder a channel.
pub trait Method: Send + Sync {
    /// The method as packets name it.
    fn kind(&self) -> multifd_packet::Method;

    /// A fresh encoder for one channel.
    ///
    /// # Errors
    /// [`MethodError`] if the codec can not be set up.
    fn preparer(&self) -> Result<Box<dyn Prepare>, MethodError>;

    /// A fresh decoder for one channel.
    ///
    /// # Errors
    /// [`MethodError`] if the codec can not be set up.
    fn unpacker(&self) -> Result<Box<dyn Unpack>, MethodError>;
}

/// One channel's encoder.
pub trait Prepare: Send {
    /// Describes the payload for the normal pages of `pages`. Zero pages need none, and buffers that are no pages
    /// never come here: they are IOVs already.
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
    fn unpack(&mut self, pages: &IncomingPages<'_>, channel: &mut dyn RecvChannel)
    -> Result<(), UnpackError>;
}

/// A payload under construction: runs of guest pages, then staged bytes. Its room is used again for every packet.
#[derive(Debug, Default)]
pub struct PayloadBuf {
    pub(crate) runs: Vec<Run>,
    pub(crate) staged: Vec<u8>,
}

impl PayloadBuf {
    /// Empties the payload, keeping its room.
    pub fn clear(&mut self) {
        self.runs.clear();
        self.staged.clear();
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
